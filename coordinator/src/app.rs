//! Puts the parts together, starts them and stops them.
//!
//! Stopping: first softly (no new connections, agents are asked to come back, what is under way is finished), then hard.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use sealift_common::clock::Clock;
use sealift_common::format::names::ObjectName;
use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use sealift_common::name::Name;
use sealift_common::tls::{self, TlsError};
use sealift_proto::v1;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use url::Url;

use crate::api::grpc::agents::AgentApi;
use crate::api::grpc::backup::BackupApi;
use crate::api::grpc::backup_admin::BackupAdminApi;
use crate::api::grpc::enrollment::EnrollmentApi;
use crate::api::grpc::fleet::FleetApi;
use crate::api::grpc::hosts::HostApi;
use crate::api::grpc::policies::PolicyApi;
use crate::api::grpc::recovery::RecoveryApi;
use crate::api::grpc::retention::RetentionApi;
use crate::api::grpc::runs::RunApi;
use crate::api::grpc::series::SeriesApi;
use crate::api::grpc::session::SessionApi;
use crate::api::grpc::storage::StorageApi;
use crate::api::grpc::tokens::TokenApi;
use crate::api::grpc::trust::TrustApi;
use crate::api::grpc::{Gate, MAX_REQUEST, span};
use crate::api::limits::Limits;
use crate::api::listener::{self, Clients, ServerTls};
use crate::backups::{Backups, resolve};
use crate::config::Settings;
use crate::core::Core;
use crate::identity::Identities;
use crate::identity::admins::{self, AdminFilesError};
use crate::identity::ca::{Ca, CaError, SERVER_LIFE};
use crate::identity::ca_reset::CA_FACT;
use crate::objects::http::InvalidTls;
use crate::objects::{ObjectError, ObjectErrorKind, ObjectStore, Put, monitor};
use crate::policy::Policies;
use crate::recovery::{Generations, OwnBackups, Reconciler, RecoveryService};
use crate::retention::{Retention, reconcile};
use crate::runs::{Runs, dispatch, progress, storage};
use crate::runtime::{Every, Runtime};
use crate::scheduler::{self, Scheduler};
use crate::series::SeriesService;
use crate::sessions::checks::Checks;
use crate::sessions::presence::{self, Presence};
use crate::sessions::relay;
use crate::sessions::{Closed, SessionService, Sessions};
use crate::store::{Dialect, Store, StoreError, dialect, installation};
use crate::uploads::Uploads;
use crate::verification::Verification;

/// Largest trust policy that is read.
const MAX_TRUST: usize = 20 * 1024 * 1024;
/// Largest enrolment that is read.
const MAX_ENROLMENT: usize = 64 * 1024;
/// How long agents have to leave by themselves when the coordinator stops.
const LEAVE: Duration = Duration::from_secs(2);
/// How long to wait before listening again, where the connection was lost.
const LISTEN: Duration = Duration::from_secs(1);
/// How often idle state is tidied up, and what failed before is tried again.
const TIDY: Duration = Duration::from_secs(30);

/// Why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The database.
    #[error("cannot use the database")]
    Store(#[from] StoreError),
    /// The CA.
    #[error("cannot use the CA")]
    Ca(#[from] CaError),
    /// Coordinators on one database must have one CA.
    #[error(
        "the coordinators of this database have another CA than the one in {}: copy ca.pem and ca.key there from one of \
         them (ca.key is as secret as a password)",
        dir.display()
    )]
    OtherCa {
        /// This coordinator's CA directory.
        dir: PathBuf,
    },
    /// A new one would shut out every host.
    #[error(
        "the CA of this installation is not in {}: put it back from your backup, or replace it with `sealift-coordinator \
         ca reset` (docs/recovery.md)",
        dir.display()
    )]
    LostCa {
        /// The CA directory.
        dir: PathBuf,
    },
    /// The object store's certificates.
    #[error("cannot reach the object store")]
    Storage(#[from] InvalidTls),
    /// The coordinator's own TLS.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: is another program using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The files of an admin.
    #[error("cannot make an admin's context")]
    Admin(#[from] AdminFilesError),
}

/// A coordinator that is ready to serve.
#[derive(Debug)]
pub struct Coordinator {
    /// Database, time, randomness.
    pub core: Core,
    /// CA, tokens, agents, trust.
    pub identities: Identities,
    /// The bucket.
    pub objects: ObjectStore,
    /// Runs and attempts.
    pub runs: Runs,
    /// Policies and pauses.
    pub policies: Policies,
    /// Runs out of policies.
    pub scheduler: Scheduler,
    /// Backups and restores.
    pub backups: Backups,
    /// What stays, and what may go.
    pub retention: Retention,
    /// Who is connected.
    pub sessions: SessionService,
    checks: Arc<Checks>,
    ca: Arc<Ca>,
    settings: Settings,
}

/// Where a coordinator really listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTPS.
    pub http: SocketAddr,
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Listens before anything else is done, so that a `dev` on port 0 knows its address when it makes its settings.
#[derive(Debug)]
pub struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    addresses: Addresses,
}

