//! What goes on in the background: here, and on the coordinator that leads. One entry for each reconciler.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sealift_common::format::names::ObjectName;
use tokio::sync::Notify;

use super::Coordinator;
use crate::api::limits::Limits;
use crate::backups::resolve;
use crate::core::Core;
use crate::objects::{ObjectError, ObjectErrorKind, ObjectStore, Put};
use crate::retention::reconcile;
use crate::runs::{Runs, dispatch, progress, storage};
use crate::runtime::{Every, Runtime};
use crate::scheduler;
use crate::sessions::{presence, relay};
use crate::store::{Dialect, StoreError, dialect};

/// How long to wait before listening again, where the connection was lost.
const LISTEN: Duration = Duration::from_secs(1);
/// How often idle state is tidied up, and what failed before is tried again.
const TIDY: Duration = Duration::from_secs(30);

impl Coordinator {
    /// Starts all of it. What changes anything waits until the database is known to be in step with the bucket.
    pub(super) fn reconcile(&self, runtime: &Runtime, limits: Limits) {
        self.follow_runs(runtime);
        self.follow_coordinators(runtime);
        self.follow_schedules(runtime);
        self.follow_backups(runtime);
        self.follow_bucket(runtime);
        runtime.everywhere(Every::new("forget idle callers", TIDY), limits, |limits| {
            limits.forget_idle();
            std::future::ready(Ok::<_, Infallible>(()))
        });
    }

    fn follow_runs(&self, runtime: &Runtime) {
        let dispatch = Every::new("dispatch", dispatch::INTERVAL).or_when(self.runs.waker()).once_in_step();
        runtime.everywhere(dispatch, self.runs.clone(), |runs| async move {
            runs.dispatch_once().await.map(drop)
        });
        let extend = Every::new("extend leases", self.runs.lease_interval());
        runtime.everywhere(extend, self.runs.clone(), |runs| async move { runs.keep_leases().await });
        let end = Every::new("end leases", dispatch::INTERVAL).once_in_step();
        runtime.on_leader(
            end,
            self.runs.clone(),
            |runs, leader| async move { runs.expire_as(&leader).await },
        );
        let forget = Every::new("forget how far runs were", progress::TIDY);
        runtime.everywhere(forget, self.runs.clone(), |runs| async move { runs.tidy_progress().await });
        let (probe, parts) = (
            Every::new("follow the storage probe", storage::INTERVAL),
            (self.runs.clone(), self.objects.clone()),
        );
        runtime.everywhere(
            probe,
            parts,
            |(runs, objects)| async move { runs.look_at_storage(&objects).await },
        );
    }

    /// Coordinators on one database know of each other.
    fn follow_coordinators(&self, runtime: &Runtime) {
        let presence = self.sessions.presence();
        let alive = Every::new("say that we are alive", presence::INTERVAL);
        runtime.everywhere(alive, presence.clone(), |presence| async move { presence.round().await });
        let bury = Every::new("bury dead coordinators", presence::INTERVAL);
        runtime.on_leader(
            bury,
            presence.clone(),
            |presence, leader| async move { presence.bury(&leader).await },
        );
        if self.core.store.dialect() != Dialect::Postgres {
            return;
        }
        let mail = Arc::new(Notify::new());
        let take = Every::new("take messages", relay::INTERVAL).or_when(mail.clone());
        let parts = (self.sessions.relay().clone(), self.checks.clone());
        runtime.everywhere(take, parts, |(relay, checks)| async move { relay.take(&checks).await });
        let parts = (self.core.clone(), self.runs.clone(), mail, runtime.stop());
        let hints = Every::new("listen to hints", LISTEN);
        runtime.everywhere(hints, parts, |(core, runs, mail, stop)| async move {
            stop.run_until_cancelled(listen(&core, &runs, &mail)).await.unwrap_or(Ok(()))
        });
    }

    /// From policies to runs: one job for the whole installation. A database that has forgotten what it did takes no
    /// instant; once it is in step again, what came due meanwhile is made up for like any other absence.
    fn follow_schedules(&self, runtime: &Runtime) {
        let assign =
            Every::new("put policies in force", scheduler::ASSIGN_EVERY).or_when(self.policies.wake());
        runtime.on_leader(assign.once_in_step(), self.scheduler.clone(), |scheduler, leader| async move {
            scheduler.assign_once(Some(&leader)).await.map(drop)
        });
        let follow = Every::new("follow schedules", scheduler::INTERVAL).once_in_step();
        runtime.on_leader(follow, self.scheduler.clone(), |scheduler, leader| async move {
            scheduler.run_once(&leader).await.map(drop)
        });
        let measure = Every::new("measure promises", scheduler::PROMISES_EVERY).once_in_step();
        runtime.on_leader(measure, self.scheduler.clone(), |scheduler, leader| async move {
            scheduler.measure_promises(&leader).await
        });
    }

    fn follow_backups(&self, runtime: &Runtime) {
        let resolve = Every::new("resolve backups", resolve::INTERVAL).once_in_step();
        runtime.on_leader(resolve, self.backups.clone(), |backups, _| async move {
            backups.resolve_round().await
        });
        let retention = Every::new("retention", reconcile::INTERVAL).once_in_step();
        runtime.on_leader(retention, self.retention.clone(), |retention, leader| async move {
            retention.led_by(&leader).reconcile().await
        });
    }

    /// What lies in the bucket for those who come with a key alone.
    fn follow_bucket(&self, runtime: &Runtime) {
        let trust = Every::new("put trust policies into the bucket", TIDY).once_in_step();
        runtime.on_leader(trust, self.identities.clone(), |identities, _| async move {
            identities.store_trust().await
        });
        let announced = Arc::new(AtomicBool::new(false));
        let parts = (self.core.clone(), self.objects.clone(), announced);
        let say = Every::new("say whose the bucket is", TIDY).once_in_step();
        runtime.on_leader(say, parts, |(core, objects, announced), _| async move {
            if !announced.load(Ordering::SeqCst) {
                announce(&core, &objects).await?;
                announced.store(true, Ordering::SeqCst);
            }
            Ok::<_, ObjectError>(())
        });
    }
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
