//! The database takes in what the bucket knows: trust policies, hosts' keys, every manifest and the packs it names.
//!
//! Manifests' public parts can be read by anyone and are signed by their hosts, so no private key is needed. Nothing is
//! deleted, and nothing is believed that is not signed: a manifest whose key nobody vouches for is left where it is and
//! named. Doing it again does no harm, whenever it was interrupted: the last step alone ends the recovery.
//!
//! | what | from where | what of it is lost without a backup of the coordinator |
//! |---|---|---|
//! | trust policies | `trust/`, verified against the configured root keys | nothing |
//! | hosts | `agents/`, for hosts that have a manifest, or that the trust policy attests | names, labels, revocations |
//! | series, backups, packs | manifests | names of sources, until their hosts connect |
//! | sequence numbers | manifests, and what hosts report; [`GAP`] are left out | nothing |
//!
//! | file | what it does |
//! |---|---|
//! | this one | the steps in their order, and the generation that begins with the last |
//! | [`trust`] | trust policies, and the names of the hosts' keys |
//! | [`look`] | what the bucket has of a series, and whom a manifest is believed from |
//! | [`take`] | a series goes into the database: backups, packs, their runs |
//! | [`hosts`] | hosts that the database does not know |

mod hosts;
mod look;
mod take;
mod trust;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{AgentKeyObject, TrustState};
use sealift_common::format::manifest::ManifestPublic;
use sealift_common::format::names::{ObjectName, SERIES_PREFIX};
use sealift_common::id::{AgentId, RepositoryId, SeriesId, Sha256};
use sealift_common::name::Name;
use serde::Serialize;

use super::RecoveryError;
use super::generation::{Generations, Mark, random};
use super::names::Names;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::backups::Backups;
use crate::core::Core;
use crate::objects::ObjectStore;
use crate::runs::state::AttemptEvent;
use crate::runs::{Report as AttemptReport, advance};
use crate::store::{StoreError, attempts, generation, recovery};

/// Sequence numbers that are left out: a lost database may have given them away.
pub const GAP: u64 = 1_000;
/// Series that are looked at side by side.
const PARALLEL: usize = 16;
/// Objects of one kind, at most.
const MAX_LISTED: usize = 5_000_000;
/// Largest agent key that is read.
const MAX_KEY: u64 = 64 * 1024;
/// Attempts of the old database that are ended.
const MAX_ATTEMPTS: u32 = 100_000;
/// Objects that were left alone and are named one by one.
const MAX_LEFT: usize = 100;

/// What a recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Versions of the trust policy that were taken in.
    pub trust_versions_added: u64,
    /// Hosts that were taken in.
    pub agents_added: u64,
    /// Series in the bucket.
    pub series: u64,
    /// Of these, those that the database did not know.
    pub series_added: u64,
    /// Manifests in the bucket.
    pub backups: u64,
    /// Of these, those that the database did not know.
    pub backups_added: u64,
    /// Backups of the database whose manifest is not in the bucket.
    pub backups_gone: u64,
    /// Packs that were taken in.
    pub packs_added: u64,
    /// Packs that should be in the bucket, and are not as they were.
    pub packs_lost: u64,
    /// Attempts of the old database that were ended.
    pub attempts_ended: u64,
    /// What was left alone, and why.
    pub left_alone: Vec<String>,
    /// The generation that began.
    pub generation: u64,
}

/// Takes in what the bucket knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reconciler {
    core: Core,
    objects: ObjectStore,
    backups: Backups,
    roots: Vec<Sha256>,
}

/// What all series need.
struct Known {
    repository: RepositoryId,
    trust: Option<TrustState>,
    agent_keys: HashMap<AgentId, Vec<ObjectName>>,
    names: Names,
}

/// A manifest whose signer is believed.
struct Believed {
    name: ObjectName,
    size: u64,
    public: ManifestPublic,
    public_sha256: Sha256,
}

/// What the bucket has of one series.
struct SeriesInBucket {
    series: SeriesId,
    /// All its manifests: sequence and hash.
    names: Vec<(u64, Sha256)>,
    /// Those that the database does not know, oldest first.
    unknown: Vec<Believed>,
    /// The key object of each host that signed them.
    keys: BTreeMap<AgentId, AgentKeyObject>,
    left_alone: Vec<String>,
}

impl Reconciler {
    /// For the installation of `core`; `roots` are the root keys that its configuration names.
    pub fn new(core: Core, objects: ObjectStore, backups: Backups, roots: Vec<Sha256>) -> Self {
        Self { core, objects, backups, roots }
    }

