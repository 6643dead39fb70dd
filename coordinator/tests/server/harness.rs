//! Starts coordinators, and calls them as hosts and admins do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::crypto::trust::RuleRecipient;
use sealift_common::crypto::{AgentKeyObject, Rule, SigningKey, TrustObject, TrustPolicy, key_file};
use sealift_common::id::{AgentId, InstanceId, Random, Sha256};
use sealift_common::lifecycle::Lifecycle;
use sealift_common::protocol::Spoken;
use sealift_common::telemetry::{self, LogTarget};
use sealift_common::tls::{self, Identity};
use sealift_coordinator::app::{Coordinator, Listeners};
use sealift_coordinator::config::dev::{DevDir, DevListen, loopback};
use sealift_coordinator::objects::embedded;
use sealift_coordinator::recovery::Standing;
use sealift_coordinator::sessions::SessionSettings;
use sealift_coordinator::store::{Store, generation};
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as FromAgent;
use sealift_proto::v1::coordinator_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use url::Url;

use crate::support::database::Database;

/// Nothing here takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What coordinators say: shown with a test that fails.
fn log() {
    let settings = telemetry::Settings {
        program: "test",
        level: "info".to_owned(),
        log: LogTarget::Stderr,
        otlp_endpoint: None,
    };
    // The second coordinator of a test says it to the same log.
    drop(telemetry::init(&settings));
}

/// A coordinator that serves.
pub struct Server {
    pub dir: PathBuf,
    pub url: Url,
    pub http: String,
    pub ca: Vec<rustls_pki_types::CertificateDer<'static>>,
    pub clock: Clock,
    pub store: Store,
    pub root_sha256: Sha256,
    pub repository: sealift_common::id::RepositoryId,
    pub standing: Standing,
    lifecycle: Lifecycle,
}

impl Server {
    /// Starts one in `dir`, as `dev` does; time moves only by `advance`.
    pub async fn start(dir: &Path) -> Self {
        Self::start_on(&Database::Sqlite, dir).await
    }

    /// As [`Server::start`], on this database.
    pub async fn start_on(database: &Database, dir: &Path) -> Self {
        Self::start_at(database, dir, Clock::manual(Clock::system().now())).await
    }

    /// As [`Server::start_on`], at another time.
    pub async fn start_at(database: &Database, dir: &Path, clock: Clock) -> Self {
        tls::install_provider();
        log();
        let (random, lifecycle) = (Random::from_os(), Lifecycle::default());
        let dev = DevDir::open(dir).unwrap();
        let root_sha256 = dev.root(&random).unwrap();
        let listen = DevListen { grpc: loopback(0), http: loopback(0), s3: loopback(0) };
        let listeners = Listeners::bind(listen.grpc, listen.http).await.unwrap();
        let storage = embedded::start(dev.path(), listen.s3, &random, &lifecycle).await.unwrap();
        let mut settings = dev.settings(listen, root_sha256, storage, "sealift.test".parse().unwrap());
        settings.database = database.url(dev.path());
        settings.identity.coordinators = vec![listeners.url().unwrap()];
        settings.sessions =
            SessionSettings { heartbeat: Duration::from_secs(5), reconnect_cap: Duration::from_secs(1) };
        let coordinator = Coordinator::open(settings, clock.clone(), random).await.unwrap();
        coordinator.write_admin(&"admin".parse().unwrap(), dev.path(), false).await.unwrap();
        let (url, http) = (listeners.url().unwrap(), format!("https://{}", listeners.addresses().http));
        let (store, repository) = (coordinator.core.store.clone(), coordinator.core.repository);
        let standing = coordinator.core.standing.clone();
        let ca = vec![coordinator.ca().certificate().clone()];
        coordinator.serve(listeners, &lifecycle).unwrap();
        let dir = dev.path().to_owned();
        Self { dir, url, http, ca, clock, store, root_sha256, repository, standing, lifecycle }
    }

    /// Makes it believe that its database was set back.
    pub async fn set_recovering(&self) {
        // Not while it compares for the first time.
        self.standing.checked(PATIENCE).await;
        let now = self.clock.now();
        let row = self.store.run_tx("a test", move |tx, _| {
            Box::pin(async move {
                generation::set_recovering(tx, "a test", now).await?;
                generation::get(tx).await
            })
        });
        self.standing.take(&row.await.unwrap());
    }

