//! Opens one session: connect, Hello, Welcome.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use url::Url;

use sealift_common::clock::UnixMillis;
use sealift_common::protocol::{Agreed, Features, UPGRADE_REQUIRED};
use sealift_common::proxy::Proxy;
use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as Up;
use sealift_proto::v1::coordinator_message::Message as Down;
use sealift_proto::v1::session_client::SessionClient;
use tonic::transport::Channel;

use super::clock;
use super::error::describe;
use super::link::Connection;
use crate::agent::Agent;
use crate::attempt::Attempts;
use crate::identity::Identity;
use crate::source::whole_chain;

/// How many messages may wait to be sent.
const OUTGOING: usize = 64;
/// How long a coordinator may take to say welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// What TLS says of a certificate that has expired.
const EXPIRED: &str = "CertificateExpired";
/// What TLS says of a coordinator whose certificate is not of the CA that this host knows.
const OTHER_CA: [&str; 2] = ["UnknownIssuer", "BadSignature"];

/// A session that was welcomed.
pub struct OpenSession {
    /// For the rest of the agent.
    pub connection: Connection,
    /// What both sides can do: nothing else is said.
    pub features: Features,
    /// What comes down.
    pub incoming: Streaming<v1::CoordinatorMessage>,
    /// How often to say that we are alive.
    pub heartbeat: Duration,
    /// The longest wait before a reconnect.
    pub reconnect_cap: Duration,
    /// When the certificate that opened it expires.
    pub certificate_until: UnixMillis,
}

/// Why there is no session.
pub enum OpenError {
    /// One line, for the log.
    Failed(String),
    /// This build is too old for the coordinator.
    UpgradeRequired {
        /// What the coordinator says.
        said: String,
        /// Good for a renewal of the certificate.
        channel: Channel,
    },
}

impl From<String> for OpenError {
    fn from(line: String) -> Self {
        Self::Failed(line)
    }
}

/// Opens a session with `coordinator`. An expired certificate is replaced first; so is a CA that the coordinators have lost,
/// where root keys vouch for the one that they have instead.
///
/// # Errors
/// [`OpenError`].
pub async fn open(
    agent: &Agent,
    attempts: &Attempts,
    coordinator: &Url,
    number: u64,
) -> Result<OpenSession, OpenError> {
    let error = match open_known(agent, attempts, coordinator, number).await {
        Err(OpenError::Failed(error)) if OTHER_CA.iter().any(|said| error.contains(said)) => error,
        opened => return opened,
    };
    let proxy = agent.proxy().map_err(|error| whole_chain(&error))?;
    let followed = agent.identity.follow_ca(coordinator, proxy.clone()).await;
    let identity = followed.map_err(|why| format!("{error}; {}", whole_chain(&why)))?;
    open_as(&identity, agent, attempts, coordinator, proxy, number).await
}

/// Opens a session with a coordinator of the CA that this host knows.
async fn open_known(
    agent: &Agent,
    attempts: &Attempts,
    coordinator: &Url,
    number: u64,
) -> Result<OpenSession, OpenError> {
    let identity = agent.identity.current();
    let proxy = agent.proxy().map_err(|error| whole_chain(&error))?;
    let recover = || async {
        agent.identity.recover(coordinator, proxy.clone()).await.map_err(|error| error.to_string())
    };
    if identity.not_after <= agent.clock.now() {
        let recovered = recover().await?;
        return open_as(&recovered, agent, attempts, coordinator, proxy, number).await;
    }
    match open_as(&identity, agent, attempts, coordinator, proxy.clone(), number).await {
        // This host's clock is late, and the coordinator's counts.
        Err(OpenError::Failed(error)) if error.contains(EXPIRED) => {
            let recovered = recover().await?;
            open_as(&recovered, agent, attempts, coordinator, proxy, number).await
        }
        opened => opened,
    }
}

async fn open_as(
    identity: &Identity,
    agent: &Agent,
    attempts: &Attempts,
    coordinator: &Url,
    proxy: Option<Proxy>,
    number: u64,
) -> Result<OpenSession, OpenError> {
    let config =
        tls::client_config(&identity.ca, Some(&identity.tls())).map_err(|error| error.to_string())?;
    let channel = tls::channel_through(coordinator, config, proxy).map_err(|error| error.to_string())?;

    let (outgoing, waiting) = mpsc::channel(OUTGOING);
    let said = attempts.states();
    let hello = v1::AgentMessage { message: Some(Up::Hello(hello(agent, said.clone()))) };
    outgoing.try_send(hello).map_err(|_| "cannot queue the first message".to_owned())?;
    let mut client = SessionClient::new(channel.clone());
    let refused = |status: tonic::Status| {
        let too_old =
            status.code() == Code::FailedPrecondition && status.message().starts_with(UPGRADE_REQUIRED);
        match too_old {
            true => {
                OpenError::UpgradeRequired { said: status.message().to_owned(), channel: channel.clone() }
            }
            false => OpenError::Failed(describe(&status)),
        }
    };
    let opening = async {
        let mut incoming = client.open(ReceiverStream::new(waiting)).await.map_err(refused)?.into_inner();
        match incoming.message().await.map_err(refused)?.and_then(|m| m.message) {
            Some(Down::Welcome(welcome)) => Ok((incoming, welcome)),
            Some(_) => Err(OpenError::Failed("the coordinator's first message is not a welcome".to_owned())),
            None => Err(OpenError::Failed("the coordinator closed the session".to_owned())),
        }
    };
    let (incoming, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, opening)
        .await
        .map_err(|_| format!("no welcome within {} s", WELCOME_TIMEOUT.as_secs()))??;
    let agreed = Agreed::from(&welcome);
    let speaks = &agent.speaks;
    if agreed.version < speaks.least || agreed.version > speaks.newest {
        let (version, (least, newest)) = (agreed.version, (speaks.least, speaks.newest));
        return Err(format!(
            "the coordinator wants protocol {version}, this agent speaks {least} to {newest}"
        )
        .into());
    }
    warn_of_clock(agent, &welcome);
    attempts.welcomed(&said, &welcome.lost);
    let within = |ms: u32, least: u64, most: u64| Duration::from_millis(u64::from(ms).clamp(least, most));
    Ok(OpenSession {
        connection: Connection { number, channel, outgoing },
        features: agreed.features.both(speaks.features),
        incoming,
        heartbeat: within(welcome.heartbeat_ms, 1_000, 60_000),
        reconnect_cap: within(welcome.reconnect_cap_ms, 1_000, 600_000),
        certificate_until: identity.not_after,
    })
}

fn hello(agent: &Agent, attempts: Vec<v1::AttemptState>) -> v1::Hello {
    v1::Hello {
        instance_id: agent.instance.to_vec(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host_name(),
        timezone: jiff::tz::TimeZone::system().iana_name().unwrap_or_default().to_owned(),
        sources: Some(agent.source_list()),
        attempts,
        clock_ms: agent.clock.now().0,
        heads: agent.series_heads(),
        os: operating_system(),
        ..agent.speaks.hello()
    }
}

/// What the host calls itself.
pub fn host_name() -> String {
    hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The distribution's own name for itself, else the kernel's.
fn operating_system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

fn warn_of_clock(agent: &Agent, welcome: &v1::Welcome) {
    if let Some(skew) = clock::skew(agent.clock.now(), UnixMillis(welcome.clock_ms)) {
        tracing::warn!("{skew}");
    }
}
