//! One coordinator leads; the next one does when it is gone; and what a deposed one still wants to write is refused.

use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::clock::Clock;
use sealift_common::id::Random;
use sealift_common::lifecycle::Lifecycle;
use sealift_coordinator::core::Core;
use sealift_coordinator::runtime::leader::Timing;
use sealift_coordinator::runtime::{Every, Leader, Leadership, Runtime};
use sealift_coordinator::store::{Store, StoreError, installation};

use crate::support::database::{Database, on_both_databases};

/// Short, so that the tests are.
const TIMING: Timing = Timing { life: Duration::from_millis(1_500) };
const PATIENCE: Duration = Duration::from_secs(60);

async fn core(on: &Database, dir: &tempfile::TempDir) -> Core {
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    Core::load(store, Clock::system(), Random::from_os()).await.unwrap()
}

async fn term(leadership: &Leadership) -> Leader {
    tokio::time::timeout(PATIENCE, leadership.clone().wait()).await.unwrap().unwrap()
}

async fn write(core: &Core, leader: &Leader) -> Result<String, StoreError> {
    let epoch = leader.epoch().to_string();
    let (leader, epoch) = (leader, &epoch);
    let written = core.store.run_tx("what leaders do", move |tx, _| {
        async move {
            leader.fence(tx).await?;
            installation::get_or_set(tx, epoch, epoch).await
        }
        .boxed()
    });
    written.await
}

async fn a_coordinator_that_stops_hands_over_at_once(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let core = core(&on, &dir).await;
    let long = Timing { life: Duration::from_secs(3_600) };
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let lifecycle = Lifecycle::default();
        let runtime = Runtime::start(&core, long, &lifecycle);
        let leader = term(runtime.leadership()).await;
        write(&core, &leader).await.unwrap();
        epochs.push(leader.epoch());
        lifecycle.soft.cancel();
        tokio::time::timeout(PATIENCE, lifecycle.finished()).await.unwrap();
        assert!(leader.is_over() && runtime.leadership().current().is_none());
        let error = write(&core, &leader).await.unwrap_err();
        assert!(matches!(error, StoreError::Deposed { .. }), "{error}");
    }
    assert_eq!(epochs, [1, 2, 3]);
    core.store.close().await;
}

async fn rounds_are_made_everywhere_and_on_the_leader_until_the_stop(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let core = core(&on, &dir).await;
    let lifecycle = Lifecycle::default();
    let runtime = Runtime::start(&core, TIMING, &lifecycle);
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let wake = std::sync::Arc::new(tokio::sync::Notify::new());
    let never = Duration::from_secs(3_600);
    runtime.everywhere(Every::new("here", never).or_when(wake.clone()), said.clone(), |said| {
        let _ = said.send("here".to_owned());
        std::future::ready(Err::<(), _>(std::io::Error::other("a round that fails is followed by the next")))
    });
    runtime.on_leader(Every::new("led", never), said, |said, leader| {
        let _ = said.send(format!("led {}", leader.epoch()));
        std::future::pending::<Result<(), StoreError>>() // ends with the term
    });
    let mut first = [heard.recv().await.unwrap(), heard.recv().await.unwrap()];
    first.sort();
    assert_eq!(first, ["here", "led 1"]);
    wake.notify_one();
    assert_eq!(heard.recv().await.unwrap(), "here");
    lifecycle.soft.cancel();
    tokio::time::timeout(PATIENCE, lifecycle.finished()).await.unwrap();
    core.store.close().await;
}

on_both_databases!(
    a_coordinator_that_stops_hands_over_at_once,
    rounds_are_made_everywhere_and_on_the_leader_until_the_stop,
);

#[tokio::test]
async fn of_several_coordinators_one_leads_and_another_when_it_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let mut all = Vec::new();
    for _ in 0..3 {
        let (core, lifecycle) = (core(&on, &dir).await, Lifecycle::default());
        let runtime = Runtime::start(&core, TIMING, &lifecycle);
        all.push((core, runtime, lifecycle));
    }
    let mut before = 0;
    for alive in (1..=3).rev() {
        let waiting = all.iter().map(|(_, runtime, _)| {
            let mut leadership = runtime.leadership().clone();
            async move { leadership.wait().await.unwrap() }.boxed()
        });
        let (leader, at, _) =
            tokio::time::timeout(PATIENCE, futures::future::select_all(waiting)).await.unwrap();
        assert!(leader.epoch() > before, "an epoch is never given twice");
        before = leader.epoch();
        let leading = all.iter().filter(|(_, runtime, _)| runtime.leadership().current().is_some()).count();
        assert_eq!(leading, 1, "{alive} coordinators, one leads");
        // As if it were dead for the others: its database is gone, and nobody gives the lease back.
        let (dead, runtime, _lifecycle) = all.remove(at);
        write(&dead, &leader).await.unwrap();
        dead.store.close().await;
        tokio::time::timeout(PATIENCE, leader.over()).await.unwrap();
        assert!(runtime.leadership().current().is_none());
    }
}

/// The lease has ended, and the leader does not know: its transaction either ends before the next term begins, or is refused.
#[tokio::test]
async fn the_next_term_begins_after_the_last_transaction_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let old = core(&on, &dir).await;
    let lifecycle = Lifecycle::default();
    let runtime = Runtime::start(&old, TIMING, &lifecycle);
    let leader = term(runtime.leadership()).await;
    let (fenced, in_between) = tokio::sync::oneshot::channel::<()>();
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    let (fenced, wait) = (std::sync::Mutex::new(Some(fenced)), std::sync::Mutex::new(Some(wait)));
    let late = {
        let (old, leader) = (old.clone(), leader.clone());
        tokio::spawn(async move {
            let (leader, fenced, wait) = (&leader, &fenced, &wait);
            let late = old.store.run_tx("a slow transaction", move |tx, _| {
                async move {
                    leader.fence(tx).await?;
                    fenced.lock().unwrap().take().unwrap().send(()).unwrap();
                    let wait = wait.lock().unwrap().take().unwrap();
                    wait.await.unwrap();
                    installation::get_or_set(tx, "late", "yes").await
                }
                .boxed()
            });
            late.await
        })
    };
    in_between.await.unwrap();
    // It gives the lease back while its own transaction is still open.
    lifecycle.soft.cancel();
    tokio::time::timeout(PATIENCE, lifecycle.finished()).await.unwrap();
    let new = core(&on, &dir).await;
    let lifecycle = Lifecycle::default();
    let next = Runtime::start(&new, TIMING, &lifecycle);
    let seeks = async {
        let leader = term(next.leadership()).await;
        let late = installation::get(&mut new.store.reader().await.unwrap(), "late").await.unwrap();
        (leader.epoch(), late)
    };
    let ends = async {
        // The new one is at the row, and waits for it.
        let mut reader = old.store.reader().await.unwrap();
        let waits = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *reader).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
    };
    let ((epoch, late_seen), ()) = tokio::join!(seeks, ends);
    assert_eq!(late.await.unwrap().unwrap(), "yes");
    assert_eq!((epoch, late_seen.as_deref()), (leader.epoch() + 1, Some("yes")));
    assert!(matches!(write(&old, &leader).await, Err(StoreError::Deposed { .. })));
    lifecycle.soft.cancel();
    tokio::time::timeout(PATIENCE, lifecycle.finished()).await.unwrap();
}