    /// What `recover --from-bucket` asks a coordinator that runs.
    pub async fn recover(&self) -> v1::RecoverDatabaseReply {
        let mut admin = v1::recovery_admin_client::RecoveryAdminClient::new(self.admin());
        admin.recover_database(v1::RecoverDatabaseRequest {}).await.unwrap().into_inner()
    }

    /// Stops it and waits until nothing of it is left.
    pub async fn stop(self) {
        self.lifecycle.soft.cancel();
        tokio::time::timeout(PATIENCE, self.lifecycle.finished()).await.unwrap();
        self.store.close().await;
    }

    /// A channel with this identity, or none.
    pub fn channel(&self, identity: Option<&Identity>) -> Channel {
        tls::channel(&self.url, tls::client_config(&self.ca, identity).unwrap()).unwrap()
    }

    /// A channel from another address of this machine, as enrolling hosts open it: callers without a certificate are
    /// limited by address.
    pub fn enrolling_channel(&self, from: std::net::Ipv4Addr) -> Channel {
        let config = tls::pinned_client_config(tls::fingerprint(&self.ca[0])).unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let to: std::net::SocketAddr = format!("127.0.0.1:{}", self.url.port().unwrap()).parse().unwrap();
        let connect = tower::service_fn(move |_: tonic::transport::Uri| {
            let connector = connector.clone();
            async move {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind((from, 0).into())?;
                let stream = socket.connect(to).await?;
                let name = rustls_pki_types::ServerName::from(to.ip());
                connector.connect(name, stream).await.map(hyper_util::rt::TokioIo::new)
            }
        });
        tonic::transport::Endpoint::from_static("http://127.0.0.1").connect_with_connector_lazy(connect)
    }

    /// A channel as the admin that `dev` makes.
    pub fn admin(&self) -> Channel {
        let identity =
            Identity::from_files(&self.dir.join("admin.pem"), &self.dir.join("admin.key")).unwrap();
        self.channel(Some(&identity))
    }

    /// Makes a token.
    pub async fn token(&self, request: v1::CreateTokenRequest) -> v1::CreateTokenReply {
        let mut tokens = v1::token_admin_client::TokenAdminClient::new(self.admin());
        tokens.create_token(request).await.unwrap().into_inner()
    }

    /// Makes a token with all that is usual.
    pub async fn usual_token(&self) -> String {
        self.token(v1::CreateTokenRequest { uses: 1, ..Default::default() }).await.token
    }

    /// Enrols a host.
    pub async fn enrolled(&self, name: &str) -> Host {
        let mut host = Host::new(name);
        host.enrol(self, &self.usual_token().await).await.unwrap();
        host
    }

    /// Signs a trust policy with the root key of `dev` and sets it.
    pub async fn set_trust(&self) -> Result<v1::SetTrustReply, Status> {
        let root = key_file::load_root_key(&self.dir.join("root.key"), || unreachable!()).unwrap();
        self.set_trust_signed_by(&root).await
    }

    /// Signs the next trust policy with `key` and sets it.
    pub async fn set_trust_signed_by(&self, key: &SigningKey) -> Result<v1::SetTrustReply, Status> {
        let mut trust = v1::trust_admin_client::TrustAdminClient::new(self.admin());
        let chain = trust.get_trust(v1::GetTrustRequest {}).await.unwrap().into_inner().chain;
        let (_, recipient) = key_file::generate_identity(self.clock.now());
        let policy = TrustPolicy {
            repository: self.repository,
            version: chain.len() as u64 + 1,
            created: self.clock.now(),
            previous: chain.last().map(|object| Sha256::of(object)),
            rules: vec![Rule {
                scope: String::new(),
                recipients: vec![RuleRecipient { recipient, label: String::new() }],
            }],
            agents: Vec::new(),
            next_roots: Vec::new(),
            next_threshold: 0,
        };
        let object = TrustObject::sign(policy, &[key]).unwrap().bytes().to_vec();
        trust.set_trust(v1::SetTrustRequest { object }).await.map(tonic::Response::into_inner)
    }

