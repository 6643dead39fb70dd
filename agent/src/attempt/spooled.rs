//! A backup that waits in the spool: how it gets there when the line is slow, and how another process, or the next attempt
//! of its run, goes on with it.
//!
//! The attempt lives on with its lease: the next process of this agent reports it as its own in Hello. Where the lease has
//! ended meanwhile, the run gets another attempt, and that one takes up what waits. Either way *Begin* is called anew: a new
//! backup id, nonce and data key, under which the packs are sealed as they leave. The spool's own key only ever opens.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{DataKey, KeyOwner, KeySlots};
use sealift_common::format::pack::BackupKeys;
use sealift_common::id::{BackupId, SeriesId};
use sealift_common::secret::Secret;

use super::begin::{Binding, Bindings};
use super::failure::AttemptError;
use super::finish::Finished;
use super::job::Job;
use super::manifest::Draft;
use super::run::{conclude, pack_store};
use crate::agent::Agent;
use crate::progress::{Meters, Stage};
use crate::source::whole_chain;
use crate::spool::{self, folder::Folder};
use crate::state::series::{Epoch, Series};
use crate::state::waiting::Ticket;
use crate::upload::{AT_A_TIME, Outgoing, SLOW_AFTER};

/// What waits for an attempt that never comes is removed after this.
const ORPHAN_LIFE: Duration = Duration::from_secs(60 * 60);

/// The way of one attempt into the spool.
#[derive(Debug)]
pub struct Spooling {
    agent: Arc<Agent>,
    folder: Arc<Folder>,
    ticket: Ticket,
    meters: Arc<Meters>,
}

impl Spooling {
    /// A place for the packs of this attempt; `None` where this host has no spool. Nothing is on disk yet.
    ///
    /// # Errors
    /// [`AttemptError::Slots`].
    pub fn begin(
        agent: &Arc<Agent>,
        job: &Job,
        binding: &Binding,
        meters: &Arc<Meters>,
    ) -> Result<Option<Self>, AttemptError> {
        let Some(spool) = agent.spool.clone() else { return Ok(None) };
        let (salt, id) = (Secret::new(agent.random.bytes()), BackupId::generate(&agent.random));
        let keys = keys(&salt, id, binding)?;
        let folder = Folder::new(spool, keys, agent.random.clone(), meters.spooled_bytes.clone());
        let ticket = Ticket {
            attempt: job.attempt,
            series: job.series,
            source: job.source.name.clone(),
            started: agent.clock.now(),
            spool: id,
            folder: folder.path().to_owned(),
            salt,
            limits: job.limits.to_ticket(),
        };
        let (agent, meters) = (agent.clone(), meters.clone());
        Ok(Some(Self { agent, folder: Arc::new(folder), ticket, meters }))
    }

    /// What the packs go through.
    pub fn folder(&self) -> Arc<Folder> {
        self.folder.clone()
    }

    /// The source is through. Unless the store has everything in a moment, what is left is brought to disk, so that a
    /// restart costs nothing.
    pub async fn settle_if_slow(&self, draft: impl FnOnce(Vec<u64>) -> Draft) {
        tokio::select! { () = self.folder.all_stored() => return, () = tokio::time::sleep(SLOW_AFTER) => {} }
        let (folder, plan) = (self.folder.clone(), draft(self.folder.raw_lens()).encode());
        match tokio::task::spawn_blocking(move || folder.settle(plan)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                tracing::info!(
                    "the spool has no room for the rest of this backup: it would not survive a restart"
                );
                return;
            }
            Ok(Err(error)) => {
                tracing::warn!(error = whole_chain(&error), "this backup would not survive a restart");
                return;
            }
            Err(_) => return, // cancelled with the program
        }
        self.folder.keep();
        if let Err(error) = self.agent.tickets().save(&self.ticket) {
            tracing::warn!(%error, "this backup would not survive a restart");
            self.folder.discard();
            return;
        }
        self.meters.enter(Stage::Spooled);
        tracing::info!(bytes = self.folder.bytes(), "the source is through; what is left waits in the spool");
    }
}

/// A backup that an earlier process, or attempt, left in the spool.
#[derive(Debug)]
pub struct Waiting {
    ticket: Ticket,
    draft: Draft,
    series: Series,
    epoch: Epoch,
}

/// What waits for this job. Whatever waits for another run of the series is too old to be of use, and is removed; so is
/// what cannot be used.
///
/// # Errors
/// [`AttemptError::State`].
pub async fn take_up(
    agent: &Arc<Agent>,
    job: &Job,
    meters: &Arc<Meters>,
) -> Result<Option<Waiting>, AttemptError> {
    let Some(mut ticket) = agent.tickets().load(job.series).map_err(AttemptError::State)? else {
        return Ok(None);
    };
    if ticket.attempt.run != job.attempt.run || agent.spool.is_none() {
        tracing::info!(attempt = %ticket.attempt, "removing what waited in the spool for another run");
        discard(agent, job.series);
        return Ok(None);
    }
    // From here on a stop leaves it where it is.
    meters.enter(Stage::Spooled);
    if ticket.attempt != job.attempt {
        ticket.attempt = job.attempt;
        agent.tickets().save(&ticket).map_err(AttemptError::State)?;
    }
    match open(agent, ticket).await {
        Ok(waiting) if Some(waiting.epoch.secret.epoch_id()) == job.leave_epoch => {
            tracing::info!("a new epoch is to start: the source is read again");
            start_over(agent, job, meters);
            Ok(None)
        }
        Ok(waiting) => Ok(Some(waiting)),
        Err(problem) => {
            tracing::warn!(problem, "what waited in the spool cannot be used: the source is read again");
            start_over(agent, job, meters);
            Ok(None)
        }
    }
}