impl Listeners {
    /// Binds both ports.
    ///
    /// # Errors
    /// [`AppError::Listen`].
    pub async fn bind(grpc: SocketAddr, http: SocketAddr) -> Result<Self, AppError> {
        let ((grpc, grpc_at), (http, http_at)) = (bind(grpc).await?, bind(http).await?);
        Ok(Self { grpc, http, addresses: Addresses { grpc: grpc_at, http: http_at } })
    }

    /// Where they really are.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The gRPC port as a URL for agents and admins on this machine.
    ///
    /// # Errors
    /// Never for an address that was bound.
    pub fn url(&self) -> Result<Url, url::ParseError> {
        Url::parse(&format!("https://{}", self.addresses.grpc))
    }
}

impl Coordinator {
    /// Opens database, CA and object store. Nothing is served yet.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn open(settings: Settings, clock: Clock, random: Random) -> Result<Self, AppError> {
        let store = Store::open(&settings.database).await?;
        let core = Core::load(store, clock.clone(), random.clone()).await?;
        let ca = Arc::new(open_ca(&core, &settings).await?);
        let objects = ObjectStore::new(settings.storage.clone(), clock)?;
        let identities =
            Identities::new(core.clone(), ca.clone(), objects.clone(), settings.identity.clone());
        let registry = Arc::new(Sessions::default());
        let runs = Runs::new(core.clone(), registry.clone(), settings.sessions.lease())
            .at_most(settings.scheduler.concurrent);
        let policies = Policies::new(core.clone());
        let scheduler = Scheduler::new(core.clone(), runs.clone());
        let generations = Generations::new(core.clone(), objects.clone());
        let address = settings.identity.coordinators.first().map(ToString::to_string).unwrap_or_default();
        let sessions = SessionService::new(
            core.clone(),
            runs.clone(),
            registry,
            settings.sessions,
            generations,
            &address,
        );
        let backups = Backups::new(core.clone(), objects.clone(), runs.clone());
        let retention = Retention::new(core.clone(), objects.clone(), backups.clone());
        Ok(Self {
            core,
            identities,
            objects,
            runs,
            policies,
            scheduler,
            backups,
            retention,
            sessions,
            checks: Arc::default(),
            ca,
            settings,
        })
    }

    /// The CA.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// How old copies of the database are known.
    pub fn generations(&self) -> Generations {
        Generations::new(self.core.clone(), self.objects.clone())
    }

    /// The coordinator's own backups.
    pub fn own_backups(&self) -> OwnBackups {
        let ca_dir = self.settings.ca_dir.clone();
        OwnBackups::new(self.core.clone(), self.objects.clone(), self.identities.clone(), ca_dir)
    }

    fn recovery(&self) -> RecoveryService {
        let (core, objects) = (self.core.clone(), self.objects.clone());
        let roots = self.settings.identity.roots.clone();
        let reconciler = Reconciler::new(core.clone(), objects, self.backups.clone(), roots);
        let sessions = self.sessions.registry().clone();
        RecoveryService::new(core, self.generations(), self.own_backups(), reconciler, sessions)
    }

    /// Writes `admin.pem` and `admin.key` for an admin into `dir`, if the ones there are not good for another month.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn write_admin(&self, name: &Name, dir: &Path, replace: bool) -> Result<(), AppError> {
        Ok(admins::write(&self.core, &self.ca, name, dir, replace).await?)
    }

    /// Serves on `listeners` until `lifecycle` stops it; all its tasks are tracked there.
    ///
    /// # Errors
    /// [`AppError`] where TLS cannot be set up.
    pub fn serve(self, listeners: Listeners, lifecycle: &Lifecycle) -> Result<(), AppError> {
        // Nothing is dispatched or deleted before the database was compared with the bucket.
        self.core.standing.forget();
        let own = self.ca.issue_server(&self.settings.dns_names, &self.settings.addresses)?;
        let grpc_tls = ServerTls::new(&self.ca, &own, Clients::Certified)?;
        let http_tls = ServerTls::new(&self.ca, &own, Clients::Any)?;
        let domain = self.settings.trust_domain.clone();
        let (soft, tracker) = (&lifecycle.soft, &lifecycle.tracker);

        let (grpc_out, grpc_in) = listener::queue();
        tracker.spawn(listener::accept(
            listeners.grpc,
            grpc_tls.clone(),
            domain.clone(),
            soft.clone(),
            grpc_out,
        ));
        let (http_out, http_in) = listener::queue();
        tracker.spawn(listener::accept(listeners.http, http_tls.clone(), domain, soft.clone(), http_out));
        tracker.spawn(crate::api::http::serve(self.core.clone(), http_in));

        let limits = Limits::default();
        let router = self.router(limits.clone(), soft.clone());
        let drained = drain(self.sessions.registry().clone(), soft.clone());
        tracker.spawn(async move {
            if let Err(error) =
                router.serve_with_incoming_shutdown(ReceiverStream::new(grpc_in), drained).await
            {
                tracing::error!(error = &error as &dyn std::error::Error, "the gRPC server ended");
            }
        });

        tracker.spawn(self.own_backups().keep(soft.clone()));
        tracker.spawn(self.generations().keep(self.sessions.registry().clone(), soft.clone()));
        tracker.spawn(monitor::run(self.objects.clone(), self.core.random.clone(), soft.clone()));
        tracker.spawn(leave(self.sessions.presence().clone(), soft.clone()));
        self.reconcile(&Runtime::start(&self.core, self.settings.leader, lifecycle), limits);
        tracker.spawn(renew_own(self.ca, self.settings, vec![grpc_tls, http_tls], soft.clone()));
        Ok(())
    }

    /// What goes on in the background: here, and on the coordinator that leads.
    fn reconcile(&self, runtime: &Runtime, limits: Limits) {
        // What changes anything waits until the database is known to be in step with the bucket.
        let (core, runs) = (self.core.clone(), self.runs.clone());
        runtime.everywhere(Every::new("dispatch", dispatch::INTERVAL).or_when(runs.waker()), move || {
            let (core, runs) = (core.clone(), runs.clone());
            async move { if core.standing.ready().await { runs.dispatch_once().await.map(drop) } else { Ok(()) } }
        });
        let runs = self.runs.clone();
        runtime.everywhere(Every::new("extend leases", runs.lease_interval()), move || {
            let runs = runs.clone();
            async move { runs.keep_leases().await }
        });
        let runs = self.runs.clone();
        runtime.everywhere(Every::new("forget how far runs were", progress::TIDY), move || {
            let runs = runs.clone();
            async move { runs.tidy_progress().await }
        });
        let (runs, objects) = (self.runs.clone(), self.objects.clone());
        runtime.everywhere(Every::new("follow the storage probe", storage::INTERVAL), move || {
            let (runs, objects) = (runs.clone(), objects.clone());
            async move { runs.look_at_storage(&objects).await }
        });
        runtime.everywhere(Every::new("forget idle callers", TIDY), move || {
            limits.forget_idle();
            std::future::ready(Ok::<_, Infallible>(()))
        });

        let presence = self.sessions.presence().clone();
        runtime.everywhere(Every::new("say that we are alive", presence::INTERVAL), move || {
            let presence = presence.clone();
            async move { presence.round().await }
        });
        let (relay, checks, mail) =
            (self.sessions.relay().clone(), self.checks.clone(), Arc::new(Notify::new()));
        if self.core.store.dialect() == Dialect::Postgres {
            runtime.everywhere(
                Every::new("take messages", relay::INTERVAL).or_when(mail.clone()),
                move || {
                    let (relay, checks) = (relay.clone(), checks.clone());
                    async move { relay.take(&checks).await }
                },
            );
            let (core, runs, stop) = (self.core.clone(), self.runs.clone(), runtime.stop());
            runtime.everywhere(Every::new("listen to hints", LISTEN), move || {
                let (core, runs, mail, stop) = (core.clone(), runs.clone(), mail.clone(), stop.clone());
                async move { stop.run_until_cancelled(listen(&core, &runs, &mail)).await.unwrap_or(Ok(())) }
            });
        }

        let presence = self.sessions.presence().clone();
        runtime.on_leader(Every::new("bury dead coordinators", presence::INTERVAL), move |leader| {
            let presence = presence.clone();
            async move { presence.bury(&leader).await }
        });
        let (core, runs) = (self.core.clone(), self.runs.clone());
        runtime.on_leader(Every::new("end leases", dispatch::INTERVAL), move |leader| {
            let (core, runs) = (core.clone(), runs.clone());
            async move { if core.standing.ready().await { runs.expire_as(&leader).await } else { Ok(()) } }
        });
        self.follow_schedules(runtime);
        let (core, backups) = (self.core.clone(), self.backups.clone());
        runtime.on_leader(Every::new("resolve backups", resolve::INTERVAL), move |_| {
            let (core, backups) = (core.clone(), backups.clone());
            async move { if core.standing.ready().await { backups.resolve_round().await } else { Ok(()) } }
        });
        let (core, retention) = (self.core.clone(), self.retention.clone());
        runtime.on_leader(Every::new("retention", reconcile::INTERVAL), move |leader| {
            let (core, retention) = (core.clone(), retention.led_by(&leader));
            async move { if core.standing.ready().await { retention.reconcile().await } else { Ok(()) } }
        });
        let (core, identities) = (self.core.clone(), self.identities.clone());
        runtime.on_leader(Every::new("put trust policies into the bucket", TIDY), move |_| {
            let (core, identities) = (core.clone(), identities.clone());
            async move { if core.standing.ready().await { identities.store_trust().await } else { Ok(()) } }
        });
        let (core, objects, announced) =
            (self.core.clone(), self.objects.clone(), Arc::new(AtomicBool::new(false)));
        runtime.on_leader(Every::new("say whose the bucket is", TIDY), move |_| {
            let (core, objects, announced) = (core.clone(), objects.clone(), announced.clone());
            async move {
                if core.standing.ready().await && !announced.load(Ordering::SeqCst) {
                    announce(&core, &objects).await?;
                    announced.store(true, Ordering::SeqCst);
                }
                Ok::<_, ObjectError>(())
            }
        });
    }

    /// From policies to runs: one job for the whole installation. A database that has forgotten what it did takes no
    /// instant; once it is in step again, what came due meanwhile is made up for like any other absence.
    fn follow_schedules(&self, runtime: &Runtime) {
        let (core, scheduler) = (self.core.clone(), self.scheduler.clone());
        let every =
            Every::new("put policies in force", scheduler::ASSIGN_EVERY).or_when(self.policies.wake());
        runtime.on_leader(every, move |leader| {
            let (core, scheduler) = (core.clone(), scheduler.clone());
            async move {
                if core.standing.ready().await {
                    scheduler.assign_once(Some(&leader)).await.map(drop)
                } else {
                    Ok(())
                }
            }
        });
        let (core, scheduler) = (self.core.clone(), self.scheduler.clone());
        runtime.on_leader(Every::new("follow schedules", scheduler::INTERVAL), move |leader| {
            let (core, scheduler) = (core.clone(), scheduler.clone());
            async move {
                if core.standing.ready().await { scheduler.run_once(&leader).await.map(drop) } else { Ok(()) }
            }
        });
        let (core, scheduler) = (self.core.clone(), self.scheduler.clone());
        runtime.on_leader(Every::new("measure promises", scheduler::PROMISES_EVERY), move |leader| {
            let (core, scheduler) = (core.clone(), scheduler.clone());
            async move {
                if core.standing.ready().await { scheduler.measure_promises(&leader).await } else { Ok(()) }
            }
        });
    }

    fn router(&self, limits: Limits, stop: CancellationToken) -> tonic::transport::server::Router {
        let gate = Gate::new(self.core.clone(), self.identities.clone(), limits);
        let checks = self.checks.clone();
        let (core, identities, sessions) = (&self.core, &self.identities, &self.sessions);
        let enrolment = EnrollmentApi {
            gate: gate.clone(),
            identities: identities.clone(),
            relay: sessions.relay().clone(),
        };
        let session = SessionApi {
            gate: gate.clone(),
            sessions: sessions.clone(),
            identities: identities.clone(),
            checks: checks.clone(),
        };
        let tokens = TokenApi { gate: gate.clone(), identities: identities.clone() };
        let agents = AgentApi {
            gate: gate.clone(),
            core: core.clone(),
            identities: identities.clone(),
            sessions: sessions.clone(),
            checks,
            policies: self.policies.clone(),
        };
        let hosts = HostApi { agents: agents.clone() };
        let series =
            SeriesApi { gate: gate.clone(), core: core.clone(), series: SeriesService::new(core.clone()) };
        let trust = TrustApi { gate: gate.clone(), identities: identities.clone() };
        let runs = RunApi { gate: gate.clone(), core: core.clone(), runs: self.runs.clone(), stop };
        let backup = BackupApi {
            gate: gate.clone(),
            core: core.clone(),
            runs: self.runs.clone(),
            uploads: Uploads::new(core.clone(), self.objects.clone()),
            backups: self.backups.clone(),
        };
        let backup_admin = BackupAdminApi {
            gate: gate.clone(),
            core: core.clone(),
            backups: self.backups.clone(),
            verification: Verification::new(core.clone(), self.objects.clone(), self.backups.clone()),
        };
        let retention = RetentionApi { gate: gate.clone(), retention: self.retention.clone() };
        let policies = PolicyApi {
            gate: gate.clone(),
            policies: self.policies.clone(),
            scheduler: self.scheduler.clone(),
        };
        let recovery = RecoveryApi { gate: gate.clone(), recovery: self.recovery() };
        let storage = StorageApi { gate: gate.clone(), core: core.clone() };
        let fleet = FleetApi {
            gate,
            core: core.clone(),
            identities: identities.clone(),
            objects: self.objects.clone(),
            sessions: sessions.clone(),
            runs: self.runs.clone(),
        };
        let (_, health) = tonic_health::server::health_reporter();
        Server::builder()
            .trace_fn(span)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(1_024)
            .add_service(health)
            .add_service(
                v1::enrollment_server::EnrollmentServer::new(enrolment.clone())
                    .max_decoding_message_size(MAX_ENROLMENT),
            )
            .add_service(
                v1::certificates_server::CertificatesServer::new(enrolment)
                    .max_decoding_message_size(MAX_ENROLMENT),
            )
            .add_service(
                v1::session_server::SessionServer::new(session).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::token_admin_server::TokenAdminServer::new(tokens).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::agent_admin_server::AgentAdminServer::new(agents).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::host_admin_server::HostAdminServer::new(hosts).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::series_admin_server::SeriesAdminServer::new(series)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::trust_admin_server::TrustAdminServer::new(trust).max_decoding_message_size(MAX_TRUST),
            )
            .add_service(
                v1::run_admin_server::RunAdminServer::new(runs).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::policy_admin_server::PolicyAdminServer::new(policies)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::fleet_admin_server::FleetAdminServer::new(fleet).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::retention_admin_server::RetentionAdminServer::new(retention)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::recovery_admin_server::RecoveryAdminServer::new(recovery)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::storage_admin_server::StorageAdminServer::new(storage)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(v1::backup_server::BackupServer::new(backup).max_decoding_message_size(MAX_REQUEST))
            .add_service(
                v1::backup_admin_server::BackupAdminServer::new(backup_admin)
                    .max_decoding_message_size(MAX_REQUEST),
            )
    }
}