    /// What the audit says about an action.
    pub async fn audit(&self, action: &str) -> Vec<v1::AuditEvent> {
        let mut fleet = v1::fleet_admin_client::FleetAdminClient::new(self.admin());
        let request = v1::ListAuditRequest { action: action.to_owned(), ..Default::default() };
        fleet.list_audit(request).await.unwrap().into_inner().events
    }

    /// The outcomes of an action in the audit, in order.
    pub async fn outcomes(&self, action: &str) -> Vec<String> {
        self.audit(action).await.into_iter().map(|event| event.outcome).collect()
    }

    /// One run as admins see it.
    pub async fn run(&self, id: &str) -> v1::Run {
        let mut runs = v1::run_admin_client::RunAdminClient::new(self.admin());
        runs.get_run(v1::GetRunRequest { run: id.to_owned() }).await.unwrap().into_inner()
    }

    /// Follows a run until `is` holds.
    pub async fn run_until(&self, id: &str, is: impl Fn(&v1::Run) -> bool) -> v1::Run {
        let mut runs = v1::run_admin_client::RunAdminClient::new(self.admin());
        let mut stream = runs.watch_run(v1::GetRunRequest { run: id.to_owned() }).await.unwrap().into_inner();
        let wait = async {
            loop {
                let run =
                    stream.message().await.unwrap().unwrap_or_else(|| panic!("the run ended otherwise"));
                if is(&run) {
                    return run;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the run did not come so far"))
    }
}

/// A host with its keys.
pub struct Host {
    pub name: String,
    pub id: AgentId,
    pub signing: SigningKey,
    pub key: rcgen::KeyPair,
    pub identity: Option<Identity>,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let random = Random::from_os();
        Self {
            name: name.to_owned(),
            id: AgentId::generate(&random),
            signing: SigningKey::generate(&random),
            key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            identity: None,
        }
    }

    pub fn csr(&self) -> Vec<u8> {
        rcgen::CertificateParams::default().serialize_request(&self.key).unwrap().der().to_vec()
    }

    pub fn enrolment(&self, token: &str) -> v1::EnrollRequest {
        let created = Clock::manual(UnixMillis(1)).now();
        v1::EnrollRequest {
            token: token.to_owned(),
            host: self.name.clone(),
            csr_der: self.csr(),
            signing_key: self.signing.verifying_key().to_vec(),
            agent_key_object: AgentKeyObject::first(self.id, &self.signing, created).bytes().to_vec(),
            agent_id: self.id.to_vec(),
            agent_version: "0.1.0".to_owned(),
            root_key_sha256: Vec::new(),
        }
    }

    /// Takes the identity of a reply for its own.
    pub fn adopt(&mut self, reply: &v1::Identity) {
        let chain = reply.certificate_chain_der.iter().map(|der| der.clone().into()).collect();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        self.identity = Some(Identity { chain, key });
    }

    /// Enrols with the CA pinned, as hosts do.
    pub async fn enrol(&mut self, server: &Server, token: &str) -> Result<v1::Identity, Status> {
        let config = tls::pinned_client_config(tls::fingerprint(&server.ca[0])).unwrap();
        let channel = tls::channel(&server.url, config).unwrap();
        self.enrol_over(channel, token).await
    }

    /// As [`Host::enrol`], over a channel of one's own.
    pub async fn enrol_over(&mut self, channel: Channel, token: &str) -> Result<v1::Identity, Status> {
        let mut client = v1::enrollment_client::EnrollmentClient::new(channel);
        let reply = client.enroll(self.enrolment(token)).await?.into_inner();
        self.adopt(&reply);
        Ok(reply)
    }

    pub fn channel(&self, server: &Server) -> Channel {
        server.channel(Some(self.identity.as_ref().unwrap()))
    }

    /// Opens a session with these sources and attempts.
    pub async fn connect_with(
        &self,
        server: &Server,
        sources: &[&str],
        attempts: Vec<v1::AttemptState>,
    ) -> Result<HostSession, Status> {
        self.connect_saying(server, sources, v1::Hello { attempts, ..Default::default() }).await
    }

    /// Opens a session and says what its clock says.
    pub async fn connect_at(&self, server: &Server, clock: UnixMillis) -> HostSession {
        self.connect_saying(server, &[], v1::Hello { clock_ms: clock.0, ..Default::default() }).await.unwrap()
    }

    /// Opens a session with these sources, and what else `hello` says.
    pub async fn connect_saying(
        &self,
        server: &Server,
        sources: &[&str],
        hello: v1::Hello,
    ) -> Result<HostSession, Status> {
        let (out, receiver) = mpsc::channel(16);
        let source = |name: &&str| v1::SourceInfo {
            name: (*name).to_owned(),
            kind: "directory".to_owned(),
            detail: "/srv".to_owned(),
            ..Default::default()
        };
        // A build as new as the coordinator's, unless another is asked for.
        let said = hello.protocol_max != 0;
        let speaks = if said { Spoken::from(&hello) } else { Spoken::of_this_build() }.hello();
        let hello = v1::Hello {
            protocol_min: speaks.protocol_min,
            protocol_min_minor: speaks.protocol_min_minor,
            protocol_max: speaks.protocol_max,
            protocol_max_minor: speaks.protocol_max_minor,
            features: speaks.features,
            instance_id: InstanceId::generate(&Random::from_os()).to_vec(),
            agent_version: "0.1.0".to_owned(),
            sources: Some(v1::SourceList { sources: sources.iter().map(source).collect() }),
            ..hello
        };
        let session = HostSession { out, incoming: None, welcome: v1::Welcome::default() };
        session.tell(FromAgent::Hello(hello)).await;
        let mut client = v1::session_client::SessionClient::new(self.channel(server));
        let mut incoming = client.open(ReceiverStream::new(receiver)).await?.into_inner();
        match incoming.message().await?.and_then(|m| m.message) {
            Some(ToAgent::Welcome(welcome)) => {
                let every = Duration::from_millis(welcome.heartbeat_ms.into());
                tokio::spawn(beat(session.out.downgrade(), every));
                Ok(HostSession { incoming: Some(incoming), welcome, ..session })
            }
            other => panic!("expected Welcome, got {other:?}"),
        }
    }

    pub async fn connect(&self, server: &Server, sources: &[&str]) -> HostSession {
        self.connect_with(server, sources, Vec::new()).await.unwrap()
    }

    /// Opens a session, says what there is, and leaves. The coordinator knows that it has left: until it does, it may offer
    /// a run to a host that is gone.
    pub async fn visit(&self, server: &Server, sources: &[&str]) {
        drop(self.connect(server, sources).await);
        let mut agents = v1::agent_admin_client::AgentAdminClient::new(server.admin());
        let gone = async {
            let request = v1::GetAgentRequest { agent: self.id.to_string() };
            while agents.get_agent(request.clone()).await.unwrap().get_ref().connected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .unwrap_or_else(|_| panic!("{} is still connected", self.name));
    }
}

/// Says again and again that a host is there, as agents do, for as long as its session is held: the coordinator ends a session
/// of which it hears nothing, by the machine's clock, and a busy machine takes its time between two steps of a test.
async fn beat(out: mpsc::WeakSender<v1::AgentMessage>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(out) = out.upgrade() else { return };
        let message = FromAgent::Heartbeat(v1::Heartbeat::default());
        if out.send(v1::AgentMessage { message: Some(message) }).await.is_err() {
            return;
        }
    }
}

/// An open session, as the host sees it.
pub struct HostSession {
    out: mpsc::Sender<v1::AgentMessage>,
    incoming: Option<Streaming<v1::CoordinatorMessage>>,
    pub welcome: v1::Welcome,
}

impl HostSession {
    pub async fn tell(&self, message: FromAgent) {
        self.out.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// What the coordinator says next; the status where it ends the session.
    pub async fn next(&mut self) -> Result<ToAgent, Status> {
        let incoming = self.incoming.as_mut().unwrap();
        let message = tokio::time::timeout(PATIENCE, incoming.message()).await.unwrap()?;
        message.and_then(|m| m.message).ok_or_else(|| Status::new(Code::Ok, "the session ended"))
    }

    /// The offer that comes next.
    pub async fn offer(&mut self) -> v1::Offer {
        match self.next().await.unwrap() {
            ToAgent::Offer(offer) => offer,
            other => panic!("expected an offer, got {other:?}"),
        }
    }

    pub async fn accept(&self, offer: &v1::Offer) {
        let reply = v1::OfferReply { attempt: offer.attempt.clone(), accepted: true, ..Default::default() };
        self.tell(FromAgent::OfferReply(reply)).await;
    }
}