fn start_over(agent: &Agent, job: &Job, meters: &Meters) {
    meters.enter(Stage::Dumping);
    discard(agent, job.series);
}

async fn open(agent: &Arc<Agent>, ticket: Ticket) -> Result<Waiting, String> {
    let series = agent.series().load(ticket.series).map_err(|error| whole_chain(&error))?;
    let series = series.ok_or("nothing is known of its series")?;
    let epoch = series.epoch.clone().ok_or("its series has no secret")?;
    let (key, folder) = (DataKey::of_spool(&ticket.salt, &epoch.secret), ticket.folder.clone());
    let plan = tokio::task::spawn_blocking(move || Folder::read_plan(&folder, &key));
    let plan = plan.await.map_err(|error| error.to_string())?.map_err(|error| whole_chain(&error))?;
    Ok(Waiting { draft: Draft::decode(&plan)?, ticket, series, epoch })
}

/// Stores what is left, and makes it a backup. Where packs that it builds on are gone meanwhile, the source is read again.
///
/// # Errors
/// [`AttemptError`].
pub async fn finish(
    agent: &Arc<Agent>,
    job: &Job,
    meters: &Arc<Meters>,
    waiting: Waiting,
) -> Result<Finished, AttemptError> {
    let Waiting { ticket, draft, series, epoch } = waiting;
    let bindings = Arc::new(Bindings::new(agent.clone(), job.attempt, job.series, epoch.secret));
    let binding = bindings.current().await?;
    let folder = Arc::new(reopen(agent, &ticket, &binding, &draft, meters)?);
    let stored = folder.stored_packs();
    let gone = stored.iter().filter(|pack| binding.pack(pack.meta.sha256).is_none()).count();
    let gone = gone + draft.packs_gone(&binding);
    if gone > 0 {
        return Err(AttemptError::PacksGone(gone));
    }
    let left = folder.left();
    tracing::info!(
        attempt = %job.attempt,
        packs = left.len(),
        bytes = folder.bytes(),
        read_s = agent.clock.now().since(ticket.started).as_secs(),
        "going on with a backup that waited in the spool"
    );
    meters.raw_bytes.store(draft.report.raw_bytes, Relaxed);
    meters.new_raw_bytes.store(draft.report.new_raw_bytes, Relaxed);
    meters.expected_raw_bytes.store(draft.report.raw_bytes, Relaxed);
    meters.packs.store(stored.len() as u64, Relaxed);
    meters.stored_bytes.store(stored.iter().map(|pack| pack.meta.size).sum(), Relaxed);

    let store = pack_store(agent, job, meters, bindings, Some(folder.clone()))?;
    let at_a_time = AT_A_TIME.min(binding.max_ahead);
    let storing = futures::stream::iter(left).map(|number| store.store(Outgoing { number, ready: None }));
    let _: Vec<_> = storing.buffer_unordered(at_a_time).try_collect().await?;
    conclude(&store, series, draft.into_plan(&folder.stored_packs())?).await
}

fn reopen(
    agent: &Agent,
    ticket: &Ticket,
    binding: &Binding,
    draft: &Draft,
    meters: &Meters,
) -> Result<Folder, AttemptError> {
    let nowhere =
        || AttemptError::Build { what: "packs", problem: "this host has no spool any more".to_owned() };
    let spool = agent.spool.clone().ok_or_else(nowhere)?;
    let keys = keys(&ticket.salt, ticket.spool, binding)?;
    let gauge = meters.spooled_bytes.clone();
    Folder::reopen(spool, keys, agent.random.clone(), gauge, &draft.new_packs).map_err(AttemptError::Spool)
}

/// The keys under which packs wait. Their slots make each file a pack like any other: whoever may open the backup may open
/// what was left on the disk of a host that died.
fn keys(salt: &Secret<[u8; 32]>, spool: BackupId, binding: &Binding) -> Result<BackupKeys, AttemptError> {
    let secret = binding.keys.secret.clone();
    let owner = KeyOwner { backup: spool, ..binding.keys.owner };
    let data_key = DataKey::of_spool(salt, &secret);
    let slots = KeySlots::seal(&data_key, &owner, &binding.recipients).map_err(AttemptError::Slots)?;
    Ok(BackupKeys { owner, data_key, slots, secret })
}

/// Removes what waits for a series, if anything does: the ticket with its half of the key first.
pub fn discard(agent: &Agent, series: SeriesId) {
    let tickets = agent.tickets();
    let removed = tickets.load(series).and_then(|ticket| {
        let Some(ticket) = ticket else { return Ok(None) };
        tickets.remove(series).map(|()| Some(ticket.folder))
    });
    match removed {
        Ok(None) => {}
        Ok(Some(folder)) => {
            if let Err(error) = spool::remove(&folder) {
                tracing::warn!(error = whole_chain(&error), "the spool is swept at the next start");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot remove what waits in the spool"),
    }
}

/// Removes what waits for a series after a while, unless an attempt has taken it up.
pub async fn expire(agent: Arc<Agent>, series: SeriesId) {
    let waiting = || agent.tickets().load(series).ok().flatten().map(|ticket| ticket.attempt);
    let Some(attempt) = waiting() else { return };
    tokio::time::sleep(ORPHAN_LIFE).await;
    if waiting() == Some(attempt) {
        tracing::warn!(%attempt, "no attempt has taken up what waits in the spool: removing it");
        discard(&agent, series);
    }
}

/// How much of `limit` is left for an attempt that was accepted at `started`.
pub fn time_left(limit: Duration, started: UnixMillis, now: UnixMillis) -> Duration {
    limit.saturating_sub(now.since(started))
}
