//! Puts the parts together, starts them and stops them.
//!
//! Stopping: first softly (no new connections, agents are asked to come back, what is under way is finished), then hard.

mod background;
mod listeners;
mod services;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::Clock;
use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use sealift_common::name::Name;
use sealift_common::tls::{self, TlsError};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub use listeners::{Addresses, Listeners};

use crate::api::limits::Limits;
use crate::api::listener::{self, Clients, ServerTls};
use crate::backups::Backups;
use crate::config::Settings;
use crate::core::Core;
use crate::identity::Identities;
use crate::identity::admins::{self, AdminFilesError};
use crate::identity::ca::{Ca, CaError, SERVER_LIFE};
use crate::identity::ca_reset::CA_FACT;
use crate::objects::http::InvalidTls;
use crate::objects::{ObjectStore, monitor};
use crate::policy::Policies;
use crate::recovery::{Generations, OwnBackups, Reconciler, RecoveryService};
use crate::retention::Retention;
use crate::runs::Runs;
use crate::runtime::Runtime;
use crate::scheduler::Scheduler;
use crate::sessions::checks::Checks;
use crate::sessions::presence::Presence;
use crate::sessions::{Closed, SessionService, Sessions};
use crate::store::{Dialect, Store, StoreError, installation};

/// How long agents have to leave by themselves when the coordinator stops.
const LEAVE: Duration = Duration::from_secs(2);

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
