//! Enrolment: a short-lived token is exchanged for an identity, once.
//!
//! The coordinator's CA is pinned by its fingerprint before the token is sent. Keys and agent id are on disk before the
//! request goes out, so that a lost reply is repaired by running the same command again: the same token and keys give the
//! same agent.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Code, Status};
use url::Url;

use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::crypto::{AgentKeyObject, SigningKey};
use sealift_common::id::{AgentId, Random, RepositoryId, Sha256};
use sealift_common::proxy::Proxy;
use sealift_common::secret::Secret;
use sealift_common::tls::{self, fingerprint};
use sealift_proto::v1;
use sealift_proto::v1::enrollment_client::EnrollmentClient;

use super::{Identity, IdentityError, TlsKey, decode_seed, decode_tls_key};
use crate::session::backoff::Backoff;
use crate::session::clock;
use crate::session::error::describe;
use crate::state::dir::{StateDir, StateError};
use crate::state::encoded::Encoded;
use crate::state::trust::{TrustKeeper, TrustKeeperError};

const PENDING: &str = "enrolment.json";
const PENDING_ADVICE: &str = "remove it and use a fresh token";
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait where too many hosts enrol at once …
const FIRST_TURN: Duration = Duration::from_secs(5);
/// … and the longest: coordinators take five a second from one address.
const LONGEST_TURN: Duration = Duration::from_secs(60);
/// Tries before the command gives up: some ten minutes.
const MOST_TURNS: u32 = 24;

/// What `enroll` was told.
#[derive(Debug)]
pub struct Enrolment {
    /// Coordinators, tried in this order; all are kept.
    pub coordinators: Vec<Url>,
    /// The token.
    pub token: Secret<String>,
    /// Fingerprint of the CA certificate.
    pub ca_sha256: Sha256,
    /// Fingerprints of root keys; any one of them must have signed the first trust policy.
    pub root_pins: Vec<Sha256>,
    /// What this host calls itself; a name in the token wins.
    pub host: String,
    /// The way out, where there is one.
    pub proxy: Option<Proxy>,
}

/// Why a host could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No coordinator answered.
    #[error("no coordinator could be reached: {0}")]
    Unreachable(String),
    /// The server is not the one that was pinned.
    #[error("{coordinator}: {problem}; the token was not sent")]
    WrongCa {
        /// Which one.
        coordinator: Url,
        /// What was expected, and presented.
        problem: String,
    },
    /// The coordinator does not want this token.
    #[error("the coordinator refused: {0}; `sealift token create` makes a new token")]
    Refused(String),
    /// The coordinator goes by another root key. The token was not used up.
    #[error(
        "{0}: compare --root-key-sha256 with what `sealift token create` printed; the token is still good"
    )]
    OtherRoot(String),
    /// The trust policy is not signed by the pinned root.
    #[error(
        "the coordinator's trust policy does not fit the pinned root key: compare --root-key-sha256 with what `sealift token create` printed"
    )]
    WrongRoot(#[source] TrustKeeperError),
    /// Identity, state directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<StateError> for EnrollError {
    fn from(error: StateError) -> Self {
        Self::Identity(error.into())
    }
}

/// Keys and id of an enrolment that has not succeeded yet.
#[derive(Serialize, Deserialize)]
struct Pending {
    agent_id: AgentId,
    signing_key: Encoded,
    tls_key: Encoded,
}

/// Enrols this host and writes its identity.
///
/// # Errors
/// [`EnrollError`]: nothing is lost, the same command may be run again.
pub async fn enroll(
    state: &StateDir,
    enrolment: &Enrolment,
    clock: &Clock,
    random: &Random,
) -> Result<Identity, EnrollError> {
    match Identity::load(state) {
        Err(IdentityError::NotEnrolled(_)) => {}
        Err(other) => return Err(other.into()),
        Ok(identity) => {
            return Err(IdentityError::AlreadyEnrolled {
                name: identity.name,
                id: identity.agent,
                file: state.path(super::FILE).display().to_string(),
            }
            .into());
        }
    }
    state.check_space()?;
    let mut pending = Keys::load_or_make(state, random)?;
    let mut answer = ask(enrolment, pending.request(enrolment, clock)?, clock.now(), random).await?;
    if !answer.replaces_agent_id.is_empty() {
        // The token is for the new host of an agent: it goes on under that one's id. Nothing has changed there so far.
        let replaced = AgentId::try_from(answer.replaces_agent_id.as_slice());
        let replaced = replaced.map_err(|error| IdentityError::Answer(error.to_string()))?;
        pending = pending.under(state, replaced)?;
        answer = ask(enrolment, pending.request(enrolment, clock)?, clock.now(), random).await?;
    }
    let Keys { agent, signing_key, tls_key } = pending;
    let identity = accept(enrolment, &answer, agent, signing_key, tls_key, clock)?;
    let mut trust = TrustKeeper::start_over(state.clone(), &identity).map_err(EnrollError::WrongRoot)?;
    trust.accept(&answer.trust_chain).map_err(EnrollError::WrongRoot)?;
    identity.save(state)?;
    state.remove(PENDING)?;
    Ok(identity)
}

/// Id and keys that the host asks with.
struct Keys {
    agent: AgentId,
    signing_key: SigningKey,
    tls_key: TlsKey,
}

