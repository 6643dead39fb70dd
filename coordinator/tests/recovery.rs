//! The coordinator's database as lines of JSON: the same from both databases, and it goes into either.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use futures::StreamExt as _;
use sealift_common::id::RepositoryId;
use sealift_coordinator::recovery::import::{Importer, is_unused};
use sealift_coordinator::recovery::{Mark, RecoveryError, lines};
use sealift_coordinator::store::{Store, export};
use support::database::{Database, on_both_databases};
use support::{World, recipient};

/// All lines of a database.
async fn exported(store: &Store) -> Vec<Vec<u8>> {
    let mut tx = store.snapshot().await.unwrap();
    let mark = Mark { number: 1, generation: 2, mark: 3, nonce: 4 };
    let head = lines::Head::new(RepositoryId::from_bytes([1; 16]), mark, "now".to_owned());
    let (mut all, mut count) = (vec![lines::head(&head)], 0);
    for table in export::tables(&mut tx).await.unwrap() {
        all.push(lines::table(&table));
        let mut rows = export::rows(&mut tx, &table);
        let mut own = Vec::new();
        while let Some(row) = rows.next().await {
            own.push(lines::row(&row.unwrap()));
        }
        count += own.len() as u64;
        // Apart from what a counter orders, rows have no order.
        if table.counter.is_none() {
            own.sort();
        }
        all.extend(own);
    }
    all.push(lines::end(count));
    all
}

async fn import(store: &Store, all: &[Vec<u8>]) -> Result<u64, RecoveryError> {
    let mut importer = Importer::begin(store).await?;
    for (number, line) in (1..).zip(all) {
        importer.take(number, line.trim_ascii_end()).await?;
    }
    importer.finish().await
}

async fn the_lines_go_into_the_other_database_and_come_out_the_same(from: Database) {
    let to = match &from {
        Database::Sqlite => Database::postgres(),
        Database::Postgres(_) => Database::Sqlite,
    };
    let world = World::on(&from).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    for host in ["store-1", "store-2"] {
        let agent = world.agent(host).await;
        world.back_up(&agent, &who, 3).await;
        world.attempt(&agent).await;
    }
    let all = exported(&world.core.store).await;
    let text: Vec<String> = all.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect();
    assert!(
        text.iter().any(|line| line.contains("store-1"))
            && text.iter().any(|line| line.contains("{\"b64\":"))
    );
    assert!(
        text.iter().any(|line| line.contains(",true,") || line.contains(",true]")),
        "truth values are truth values"
    );

    let dir = tempfile::tempdir().unwrap();
    let other = Store::open(&to.url(dir.path())).await.unwrap();
    assert!(is_unused(&other).await.unwrap() && !is_unused(&world.core.store).await.unwrap());
    // Nothing comes of half a backup.
    assert!(import(&other, &all[..all.len() - 1]).await.is_err());
    let strange = [all[0].clone(), b"{\"table\":\"agents\",\"columns\":[\"id\",\"horoscope\"]}".to_vec()];
    assert!(import(&other, &strange).await.unwrap_err().to_string().contains("horoscope"));
    assert!(is_unused(&other).await.unwrap());

    import(&other, &all).await.unwrap();
    let again = exported(&other).await;
    assert_eq!(
        again.iter().map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>(),
        all.iter().map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>()
    );
}

on_both_databases!(the_lines_go_into_the_other_database_and_come_out_the_same);
