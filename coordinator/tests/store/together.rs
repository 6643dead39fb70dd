//! Many transactions at once: on SQLite they share commits, on PostgreSQL connections; each is whole or not there at all.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use sealift_common::clock::{Clock, UnixMillis};
use sealift_coordinator::store::{DatabaseUrl, Store, StoreError, agents, installation};

use crate::support::database::{Database, on_both_databases};

const TRANSACTIONS: usize = 300;

/// What a transaction is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Commit,
    /// Fails after it wrote.
    Fail,
    /// Its caller goes away after it wrote.
    Vanish,
}

impl Fate {
    fn of(n: usize) -> Self {
        [Self::Commit, Self::Fail, Self::Vanish][n % 3]
    }
}

async fn transact(store: &Store, n: usize) {
    let name = format!("fact-{n}");
    let (name, fate) = (name.as_str(), Fate::of(n));
    let work = Box::pin(store.run_tx("a test's transaction", move |tx, _| {
        async move {
            installation::get_or_set(tx, name, "mine").await?;
            match fate {
                Fate::Commit => Ok(()),
                Fate::Fail => Err(StoreError::Database { operation: "a test", source: sqlx_error() }),
                Fate::Vanish => std::future::pending().await,
            }
        }
        .boxed()
    }));
    match fate {
        Fate::Commit => work.await.unwrap(),
        Fate::Fail => assert!(work.await.is_err()),
        Fate::Vanish => {
            // Long enough for it to write, mostly; wherever it is then, it is dropped.
            let _ = tokio::time::timeout(Duration::from_millis(200), work).await;
        }
    }
}

/// An error that trying again does not cure.
fn sqlx_error() -> sqlx::Error {
    sqlx::Error::RowNotFound
}

async fn each_is_whole_or_not_there(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let url: DatabaseUrl = on.url(dir.path());
    let store = Store::open(&url).await.unwrap();
    join_all((0..TRANSACTIONS).map(|n| transact(&store, n))).await;
    // All of it is committed before it was answered: another reader sees it, and so does who opens the database again.
    store.close().await;
    drop(store);
    let store = Store::open(&url).await.unwrap();
    let mut reader = store.reader().await.unwrap();
    for n in 0..TRANSACTIONS {
        let found = installation::get(&mut reader, &format!("fact-{n}")).await.unwrap();
        assert_eq!(found.is_some(), Fate::of(n) == Fate::Commit, "fact {n}");
    }
    drop(reader);
    store.close().await;
}

async fn agents_are_seen_in_one_statement(on: Database) {
    let world = crate::support::World::on(&on).await;
    let (one, two) = (world.agent("store-1").await, world.agent("store-2").await);
    let later = UnixMillis(Clock::system().now().0 + 60_000);
    let heard = [(one.id, later), (two.id, UnixMillis(1))];
    let before = world.clock.now();
    world.core.store.run_tx("a test", |tx, _| agents::seen(tx, &heard).boxed()).await.unwrap();
    let mut reader = world.core.store.reader().await.unwrap();
    let seen = async |reader: &mut _, id| agents::get(reader, id).await.unwrap().unwrap().last_seen;
    assert_eq!(seen(&mut reader, one.id).await, later);
    assert_eq!(seen(&mut reader, two.id).await, before, "never back in time");
}

on_both_databases!(each_is_whole_or_not_there, agents_are_seen_in_one_statement);
