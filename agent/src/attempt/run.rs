//! One attempt from offer to commit.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use sealift_common::format::chunk::Chunker;
use sealift_common::lifecycle::Lifecycle;

use super::begin::{Binding, Bindings};
use super::failure::AttemptError;
use super::finish::{self, Finished};
use super::indexes;
use super::job::Job;
use super::manifest::{Draft, Plan, ReadOut};
use super::spooled::{self, Spooling};
use super::stop::{Stop, StopReason};
use super::store::PackStore;
use crate::agent::Agent;
use crate::bandwidth::{Bandwidth, Limits};
use crate::chunk::{ChunkError, Chunked};
use crate::dedup::ChunkTable;
use crate::pack::StoredPack;
use crate::pipeline::{Pipeline, PipelineError, Streamed};
use crate::progress::{self, Meters, Stage};
use crate::put::{PutClient, PutError};
use crate::source::{self, EVENTS_AHEAD, SourceEnv, SourceError, SourceEvent, SourceSummary, whole_chain};
use crate::spool::folder::Folder;
use crate::state::index_cache::IndexCache;
use crate::state::journal::Failure;
use crate::state::series::{Epoch, Series};

/// A source that is empty where its last backup had more than this many bytes has lost its data, not shrunk.
const SHRUNK_FROM: u64 = 1024 * 1024;

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// There is a backup.
    Committed,
    /// There is none; the coordinator is to be told.
    Failed(Failure),
    /// There is none, and the coordinator knows.
    TakenAway,
    /// The next process of this agent goes on with it.
    Suspended,
}