/// The CA. Coordinators on one database have one CA: whoever has another, or none while there is one, does not start.
async fn open_ca(core: &Core, settings: &Settings) -> Result<Ca, AppError> {
    let dir = &settings.ca_dir;
    let shared = core.store.dialect() == Dialect::Postgres;
    let other = || AppError::OtherCa { dir: dir.clone() };
    let known = installation::get(&mut *core.store.reader().await?, CA_FACT).await?;
    if known.is_some() && !dir.join("ca.pem").exists() && !dir.join("ca.key").exists() {
        return Err(if shared { other() } else { AppError::LostCa { dir: dir.clone() } });
    }
    let (clock, random) = (core.clock.clone(), core.random.clone());
    let ca = Ca::open_or_create(dir, settings.trust_domain.clone(), clock, random)?;
    let own = &tls::fingerprint(ca.certificate()).to_string();
    let record = core.store.run_tx("whose CA this is", move |tx, _| {
        async move { installation::get_or_set(tx, CA_FACT, own).await }.boxed()
    });
    let recorded = record.await?;
    if shared && recorded != *own { Err(other()) } else { Ok(ca) }
}

/// Wakes whatever other coordinators say there is something for, until the connection is lost.
async fn listen(core: &Core, runs: &Runs, mail: &Notify) -> Result<(), StoreError> {
    let Some(mut hints) = core.store.hints().await? else { return Ok(()) };
    let own = core.coordinator.to_string();
    loop {
        match hints.next().await?.as_str() {
            dialect::EVERYBODY => runs.wake(),
            whom if whom == own => mail.notify_one(),
            _ => {}
        }
    }
}

