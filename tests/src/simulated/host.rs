//! One simulated host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use sealift_common::crypto::SigningKey;
use sealift_common::id::{AgentId, InstanceId, RepositoryId, RunId, SeriesId};
use sealift_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use url::Url;

use super::backup;
use super::fleet::World;
use super::session;
use super::source::Source;
use super::wire::{self, Enrolled};

/// A host: what it keeps on disk, and its process where one runs.
pub struct Host {
    pub(super) world: Arc<World>,
    pub(super) coordinators: Vec<Url>,
    pub(super) from: IpAddr,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) signing: SigningKey,
    pub(super) repository: RepositoryId,
    pub(super) scope: String,
    pub(super) sources: Vec<Arc<Source>>,
    pub(super) link: watch::Sender<Option<Link>>,
    pub(super) cut: Notify,
    id: AgentId,
    name: String,
    process: Mutex<Option<CancellationToken>>,
    work: Mutex<Work>,
}

/// An open session.
#[derive(Clone)]
pub(super) struct Link {
    /// Counts the sessions of a process.
    pub number: u64,
    pub channel: Channel,
    pub outgoing: mpsc::Sender<v1::AgentMessage>,
}

/// The attempts of a host.
#[derive(Default)]
struct Work {
    /// Those that its process works on.
    running: HashMap<RunId, Running>,
    /// Those that a process worked on that is gone.
    journal: Vec<v1::AttemptRef>,
}

struct Running {
    attempt: v1::AttemptRef,
    source: String,
    cancel: CancellationToken,
}

impl Host {
    pub(super) fn new(enrolled: Enrolled, number: usize, coordinators: Vec<Url>, world: Arc<World>) -> Self {
        let options = &world.options;
        let source = |name: &String| {
            let source =
                Source::new(enrolled.id, name.clone(), options.blocks, options.block_bytes, &options.random);
            Arc::new(source)
        };
        Self {
            sources: options.sources.iter().map(source).collect(),
            world,
            coordinators,
            from: wire::address(number),
            tls: enrolled.tls,
            signing: enrolled.signing,
            repository: enrolled.repository,
            scope: enrolled.scope,
            link: watch::Sender::new(None),
            cut: Notify::new(),
            id: enrolled.id,
            name: enrolled.name,
            process: Mutex::default(),
            work: Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// Its name in the fleet.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.process.lock().expect("not poisoned").is_some()
    }

    /// Whether it has a session.
    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Attempts that it works on.
    pub fn attempts(&self) -> usize {
        self.work().running.len()
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().expect("not poisoned")
    }

    /// To be called within the fleet's runtime.
    pub(super) fn start(self: &Arc<Self>) {
        let mut process = self.process.lock().expect("not poisoned");
        if process.is_some() {
            return;
        }
        let life = CancellationToken::new();
        *process = Some(life.clone());
        let instance = InstanceId::generate(&self.world.options.random);
        let host = self.clone();
        tokio::spawn(async move {
            let keep = Box::pin(session::keep(&host, instance, &life));
            // Ends with the process only.
            let _ = life.run_until_cancelled(keep).await;
        });
    }

    /// Ends the process, if one runs.
    pub(super) fn crash(&self) {
        let Some(life) = self.process.lock().expect("not poisoned").take() else { return };
        life.cancel();
        self.link.send_replace(None);
        let mut work = self.work();
        let lost: Vec<_> = work.running.drain().map(|(_, running)| running.attempt).collect();
        work.journal.extend(lost);
    }

    /// Cuts the connection.
    pub(super) fn cut(&self) {
        self.cut.notify_one();
    }

    /// What Hello says of attempts.
    pub(super) fn attempt_states(&self) -> Vec<v1::AttemptState> {
        let work = self.work();
        let state = |attempt: &v1::AttemptRef, phase: v1::AttemptPhase| v1::AttemptState {
            attempt: Some(attempt.clone()),
            phase: phase.into(),
            failure: match phase {
                v1::AttemptPhase::Interrupted => "the process was killed".to_owned(),
                _ => String::new(),
            },
            ..v1::AttemptState::default()
        };
        let running = work.running.values().map(|r| state(&r.attempt, v1::AttemptPhase::Running));
        let gone = work.journal.iter().map(|attempt| state(attempt, v1::AttemptPhase::Interrupted));
        running.chain(gone).collect()
    }

    /// The coordinator knows of the attempts that Hello named; `lost` are over.
    pub(super) fn welcomed(&self, lost: &[v1::AttemptRef]) {
        let mut work = self.work();
        work.journal.clear();
        for attempt in lost {
            if let Some(running) = run_of(attempt).and_then(|run| work.running.get(&run))
                && running.attempt == *attempt
            {
                running.cancel.cancel();
            }
        }
    }

    /// Takes an offer, or says why not.
    pub(super) fn offered(self: &Arc<Self>, offer: v1::Offer, life: &CancellationToken) -> v1::OfferReply {
        let attempt = offer.attempt.clone().unwrap_or_default();
        let reply = |accepted, reject: v1::RejectReason| v1::OfferReply {
            attempt: offer.attempt.clone(),
            accepted,
            reason: String::new(),
            reject: reject.into(),
        };
        let source = self.sources.iter().find(|source| source.name == offer.source);
        let (Some(source), Some(run), Ok(series)) =
            (source, run_of(&attempt), SeriesId::try_from(offer.series_id.as_slice()))
        else {
            return reply(false, v1::RejectReason::UnknownSource);
        };
        self.world.figures.offered(run);
        let mut work = self.work();
        // A run that is offered again: delivery is at least once.
        if work.running.get(&run).is_some_and(|running| running.attempt == attempt) {
            return reply(true, v1::RejectReason::Unspecified);
        }
        if work.running.values().any(|running| running.source == source.name) {
            return reply(false, v1::RejectReason::Busy);
        }
        let cancel = life.child_token();
        let running =
            Running { attempt: attempt.clone(), source: source.name.clone(), cancel: cancel.clone() };
        work.running.insert(run, running);
        let job = backup::Job { host: self.clone(), source: source.clone(), series, run, attempt };
        tokio::spawn(job.run(life.clone(), cancel));
        reply(true, v1::RejectReason::Unspecified)
    }

    /// The coordinator wants an attempt to end.
    pub(super) fn cancelled(&self, attempt: &v1::AttemptRef) {
        let work = self.work();
        if let Some(running) = run_of(attempt).and_then(|run| work.running.get(&run)) {
            running.cancel.cancel();
        }
    }

    /// An attempt is over.
    pub(super) fn ended(&self, run: RunId, attempt: &v1::AttemptRef) {
        let mut work = self.work();
        if work.running.get(&run).is_some_and(|running| running.attempt == *attempt) {
            work.running.remove(&run);
        }
    }

    /// Waits for a session.
    pub(super) async fn connected(&self) -> Link {
        let mut link = self.link.subscribe();
        loop {
            if let Some(link) = link.borrow_and_update().clone() {
                return link;
            }
            // The sender is this host's own.
            let _ = link.changed().await;
        }
    }
}

fn run_of(attempt: &v1::AttemptRef) -> Option<RunId> {
    RunId::try_from(attempt.run_id.as_slice()).ok()
}
