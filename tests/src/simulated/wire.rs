//! Connections of simulated hosts. Each host comes from a loopback address of its own choice: one address has some 28,000
//! ports for outgoing connections, and limits of the coordinator count by address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{AgentKeyObject, SigningKey};
use sealift_common::id::{AgentId, Random, RepositoryId};
use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::enrollment_client::EnrollmentClient;
use tokio::net::TcpSocket;
use tonic::transport::{Channel, Endpoint, Uri};
use url::Url;

/// Hosts are spread over this many addresses, 127.0.1.0 and following.
const ADDRESSES: usize = 1_000;
/// How long a connection may take to be made, TLS included: the agent's own limit.
const CONNECT_TIMEOUT: Duration = tls::CONNECT_TIMEOUT;

/// The address that the host of this number connects from.
pub fn address(number: usize) -> IpAddr {
    let offset = u16::try_from(number % ADDRESSES).unwrap_or_default() + 256;
    let [high, low] = offset.to_be_bytes();
    Ipv4Addr::new(127, 0, high, low).into()
}

/// Connects to `coordinator` from the address `from`.
pub async fn connect(coordinator: &Url, config: Arc<ClientConfig>, from: IpAddr) -> Result<Channel, String> {
    let host = coordinator.host_str().ok_or("no host")?.to_owned();
    let port = coordinator.port_or_known_default().ok_or("no port")?;
    let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let authority = format!("{host}:{port}");
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, name, authority) = (connector.clone(), name.clone(), authority.clone());
        async move {
            let mut found = tokio::net::lookup_host(authority.as_str()).await?;
            let to = found.next().ok_or_else(|| std::io::Error::other("no address"))?;
            let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if to.ip().is_loopback() && to.is_ipv4() {
                socket.bind(SocketAddr::new(from, 0))?;
            }
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    // http, because the TLS is ours; the same keepalive as the agent's.
    let endpoint =
        Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|error| error.to_string())?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(tls::KEEPALIVE)
        .keep_alive_timeout(tls::CONNECT_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connect)
        .await
        .map_err(|error| chain(&error))
}

/// An error with its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a host has once it is enrolled.
pub struct Enrolled {
    /// Its id, which it chose.
    pub id: AgentId,
    /// What it is called.
    pub name: String,
    /// Which rule of the trust policy it falls under.
    pub scope: String,
    /// Whose installation.
    pub repository: RepositoryId,
    /// What it signs manifests with.
    pub signing: SigningKey,
    /// How it connects.
    pub tls: Arc<ClientConfig>,
}

/// Exchanges a token for an identity, as `sealift-agent enroll` does.
pub async fn enrol(channel: Channel, token: &str, name: &str, random: &Random) -> Result<Enrolled, String> {
    let (id, signing) = (AgentId::generate(random), SigningKey::generate(random));
    let key =
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let csr =
        rcgen::CertificateParams::default().serialize_request(&key).map_err(|error| error.to_string())?;
    let request = v1::EnrollRequest {
        token: token.to_owned(),
        host: name.to_owned(),
        csr_der: csr.der().to_vec(),
        signing_key: signing.verifying_key().to_vec(),
        agent_key_object: AgentKeyObject::first(id, &signing, UnixMillis(1)).bytes().to_vec(),
        agent_id: id.to_vec(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..v1::EnrollRequest::default()
    };
    let answer =
        EnrollmentClient::new(channel).enroll(request).await.map_err(|status| chain(&status))?.into_inner();
    let der = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let identity = tls::Identity { chain: der(answer.certificate_chain_der), key };
    let config = tls::client_config(&der(answer.ca_der), Some(&identity)).map_err(|error| chain(&error))?;
    Ok(Enrolled {
        id,
        name: answer.name,
        scope: answer.scope,
        repository: RepositoryId::try_from(answer.repository_id.as_slice())
            .map_err(|error| error.to_string())?,
        signing,
        tls: without_resumption(&config),
    })
}

/// Every session of a real agent is a whole handshake: each makes its own configuration.
fn without_resumption(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}