/// Works on `job` until it is committed, failed or stopped. What waits in the spool stays where another attempt, or the
/// next process, can go on with it.
pub async fn run(agent: &Arc<Agent>, job: &Job, stop: &Stop, lifecycle: &Lifecycle) -> Outcome {
    let meters = Arc::new(Meters::default());
    let stopping = async {
        lifecycle.soft.cancelled().await;
        if meters.stage() == Stage::Committing {
            // Too late to be cut off: a moment more, and it is a backup.
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = Box::pin(backup(agent, job, &meters)) => ended,
        reason = stop.asked() => match reason {
            StopReason::TakenAway => {
                tracing::warn!("the coordinator has given this attempt up");
                return Outcome::TakenAway;
            }
            reason => Err(reason.into()),
        },
        () = stopping => Err(AttemptError::AgentStops),
        () = tokio::time::sleep(job.limits.max_duration) => Err(AttemptError::TooLong(job.limits.max_duration)),
        never = progress::tell(&meters, job.attempt, &agent.link) => match never {},
    };
    match ended {
        Ok(finished) => {
            tracing::info!(
                backup = %finished.backup,
                raw_bytes = meters.raw_bytes.load(Relaxed),
                new_raw_bytes = meters.new_raw_bytes.load(Relaxed),
                stored_bytes = meters.stored_bytes.load(Relaxed),
                partial = finished.partial,
                "backup committed"
            );
            Outcome::Committed
        }
        Err(AttemptError::AgentStops) if meters.stage() == Stage::Spooled => {
            tracing::info!("the backup waits in the spool for the next start");
            Outcome::Suspended
        }
        Err(error) => {
            tracing::error!(error = whole_chain(&error), "backup failed");
            if !error.leaves_spool_good() {
                spooled::discard(agent, job.series);
            }
            Outcome::Failed(error.to_failure())
        }
    }
}

async fn backup(agent: &Arc<Agent>, job: &Job, meters: &Arc<Meters>) -> Result<Finished, AttemptError> {
    match spooled::take_up(agent, job, meters).await? {
        Some(waiting) => spooled::finish(agent, job, meters, waiting).await,
        None => read_and_store(agent, job, meters).await,
    }
}

async fn read_and_store(
    agent: &Arc<Agent>,
    job: &Job,
    meters: &Arc<Meters>,
) -> Result<Finished, AttemptError> {
    let mut series = load_series(agent, job)?;
    let mut reader = Reader::start(agent, job)?;
    let epoch = choose_epoch(agent, job, &mut series, &mut reader).await?;

    let bindings = Arc::new(Bindings::new(agent.clone(), job.attempt, job.series, epoch.secret.clone()));
    let binding = bindings.current().await?;
    meters.expected_raw_bytes.store(binding.previous_raw_bytes.max(reader.expected()), Relaxed);
    let cache = IndexCache::new(agent.state.clone(), job.series);
    let (table, known) = indexes::fill(agent, &bindings, &binding, &cache).await?;

    let spooling = Spooling::begin(agent, job, &binding, meters)?;
    let store = pack_store(agent, job, meters, bindings, spooling.as_ref().map(Spooling::folder))?;
    let draft = |new_packs, chunked: &Chunked, summary: &SourceSummary| {
        let read = ReadOut {
            chunked,
            summary,
            new_raw_bytes: meters.new_raw_bytes.load(Relaxed),
            read_at: agent.clock.now(),
        };
        Draft::new(job, &epoch, &agent.identity.current(), &known, new_packs, read)
    };
    let settle = async |chunked: Arc<Chunked>, summary: SourceSummary| {
        if let Some(spooling) = &spooling
            && check_size(&binding, meters.raw_bytes.load(Relaxed)).is_ok()
        {
            spooling.settle_if_slow(|new_packs| draft(new_packs, &chunked, &summary)).await;
        }
    };
    let read = read(job, &epoch, &binding, table, reader, &store, settle).await?;
    check_size(&binding, meters.raw_bytes.load(Relaxed))?;
    let stored = &read.streamed.packs;
    let new_packs = stored.iter().map(|pack| pack.raw_len).collect();
    let plan = draft(new_packs, &read.streamed.chunked, &read.summary).into_plan(stored)?;
    conclude(&store, series, plan).await
}

/// What stores the packs of this attempt.
pub fn pack_store(
    agent: &Arc<Agent>,
    job: &Job,
    meters: &Arc<Meters>,
    bindings: Arc<Bindings>,
    folder: Option<Arc<Folder>>,
) -> Result<PackStore, AttemptError> {
    Ok(PackStore {
        agent: agent.clone(),
        bindings,
        put: put_client(agent, job)?,
        cache: IndexCache::new(agent.state.clone(), job.series),
        meters: meters.clone(),
        limits: job.limits.clone(),
        folder,
    })
}

/// Everything is stored: the manifest makes it a backup. Nothing has to wait in the spool any more.
pub async fn conclude(store: &PackStore, mut series: Series, plan: Plan) -> Result<Finished, AttemptError> {
    let agent = &store.agent;
    store.meters.enter(Stage::Committing);
    series.raw_bytes = plan.report.raw_bytes;
    let finished = finish::finish(store, plan).await?;
    spooled::discard(agent, series.id);
    // The backup exists whether this succeeds or not.
    series.head = Some(finished.head);
    if let Err(error) = agent.series().save(&series) {
        tracing::error!(%error, "cannot note the new manifest");
    }
    Ok(finished)
}

fn load_series(agent: &Agent, job: &Job) -> Result<Series, AttemptError> {
    let name = job.source.name.clone();
    let series = agent.series().load(job.series).map_err(AttemptError::State)?;
    Ok(match series {
        Some(series) => Series { source: name, ..series },
        None => Series::new(job.series, name),
    })
}

/// The epoch of this backup. A new one is on disk before anything is stored under it.
async fn choose_epoch(
    agent: &Agent,
    job: &Job,
    series: &mut Series,
    reader: &mut Reader,
) -> Result<Epoch, AttemptError> {
    let left = |epoch: &Epoch| Some(epoch.secret.epoch_id()) == job.leave_epoch;
    if series.needs_epoch() || series.epoch.as_ref().is_some_and(left) {
        // How large chunks should be depends on how much is to come: the source may know.
        reader.peek(job.limits.stall_timeout).await?;
        series.start_epoch(series.raw_bytes.max(reader.expected()), &agent.random);
        agent.series().save(series).map_err(AttemptError::State)?;
    }
    series.epoch.clone().ok_or_else(|| AttemptError::Build {
        what: "an epoch",
        problem: "the series has no secret".to_owned(),
    })
}

fn put_client(agent: &Agent, job: &Job) -> Result<PutClient, AttemptError> {
    let config = agent.config();
    let host = agent.bandwidth.get(config.upload.bandwidth().and_then(std::num::NonZeroU64::new));
    let policy = job.limits.bandwidth.map(|rate| Arc::new(Bandwidth::new(rate)));
    let unusable = |error| {
        AttemptError::Put(PutError::Config {
            section: "proxy",
            key: "password",
            problem: whole_chain(&error),
        })
    };
    let proxy = agent.proxy().map_err(unusable)?;
    PutClient::new(&config.s3, proxy, Limits::new(host.into_iter().chain(policy))).map_err(AttemptError::Put)
}

/// What was read from the source, and where it went.
#[derive(Debug)]
pub struct Read {
    /// Streams and new packs.
    pub streamed: Streamed<StoredPack>,
    /// What the source knows of itself.
    pub summary: SourceSummary,
}

/// Reads the source to its end, through the pipeline, into the store. `settle` is called when everything is read.
async fn read<S>(
    job: &Job,
    epoch: &Epoch,
    binding: &Binding,
    table: ChunkTable,
    reader: Reader,
    store: &PackStore,
    settle: impl FnOnce(Arc<Chunked>, SourceSummary) -> S,
) -> Result<Read, AttemptError>
where
    S: Future<Output = ()>,
{
    let pipeline = Pipeline {
        chunker: Chunker::new(&epoch.secret, job.series, epoch.class),
        table,
        keys: store.bindings.keys()?,
        compression_level: job.limits.compression_level,
        stall_timeout: job.limits.stall_timeout,
        max_ahead: binding.max_ahead,
        meters: store.meters.clone(),
        random: store.agent.random.clone(),
        spool: store.folder.clone(),
    };
    let (through, summary) = oneshot::channel();
    let drained = async |chunked: Arc<Chunked>| {
        // Dropped where the source failed: then nothing of this is used.
        if let Ok(summary) = summary.await {
            settle(chunked, summary).await;
        }
    };
    let Reader { events, first, cancel, task } = reader;
    let piping = async {
        let piped = pipeline.run(first, events, |outgoing| store.store(outgoing), drained).await;
        if piped.is_err() {
            cancel.cancel();
        }
        Ok(piped)
    };
    let reading = async {
        match task.await {
            // Only consequences: the pipeline knows why.
            Ok(Err(error @ (SourceError::Cancelled | SourceError::Closed))) => Ok(Err(error)),
            Ok(Err(error)) => Err(AttemptError::Source(error)),
            Ok(Ok(summary)) => {
                // Nobody waits where everything is stored already.
                let _ = through.send(summary.clone());
                Ok(Ok(summary))
            }
            Err(error) => {
                Err(AttemptError::Build { what: "the source's streams", problem: error.to_string() })
            }
        }
    };
    let (summary, piped) = tokio::try_join!(reading, piping)?;
    let streamed = piped.map_err(pipeline_error)?;
    Ok(Read { streamed, summary: summary.map_err(AttemptError::Source)? })
}

fn pipeline_error(error: PipelineError<AttemptError>) -> AttemptError {
    match error {
        PipelineError::Store(error) => error,
        PipelineError::Chunk(error) => AttemptError::Chunk(error),
        other => AttemptError::Build { what: "packs", problem: whole_chain(&other) },
    }
}

fn check_size(binding: &Binding, raw_bytes: u64) -> Result<(), AttemptError> {
    let previous_raw_bytes = binding.previous_raw_bytes;
    if raw_bytes == 0 && previous_raw_bytes > SHRUNK_FROM {
        return Err(AttemptError::ShrunkToNothing { previous_raw_bytes });
    }
    Ok(())
}

/// The source at work. Dropping it ends the source with all its children.
struct Reader {
    events: mpsc::Receiver<SourceEvent>,
    first: Option<SourceEvent>,
    cancel: CancellationToken,
    task: AbortOnDropHandle<Result<SourceSummary, SourceError>>,
}

impl Reader {
    fn start(agent: &Agent, job: &Job) -> Result<Self, AttemptError> {
        let mut env =
            SourceEnv::open(&agent.config(), agent.environment.clone()).map_err(AttemptError::Source)?;
        env.stall_timeout = job.limits.stall_timeout;
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let (cancel, source) = (CancellationToken::new(), job.source.clone());
        let token = cancel.clone();
        let work = async move { source::run(&source, &env, sender, token).await };
        let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
        Ok(Self { events, first: None, cancel, task })
    }

    /// Waits for what the source says first.
    async fn peek(&mut self, stall_timeout: Duration) -> Result<(), AttemptError> {
        let first = tokio::time::timeout(stall_timeout, self.events.recv()).await;
        self.first = first.map_err(|_| AttemptError::Chunk(ChunkError::Stalled(stall_timeout)))?;
        Ok(())
    }

    /// The source's estimate of its size, if that was the first it said.
    fn expected(&self) -> u64 {
        match self.first {
            Some(SourceEvent::Expected(bytes)) => bytes,
            _ => 0,
        }
    }
}
