//! The coordinator's database as lines of JSON: the same from both databases, and it goes into either.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use futures::StreamExt as _;
use sealift_common::clock::Clock;
use sealift_common::id::{Random, RepositoryId};
use sealift_coordinator::audit::OpContext;
use sealift_coordinator::core::Core;
use sealift_coordinator::policy::service::Terms;
use sealift_coordinator::policy::{Policies, standings};
use sealift_coordinator::recovery::import::{Importer, is_unused};
use sealift_coordinator::recovery::lines::Line;
use sealift_coordinator::recovery::{
    Generations, Mark, Names, Reconciler, RecoveryError, deletion_allowed, lines,
};
use sealift_coordinator::retention::rules::RetentionRules;
use sealift_coordinator::store::{Store, agents, export, retention, sources};
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

/// What was written once is read for ever: files are added here, never changed. `SEALIFT_WRITE_GOLDEN=1` writes one that is
/// missing.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/coordinator-database.v1.jsonl");

/// Lines with something in most tables.
async fn make_golden() -> Vec<Vec<u8>> {
    let world = World::new().await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let (retention, admin) = (world.retention(), world.as_admin());
    for host in ["store-1", "store-2"] {
        let agent = world.agent(host).await;
        let rules = RetentionRules { last: 3, daily: 7, ..RetentionRules::default() };
        world.set_rules(agent.series, &rules).await;
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(world.back_up(&agent, &who, 2).await.0.backup.id.to_string());
        }
        retention.hold(&admin, &made[0], "an audit").await.unwrap();
        retention.delete(&admin, &made[1], "a test", false).await.unwrap();
        world.attempt(&agent).await;
    }
    let policy = "name = \"nightly\"\n[schedule]\ncron = \"0 2 * * *\"\n";
    let terms = Terms { canary: None, expect: Some(2) };
    Policies::new(world.core.clone()).apply(&admin, policy, &terms).await.unwrap();
    exported(&world.core.store).await
}

/// Rows by table: each cell with its column's name, so that columns that came later do not count.
fn rows(all: &[Vec<u8>], columns_of: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    let (mut out, mut table, mut columns) = (BTreeMap::<String, Vec<String>>::new(), String::new(), vec![]);
    for (number, line) in (1..).zip(all) {
        match lines::parse(number, line.trim_ascii_end()).unwrap() {
            Line::Table(name, names) => (table, columns) = (name, names),
            Line::Row(cells) => {
                let known = |column: &String| columns_of.get(&table).is_some_and(|all| all.contains(column));
                let row: BTreeMap<_, _> = columns.iter().zip(cells).filter(|(name, _)| known(name)).collect();
                out.entry(table.clone()).or_default().push(format!("{row:?}"));
            }
            Line::Head(_) | Line::End(_) => {}
        }
    }
    out.values_mut().for_each(|rows| rows.sort());
    out
}

async fn lines_of_the_first_version_are_read(database: Database) {
    if std::env::var_os("SEALIFT_WRITE_GOLDEN").is_some() && !std::path::Path::new(GOLDEN).exists() {
        std::fs::write(GOLDEN, make_golden().await.concat()).unwrap();
    }
    let text = std::fs::read(GOLDEN).unwrap();
    let all: Vec<Vec<u8>> = text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let Ok(Line::Head(head)) = lines::parse(1, all[0].trim_ascii_end()) else { panic!("{:?}", all[0]) };
    assert_eq!(head.mark(), Mark { number: 1, generation: 2, mark: 3, nonce: 0 });
    let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in &all {
        if let Ok(Line::Table(name, names)) = lines::parse(1, line.trim_ascii_end()) {
            columns.insert(name, names);
        }
    }
    assert!(
        ["agents", "backups", "packs", "policies", "audit_events"].iter().all(|t| columns.contains_key(*t))
    );

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database.url(dir.path())).await.unwrap();
    import(&store, &all).await.unwrap();
    assert_eq!(rows(&exported(&store).await, &columns), rows(&all, &columns));
    // And what works with the rows finds what it needs in them.
    let (clock, random) = (Clock::system(), Random::from_os());
    let core = Core::load(store, clock, random).await.unwrap();
    assert_eq!(core.repository, head_repository(&all));
    let mut reader = core.store.reader().await.unwrap();
    let host = agents::by_name(&mut reader, "store-2").await.unwrap().unwrap();
    let source = sources::of_agent(&mut reader, host.id).await.unwrap().remove(0);
    let kept = retention::backups(&mut reader, source.series, core.clock.now()).await.unwrap();
    assert_eq!(kept.iter().filter(|backup| backup.keeping.held.is_some()).count(), 1);
    assert_eq!(kept.iter().filter(|backup| backup.keeping.expired.is_some()).count(), 1);
    assert_eq!(kept.len(), 3);
    assert_eq!(standings(&mut reader).await.unwrap()[0].name.as_str(), "nightly");
}

/// Which repository the rows of the installation say.
fn head_repository(all: &[Vec<u8>]) -> RepositoryId {
    let line = all
        .iter()
        .map(|line| String::from_utf8_lossy(line))
        .find(|line| line.contains("\"repository_id\",\""));
    let line: Vec<String> = serde_json::from_str(&line.unwrap()).unwrap();
    line.iter().find_map(|cell| cell.parse().ok()).unwrap()
}

/// A database that has forgotten backups of more series than it has connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_series_are_taken_in() {
    const SERIES: u64 = 40;
    let mut world = World::new().await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let mut agents = Vec::new();
    for host in 0..SERIES {
        agents.push(world.agent(&format!("store-{host}")).await);
    }
    let copy = world.copy_database().await;
    for agent in &agents {
        world.back_up(agent, &who, 1).await;
    }
    let generations = Generations::new(world.core.clone(), world.objects.clone());
    generations.mark(&generations.check().await.unwrap()).await.unwrap();
    world.set_database_back(&copy).await;
    assert!(deletion_allowed(&world.core, &world.objects).await.is_err());
    let (core, objects) = (world.core.clone(), world.objects.clone());
    let roots = vec![world.root_fingerprint()];
    let reconciler = Reconciler::new(core.clone(), objects, world.backups.clone(), roots);
    let report = reconciler.run(&OpContext::coordinator(&core), Names::default()).await.unwrap();
    assert_eq!((report.series, report.backups_added, report.packs_lost), (SERIES, SERIES, 0), "{report:?}");
    assert_eq!(world.listed().await.len() as u64, SERIES);
}

on_both_databases!(
    the_lines_go_into_the_other_database_and_come_out_the_same,
    lines_of_the_first_version_are_read
);
