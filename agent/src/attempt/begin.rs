//! Begin: what an attempt is bound to while one session lasts (backup id, data key), and how it is bound anew when the session
//! was lost.
//!
//! Whoever needs the coordinator asks [`Bindings::current`]: it waits for a session and calls Begin once for each. So a lost
//! session costs waiting and, for packs that are not stored yet, new seals; the dump goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use sealift_common::crypto::{KeyOwner, Recipient, SeriesSecret};
use sealift_common::format::pack::{BackupKeys, PackMeta};
use sealift_common::id::{BackupId, RepositoryId, SeriesId, Sha256};
use sealift_common::telemetry::inject_trace_parent;
use sealift_proto::v1;
use sealift_proto::v1::backup_client::BackupClient;

use super::failure::AttemptError;
use super::patience::Patience;
use crate::agent::Agent;
use crate::session::link::Connection;
use crate::state::journal::AttemptRef;
use crate::state::trust::{TrustKeeper, TrustKeeperError};

const BEGIN: &str = "Begin";
const BEGIN_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest answer, in bytes: a chunk index with its directory and header.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// Most packs that one series may have.
const MAX_PACKS: usize = 4_000_000;

/// A pack that this backup may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPack {
    /// Hash and lengths.
    pub meta: PackMeta,
    /// The backup that wrote it.
    pub origin: BackupId,
    /// Known to this host, but not to be referred to: its chunks count as absent.
    pub retiring: bool,
}

/// What one Begin said.
#[derive(Debug)]
pub struct Binding {
    /// The session it holds for.
    pub connection: Connection,
    /// Id and keys of the backup.
    pub keys: Arc<BackupKeys>,
    /// To whom it is sealed.
    pub recipients: Vec<Recipient>,
    /// Goes into the manifest.
    pub session_nonce: [u8; 32],
    /// Of the manifest to be written.
    pub sequence: u64,
    /// Hash of the newest manifest of the series.
    pub previous: Option<Sha256>,
    /// The trust policy in force.
    pub trust_version: u64,
    /// SHA-256 of its object.
    pub trust_sha256: Sha256,
    /// Raw size of the backup before; 0 if none.
    pub previous_raw_bytes: u64,
    /// Packs that may be authorised and not confirmed.
    pub max_ahead: usize,
    /// Packs that may be referred to, and retiring ones.
    pub packs: Vec<KnownPack>,
    /// Their places in `packs`.
    by_hash: HashMap<Sha256, usize>,
}

impl Binding {
    /// The backup that is written now.
    pub fn backup(&self) -> BackupId {
        self.keys.owner.backup
    }

    /// What is known of a pack.
    pub fn pack(&self, sha256: Sha256) -> Option<&KnownPack> {
        self.by_hash.get(&sha256).and_then(|at| self.packs.get(*at))
    }

    /// A client for calls of this attempt.
    pub fn client(&self) -> Client {
        client(&self.connection)
    }
}