impl Keys {
    /// Those of an earlier try, or fresh ones, which are on disk when this returns.
    fn load_or_make(state: &StateDir, random: &Random) -> Result<Self, EnrollError> {
        if let Some(pending) = state.read_json::<Pending>(PENDING, PENDING_ADVICE)? {
            let damaged =
                |problem| StateError::Damaged { path: state.path(PENDING), problem, advice: PENDING_ADVICE };
            let signing_key = decode_seed(&pending.signing_key).map_err(damaged)?;
            let tls_key = decode_tls_key(&pending.tls_key).map_err(damaged)?;
            return Ok(Self { agent: pending.agent_id, signing_key, tls_key });
        }
        let keys = Self {
            agent: AgentId::generate(random),
            signing_key: SigningKey::generate(random),
            tls_key: TlsKey::generate()?,
        };
        keys.save(state)?;
        Ok(keys)
    }

    /// The same keys under another id, on disk when this returns.
    fn under(self, state: &StateDir, agent: AgentId) -> Result<Self, EnrollError> {
        let keys = Self { agent, ..self };
        keys.save(state)?;
        Ok(keys)
    }

    fn save(&self, state: &StateDir) -> Result<(), StateError> {
        let pending = Pending {
            agent_id: self.agent,
            signing_key: Encoded::new(self.signing_key.seed().expose()),
            tls_key: Encoded::new(&self.tls_key.0),
        };
        state.write_json(PENDING, &pending)
    }

    fn request(&self, enrolment: &Enrolment, clock: &Clock) -> Result<v1::EnrollRequest, IdentityError> {
        let object = AgentKeyObject::first(self.agent, &self.signing_key, clock.now());
        Ok(v1::EnrollRequest {
            token: enrolment.token.expose().clone(),
            host: enrolment.host.clone(),
            csr_der: self.tls_key.request()?,
            signing_key: self.signing_key.verifying_key().to_vec(),
            agent_key_object: object.bytes().to_vec(),
            agent_id: self.agent.to_vec(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            root_key_sha256: enrolment.root_pins.iter().map(|pin| pin.to_vec()).collect(),
        })
    }
}

/// Sends the request to the first coordinator that answers.
async fn ask(
    enrolment: &Enrolment,
    request: v1::EnrollRequest,
    now: UnixMillis,
    random: &Random,
) -> Result<v1::Identity, EnrollError> {
    let config = tls::pinned_client_config(enrolment.ca_sha256).map_err(IdentityError::from)?;
    let mut unreachable = Vec::new();
    for coordinator in &enrolment.coordinators {
        let channel = tls::channel_through(coordinator, config.clone(), enrolment.proxy.clone())
            .map_err(IdentityError::from)?;
        match enroll_in_turn(EnrollmentClient::new(channel), &request, random).await {
            Ok(answer) => return Ok(answer),
            Err(status) if is_unreachable(&status) => {
                let problem = clock::hint(describe(&status), now);
                if problem.contains("pinned") {
                    return Err(EnrollError::WrongCa { coordinator: coordinator.clone(), problem });
                }
                unreachable.push(format!("{coordinator}: {problem}"));
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                return Err(EnrollError::OtherRoot(status.message().to_owned()));
            }
            Err(status) => return Err(EnrollError::Refused(status.message().to_owned())),
        }
    }
    Err(EnrollError::Unreachable(unreachable.join("; ")))
}

/// Asks, and where too many hosts of one site ask at a time, waits for its turn.
async fn enroll_in_turn(
    mut client: EnrollmentClient<Channel>,
    request: &v1::EnrollRequest,
    random: &Random,
) -> Result<v1::Identity, Status> {
    let mut backoff = Backoff::new(FIRST_TURN, LONGEST_TURN, random.clone());
    for _ in 0..MOST_TURNS {
        let mut call = tonic::Request::new(request.clone());
        call.set_timeout(CALL_TIMEOUT);
        match client.enroll(call).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                tracing::warn!(error = status.message(), "many hosts enrol at once: waiting for a turn");
                tokio::time::sleep(backoff.next_wait()).await;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
    Err(Status::resource_exhausted("too many hosts enrol at once: run the same command again later"))
}

fn is_unreachable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// Turns the answer into an identity, believing nothing of it that was pinned.
fn accept(
    enrolment: &Enrolment,
    answer: &v1::Identity,
    agent: AgentId,
    signing_key: SigningKey,
    tls_key: TlsKey,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let bad = |problem: String| EnrollError::from(IdentityError::Answer(problem));
    let repository = RepositoryId::try_from(answer.repository_id.as_slice());
    if !answer.ca_der.iter().any(|ca| fingerprint(&ca.as_slice().into()) == enrolment.ca_sha256) {
        return Err(bad("its CA is not the pinned one".to_owned()));
    }
    let unsigned = Identity {
        agent,
        name: answer.name.clone(),
        scope: answer.scope.clone(),
        repository: repository.map_err(|error| bad(error.to_string()))?,
        coordinators: enrolment.coordinators.clone(),
        root_pins: enrolment.root_pins.clone(),
        signing_key,
        ca: Vec::new(),
        ca_said: UnixMillis::default(),
        chain: Vec::new(),
        tls_key: tls_key.clone(),
        issued: clock.now(),
        not_after: clock.now(),
    };
    Ok(unsigned.with_certificate(answer, tls_key, clock.now())?)
}