/// Ends when the coordinator stops and its agents have left or were told to.
async fn drain(sessions: Arc<Sessions>, stop: CancellationToken) {
    stop.cancelled().await;
    sessions.move_all("the coordinator stops");
    if !sessions.deserted(LEAVE).await {
        sessions.close_all(&Closed::Stopping);
    }
}

/// Says to the others, when the coordinator has stopped, that it is gone. Where that fails they find out by themselves.
async fn leave(presence: Presence, stop: CancellationToken) {
    stop.cancelled().await;
    // A little longer than those who are asked to leave have.
    presence.sessions().deserted(LEAVE * 2).await;
    if let Err(error) = presence.leave().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot say that this coordinator goes");
    }
}

/// Says in the bucket whose it is: for people and tools only, the trust policy decides.
async fn announce(core: &Core, objects: &ObjectStore) -> Result<(), ObjectError> {
    let key = ObjectName::Repository.into();
    if objects.head(&key).await?.is_some() {
        return Ok(());
    }
    let hint = serde_json::json!({
        "format": 1,
        "repository_id": core.repository.to_string(),
        "created": core.clock.now().rfc3339(),
    });
    match objects.put(&key, Bytes::from(hint.to_string()), Put::New).await {
        Err(error) if error.kind != ObjectErrorKind::AlreadyThere => Err(error),
        _ => Ok(()),
    }
}

/// The coordinator's own certificate is replaced long before it expires.
async fn renew_own(ca: Arc<Ca>, settings: Settings, servers: Vec<ServerTls>, stop: CancellationToken) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(SERVER_LIFE / 2) => {} }
        let renewed =
            ca.issue_server(&settings.dns_names, &settings.addresses).map_err(AppError::from).and_then(
                |own| servers.iter().try_for_each(|tls| tls.replace(&ca, &own)).map_err(AppError::from),
            );
        if let Err(error) = renewed {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot renew the coordinator's certificate"
            );
        }
    }
}