/// A client for `Backup` whose calls belong to the trace of the attempt.
pub type Client = BackupClient<InterceptedService<Channel, TraceInterceptor>>;
type TraceInterceptor = fn(tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status>;

/// A client for `Backup`. Chunk indexes may be larger than tonic's default message.
pub fn client(connection: &Connection) -> Client {
    let interceptor: TraceInterceptor = inject_trace_parent;
    BackupClient::with_interceptor(connection.channel.clone(), interceptor)
        .max_decoding_message_size(MAX_MESSAGE)
}

/// Binds one attempt to whatever session there is.
#[derive(Debug)]
pub struct Bindings {
    agent: Arc<Agent>,
    attempt: AttemptRef,
    series: SeriesId,
    secret: SeriesSecret,
    current: Mutex<Option<Arc<Binding>>>,
    keys: SyncMutex<Option<watch::Sender<Arc<BackupKeys>>>>,
}

impl Bindings {
    /// An attempt that is not bound yet.
    pub fn new(agent: Arc<Agent>, attempt: AttemptRef, series: SeriesId, secret: SeriesSecret) -> Self {
        Self { agent, attempt, series, secret, current: Mutex::new(None), keys: SyncMutex::new(None) }
    }

    /// The attempt.
    pub fn attempt(&self) -> AttemptRef {
        self.attempt
    }

    /// The binding to the session that is up now; waits for one, and calls Begin where it is new.
    ///
    /// # Errors
    /// [`AttemptError`] where the coordinator does not want this attempt any more, or cannot be believed.
    pub async fn current(&self) -> Result<Arc<Binding>, AttemptError> {
        let mut link = self.agent.link.clone();
        let mut patience = Patience::new(&self.agent, "begin the backup");
        let mut current = self.current.lock().await;
        loop {
            let connection = link.connected().await.ok_or(AttemptError::AgentStops)?;
            if let Some(binding) = &*current
                && binding.connection.number == connection.number
            {
                return Ok(binding.clone());
            }
            let session = connection.number;
            match self.begin(connection).await {
                Ok(binding) => {
                    let binding = Arc::new(binding);
                    self.publish(&binding.keys);
                    *current = Some(binding.clone());
                    return Ok(binding);
                }
                Err(BeginError::Call(status)) => patience.wait(status, session).await?,
                Err(BeginError::Final(error)) => return Err(error),
            }
        }
    }

    /// The newest keys, for packs that are begun. Ask after the first [`Bindings::current`].
    ///
    /// # Errors
    /// [`AttemptError::Build`] where there are none yet.
    pub fn keys(&self) -> Result<watch::Receiver<Arc<BackupKeys>>, AttemptError> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.as_ref().map(watch::Sender::subscribe).ok_or_else(|| AttemptError::Build {
            what: "a pack",
            problem: "the backup has not begun".to_owned(),
        })
    }

    fn publish(&self, keys: &Arc<BackupKeys>) {
        let mut sender = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match &*sender {
            Some(sender) => drop(sender.send_replace(keys.clone())),
            None => *sender = Some(watch::Sender::new(keys.clone())),
        }
    }

    async fn begin(&self, connection: Connection) -> Result<Binding, BeginError> {
        let identity = self.agent.identity.current();
        let mut trust =
            TrustKeeper::open(self.agent.state.clone(), &identity).map_err(AttemptError::Trust)?;
        let mut request = tonic::Request::new(v1::BeginRequest {
            attempt: Some(self.attempt.to_wire()),
            epoch_id: self.secret.epoch_id().to_vec(),
            known_trust_version: trust.version(),
            instance_id: self.agent.instance.to_vec(),
        });
        request.set_timeout(BEGIN_TIMEOUT);
        let mut replies = client(&connection).begin(request).await?.into_inner();
        let (mut head, mut packs) = (None, Vec::new());
        while let Some(reply) = replies.message().await? {
            head = head.or(reply.head);
            for pack in &reply.packs {
                packs.push(known_pack(pack)?);
            }
            if packs.len() > MAX_PACKS {
                return Err(bad("it names too many packs").into());
            }
        }
        let head = head.ok_or_else(|| bad("it has no head"))?;
        trust.accept(&head.trust_chain).map_err(AttemptError::Trust)?;
        self.bind(connection, &head, packs, &trust, identity.repository).map_err(BeginError::Final)
    }

    /// Believes of the head only what it may say.
    fn bind(
        &self,
        connection: Connection,
        head: &v1::BeginHead,
        packs: Vec<KnownPack>,
        trust: &TrustKeeper,
        repository: RepositoryId,
    ) -> Result<Binding, AttemptError> {
        if head.repository_id != repository.as_bytes() {
            return Err(bad("it is for another repository"));
        }
        let session_nonce: [u8; 32] =
            head.session_nonce.as_slice().try_into().map_err(|_| bad("its nonce is not 32 bytes"))?;
        let trust_sha256 =
            Sha256::try_from(head.trust_sha256.as_slice()).map_err(AttemptError::answer(BEGIN))?;
        let (known, recipients) =
            trust.recipients(head.trust_version, trust_sha256).map_err(AttemptError::Trust)?;
        let backup = BackupId::try_from(head.backup_id.as_slice()).map_err(AttemptError::answer(BEGIN))?;
        let previous = match head.previous_sha256.as_slice() {
            [] => None,
            sha256 => Some(Sha256::try_from(sha256).map_err(AttemptError::answer(BEGIN))?),
        };
        if head.sequence == 0 {
            return Err(bad("sequences start at 1"));
        }
        let owner = KeyOwner { repository, series: self.series, backup };
        let keys =
            BackupKeys::generate(&self.agent.random, &session_nonce, owner, self.secret.clone(), &recipients)
                .map_err(AttemptError::Slots)?;
        tracing::info!(%backup, sequence = head.sequence, packs = packs.len(), "backup begins");
        Ok(Binding {
            connection,
            keys: Arc::new(keys),
            recipients,
            session_nonce,
            sequence: head.sequence,
            previous,
            trust_version: known.version,
            trust_sha256: known.sha256,
            previous_raw_bytes: head.previous_raw_bytes,
            max_ahead: head.max_ahead.clamp(1, 16) as usize,
            by_hash: packs.iter().enumerate().map(|(at, pack)| (pack.meta.sha256, at)).collect(),
            packs,
        })
    }
}

enum BeginError {
    Call(tonic::Status),
    Final(AttemptError),
}

impl From<tonic::Status> for BeginError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(status)
    }
}

impl From<AttemptError> for BeginError {
    fn from(error: AttemptError) -> Self {
        Self::Final(error)
    }
}

fn bad(problem: &str) -> AttemptError {
    AttemptError::Answer { operation: BEGIN, problem: problem.to_owned() }
}

fn known_pack(wire: &v1::ReferablePack) -> Result<KnownPack, AttemptError> {
    let meta = PackMeta {
        sha256: Sha256::try_from(wire.sha256.as_slice()).map_err(AttemptError::answer(BEGIN))?,
        size: wire.size,
        meta_sha256: Sha256::try_from(wire.meta_sha256.as_slice()).map_err(AttemptError::answer(BEGIN))?,
        index_len: wire.index_len,
        directory_len: wire.directory_len,
        header_len: wire.header_len,
    };
    let origin = BackupId::try_from(wire.origin_backup.as_slice()).map_err(AttemptError::answer(BEGIN))?;
    Ok(KnownPack { meta, origin, retiring: wire.retiring })
}

impl From<TrustKeeperError> for AttemptError {
    fn from(error: TrustKeeperError) -> Self {
        Self::Trust(error)
    }
}