    /// Takes everything in and begins a new generation.
    ///
    /// # Errors
    /// [`RecoveryError`]; what was taken in stays, the recovery does not end.
    pub async fn run(&self, ctx: &OpContext, names: Names) -> Result<Report, RecoveryError> {
        let mut report = Report::default();
        // The bucket is asked before the database, as always.
        let marks = Generations::new(self.core.clone(), self.objects.clone()).bucket().await?;
        let known = self.prepare(ctx, names, &mut report).await?;
        // Backups between Prepare and Commit: the bucket decides.
        self.backups.resolve_once().await?;
        self.end_attempts(&mut report).await?;
        let series: Vec<SeriesId> = self.series().await?.into_iter().collect();
        report.series = series.len() as u64;
        for some in series.chunks(PARALLEL) {
            self.take_some(ctx, &known, some, &mut report).await?;
        }
        self.take_attested(ctx, &known, &mut report).await?;
        self.keep_sequences(&mut report).await?;
        let more = report.left_alone.len().saturating_sub(MAX_LEFT);
        if more > 0 {
            report.left_alone.truncate(MAX_LEFT);
            report.left_alone.push(format!("and {more} more"));
        }
        let newest = marks.marks.iter().map(|mark| mark.number).max().unwrap_or(0);
        self.begin_generation(ctx, newest, &mut report).await?;
        Ok(report)
    }

    /// Looks at some series side by side, then takes them in. All looks have ended by then: one that waits in the middle would
    /// keep a connection to the database, and with a few of them there would be none left to write with.
    async fn take_some(
        &self,
        ctx: &OpContext,
        known: &Known,
        series: &[SeriesId],
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let looks = series.iter().map(|series| self.look(known, *series));
        for found in futures::future::try_join_all(looks).await? {
            report.backups += found.names.len() as u64;
            report.left_alone.extend(found.left_alone.iter().cloned());
            self.take_in(ctx, known, &found, report).await?;
            report.packs_lost += self.backups.check_listing(ctx, found.series).await?.len() as u64;
        }
        Ok(())
    }

    /// The processes that worked on attempts of the old database may go on for a while: what they say is stale.
    async fn end_attempts(&self, report: &mut Report) -> Result<(), RecoveryError> {
        let now = self.core.clock.now();
        let ended = self.core.store.run_tx("end the attempts of before", move |tx, _| {
            async move {
                let mut ended = 0;
                for attempt in attempts::expired(tx, UnixMillis(i64::MAX), MAX_ATTEMPTS).await? {
                    let error = "the coordinator's database was recovered".to_owned();
                    let report = AttemptReport { error, retryable: true, ..AttemptReport::default() };
                    match advance(tx, now, &attempt, AttemptEvent::Lose, report).await {
                        Ok(_) => ended += 1,
                        // Its manifest may still arrive: the resolver ends it.
                        Err(crate::runs::RunError::Illegal(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok::<_, crate::runs::RunError>(ended)
            }
            .boxed()
        });
        report.attempts_ended = ended.await?;
        Ok(())
    }

    /// Series of the bucket, and of the database.
    async fn series(&self) -> Result<BTreeSet<SeriesId>, RecoveryError> {
        let folders = self.objects.folders(SERIES_PREFIX, MAX_LISTED).await?;
        let mut all: BTreeSet<SeriesId> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
        all.extend(recovery::all_series(&mut *self.core.store.reader().await?).await?);
        Ok(all)
    }

    /// Numbers that the lost database may have given away are not given again.
    async fn keep_sequences(&self, report: &mut Report) -> Result<(), RecoveryError> {
        let all = recovery::all_series(&mut *self.core.store.reader().await?).await?;
        report.series = report.series.max(all.len() as u64);
        for chunk in all.chunks(1_000) {
            self.core
                .store
                .run_tx("keep sequence numbers", move |tx, _| {
                    async move {
                        for series in chunk {
                            let highest = recovery::highest_sequence(tx, *series).await?;
                            recovery::raise_floor(tx, *series, None, highest.saturating_add(GAP)).await?;
                        }
                        Ok::<_, StoreError>(())
                    }
                    .boxed()
                })
                .await?;
        }
        Ok(())
    }

    async fn begin_generation(
        &self,
        ctx: &OpContext,
        newest: u64,
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let (id, nonce) = (random(&self.core), random(&self.core));
        let now = self.core.clock.now();
        let so_far = &*report;
        let row = self
            .core
            .store
            .run_tx("begin a generation", move |tx, _| {
                async move {
                    let before = generation::get(tx).await?;
                    let number = newest.max(before.number) + 1;
                    generation::renew(tx, number, id, nonce, now).await?;
                    let said = Details::none()
                        .with("before", before.number)
                        .with("after", number)
                        .with("report", serde_json::to_value(so_far).unwrap_or_default());
                    ctx.record(tx, Action::CoordinatorRecover, &"coordinator", Outcome::Done, said).await?;
                    generation::get(tx).await
                }
                .boxed()
            })
            .await?;
        report.generation = row.number;
        self.core.standing.take(&row);
        // Where the bucket does not take it now, the next mark will do.
        let put = Generations::new(self.core.clone(), self.objects.clone());
        if let Err(error) = put.put(&Mark::from(&row)).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the bucket does not know the generation yet"
            );
        }
        self.core.standing.touch();
        Ok(())
    }
}

fn named(text: &str) -> Result<Name, RecoveryError> {
    text.parse().map_err(|_| RecoveryError::Content(format!("{text} cannot be a name")))
}
