//! What admins page through: found by an index, whole over its pages, in every order, and counted right; on both databases.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use sealift_common::clock::UnixMillis;
use sealift_common::selector::Selector;
use sealift_coordinator::runs::state::RunState;
use sealift_coordinator::store::lists::agents::{self, AgentOrder};
use sealift_coordinator::store::lists::audit::EventList;
use sealift_coordinator::store::lists::backups::{self, BackupList, BackupOrder};
use sealift_coordinator::store::lists::history::Of;
use sealift_coordinator::store::lists::runs::{self, RunList, RunOrder};
use sealift_coordinator::store::lists::sources::{self, SourceOrder};
use sealift_coordinator::store::lists::usage::{self, By, UsageOrder};
use sealift_coordinator::store::lists::{Page, Paging, Position};
use sealift_coordinator::store::packs::PackState;
use sealift_coordinator::store::select::Select;
use sealift_coordinator::store::{self, Dialect, Tx, fleet};
use sealift_tests::generated::{self, Size};
use support::database::{Database, on_both_databases};
use support::{World, recipient};

/// Large enough that PostgreSQL prefers an index wherever it has one.
const SIZE: Size = Size { hosts: 400, backups: 12_000, packs: 2 };

/// One real host with one real backup, and a fleet made like it.
async fn fleet(on: &Database) -> World {
    let world = World::on(on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("real").await;
    world.back_up(&agent, &who, 2).await;
    let file = world.dir.path().join("coordinator.db");
    let database = match on {
        Database::Sqlite => generated::Database::Sqlite(&file),
        Database::Postgres(server) => generated::Database::Postgres(server, "sealift"),
    };
    generated::fill(database, SIZE, world.clock.now().0);
    world
}

fn labels(text: &str) -> Selector {
    text.parse().unwrap()
}

/// What of a plan reads a whole table of history, or every pack.
fn scans(dialect: Dialect, plan: &[String]) -> Vec<&String> {
    let history = ["runs", "attempts", "backups", "packs", "audit_events"];
    let whole = |line: &str| match dialect {
        Dialect::Sqlite => {
            let alias = ["h", "b", "r", "n", "p"];
            let Some(rest) = line.strip_prefix("SCAN ") else { return false };
            let table = rest.split(' ').next().unwrap_or_default();
            (history.contains(&table) || alias.contains(&table)) && !rest.contains("USING")
        }
        Dialect::Postgres => {
            let line = line.trim_start_matches([' ', '-', '>']);
            history.iter().any(|table| line.starts_with(&format!("Seq Scan on {table}")))
        }
    };
    // Whatever is found, sorting it all means having read it all.
    let sorts = |line: &str| line.contains("USE TEMP B-TREE FOR ORDER BY");
    plan.iter().filter(|line| whole(line) || (dialect == Dialect::Sqlite && sorts(line))).collect()
}

async fn every_query_over_history_uses_an_index(on: Database) {
    let world = fleet(&on).await;
    let mut conn = world.core.store.reader().await.unwrap();
    let dialect = world.core.store.dialect();
    let agent = store::agents::by_name(&mut conn, &generated::host_name(7)).await.unwrap().unwrap();
    let source = store::sources::of_agent(&mut conn, agent.id).await.unwrap().remove(0);
    let since = UnixMillis(world.clock.now().0 - 3 * 24 * 3_600_000);
    let (one, few) = ([agent.id.to_string()], [agent.id.to_string(), world.core.repository.to_string()]);

    let mut queries: Vec<(String, Select)> = vec![
        ("the overview".into(), fleet::query()),
        ("newest runs".into(), sources::last_runs_query(&[source.series])),
        ("their rows".into(), sources::runs_query(vec![source.series.to_string()])),
        ("newest backups".into(), sources::last_backups_query(&[source.series])),
    ];
    for of in [Of::default(), Of::Agent(agent.id), Of::Series(source.series)] {
        let agents = matches!(of, Of::Agent(_)).then_some(one.as_slice());
        for since in [UnixMillis(0), since] {
            for state in [None, Some(RunState::Failed)] {
                let list = RunList { of: of.clone(), state, since };
                let first = runs::list(&mut conn, &list, &Paging::first(5)).await.unwrap();
                for after in [None, first.next] {
                    for reverse in [false, true] {
                        let paging =
                            Paging { order: RunOrder::Created, reverse, after: after.clone(), limit: 100 };
                        queries.push((format!("runs {list:?} {paging:?}"), list.query(agents, &paging)));
                    }
                }
            }
            let list = BackupList { of: of.clone(), since, expired: false };
            // A host's or series' own backups are few: those may be sorted.
            let orders = if of == Of::default() { BackupOrder::ALL } else { &[BackupOrder::Made] };
            for order in orders {
                let first = Paging { order: *order, ..Paging::first(5) };
                let next = backups::list(&mut conn, &list, &first).await.unwrap().next;
                for after in [None, next] {
                    for reverse in [false, true] {
                        let paging = Paging { order: *order, reverse, after: after.clone(), limit: 100 };
                        queries.push((format!("backups {list:?} {paging:?}"), list.query(agents, &paging)));
                    }
                }
            }
        }
    }
    for (actor, actions) in [("", vec![]), ("coordinator", vec![]), ("", vec!["backup.commit", "run.start"])]
    {
        for after in [None, Some((since, 1))] {
            let actions = actions.iter().map(|action| (*action).to_owned()).collect();
            let list = EventList { since, actor: actor.to_owned(), actions, after, limit: 100 };
            // Parts that are sorted each are put together by sorting some hundred rows.
            if list.actions.len() < 2 {
                queries.push((format!("{list:?}"), list.query()));
            } else {
                let plan = list.query().plan(&mut conn).await.unwrap();
                let found: Vec<_> =
                    scans(dialect, &plan).into_iter().filter(|l| !l.contains("TEMP B-TREE")).collect();
                assert!(found.is_empty(), "{list:?}:\n{}", plan.join("\n"));
            }
        }
    }
    for (what, query) in queries {
        let plan = query.plan(&mut conn).await.unwrap();
        assert!(scans(dialect, &plan).is_empty(), "{what}:\n{query:?}\n{}", plan.join("\n"));
    }

    // What is counted for the status page is found, not walked: not even along an index.
    let plan = store::retention::troubles_query().plan(&mut conn).await.unwrap();
    let walked = |line: &String| line.contains("SCAN backups") || line.contains("Seq Scan on backups");
    assert!(!plan.iter().any(walked), "{}", plan.join("\n"));

    // Several hosts' own backups are merged by sorting them; lists of hosts read hosts, and sums of theirs, only.
    let first = Paging::first(100);
    let mut bounded: Vec<(String, Select)> = vec![
        ("few hosts' runs".into(), RunList::default().query(Some(&few), &first)),
        ("few hosts' backups".into(), BackupList::default().query(Some(&few), &Paging::first(100))),
        ("sources of hosts".into(), sources::of_agents_query(&[agent.id])),
        ("names".into(), sources::names_query(&[source.series])),
    ];
    for selector in ["", "role=pos,region in (eu,uk),!legacy"].map(labels) {
        for order in AgentOrder::ALL {
            let paging = Paging { order: *order, ..Paging::first(100) };
            bounded.push((format!("hosts {order:?}"), agents::query(&selector, &paging)));
        }
        for order in SourceOrder::ALL {
            let paging = Paging { order: *order, ..Paging::first(100) };
            bounded.push((format!("sources {order:?}"), sources::query(&selector, &paging)));
        }
        for by in [By::Host, By::Series, By::Label] {
            bounded.push((format!("usage {by:?}"), usage::query(by, &selector, "", &Paging::first(100))));
        }
    }
    for (what, query) in bounded {
        let plan = query.plan(&mut conn).await.unwrap();
        let found: Vec<_> =
            scans(dialect, &plan).into_iter().filter(|l| !l.contains("TEMP B-TREE")).collect();
        assert!(found.is_empty(), "{what}:\n{query:?}\n{}", plan.join("\n"));
    }
}

/// Walks a list to its end in small pages.
async fn walk<O: Copy, T>(
    tx: &mut Tx,
    order: O,
    reverse: bool,
    mut page: impl AsyncFnMut(&mut Tx, Paging<O>) -> Page<T>,
) -> Vec<T> {
    let (mut all, mut after): (Vec<T>, Option<Position>) = (Vec::new(), None);
    loop {
        let next = page(tx, Paging { order, reverse, after, limit: 170 }).await;
        all.extend(next.rows);
        after = next.next;
        if after.is_none() {
            return all;
        }
    }
}

fn sorted<K: PartialOrd>(keys: &[K], descending: bool) -> bool {
    keys.windows(2).all(|pair| if descending { pair[0] >= pair[1] } else { pair[0] <= pair[1] })
}

async fn pages_hold_every_row_once_in_every_order(on: Database) {
    let world = fleet(&on).await;
    let mut conn = world.core.store.reader().await.unwrap();
    let hosts = SIZE.hosts + 1;
    // One host; a few; most of them, which are found by walking the list.
    for (text, expected) in [
        ("", hosts),
        ("store=00001", 2),
        ("legacy", 2),
        ("role=pos", 380),
        ("region in (eu,uk),!legacy", 198),
    ] {
        let selector = labels(text);
        for order in AgentOrder::ALL {
            for reverse in [false, true] {
                let found = walk(&mut conn, *order, reverse, async |tx, paging| {
                    agents::list(tx, &selector, &paging).await.unwrap()
                })
                .await;
                assert_eq!(found.len(), expected, "{text} {order:?}");
                assert!(found.iter().all(|listed| selector.matches(&listed.agent.labels)), "{text}");
                let ids: std::collections::BTreeSet<_> = found.iter().map(|listed| listed.agent.id).collect();
                assert_eq!(ids.len(), expected, "{text} {order:?}: one twice");
                let bytes: Vec<_> = found.iter().map(|listed| listed.stored_bytes).collect();
                assert!(*order != AgentOrder::Stored || sorted(&bytes, !reverse), "{bytes:?}");
            }
        }
        let wanted = agents::list(&mut conn, &selector, &Paging::first(10_000)).await.unwrap();
        let backups_expected: u64 = wanted.rows.iter().map(|listed| listed.backups).sum();
        let list = BackupList { of: Of::Labels(selector.clone()), ..BackupList::default() };
        for order in BackupOrder::ALL {
            let found = walk(&mut conn, *order, false, async |tx, paging| {
                backups::list(tx, &list, &paging).await.unwrap()
            })
            .await;
            assert_eq!(found.len() as u64, backups_expected, "{text} {order:?}");
            let sizes: Vec<_> =
                found.iter().map(|backup| backup.prepared.as_ref().unwrap().raw_bytes).collect();
            assert!(*order != BackupOrder::Size || sorted(&sizes, true));
        }
        let list =
            RunList { of: Of::Labels(selector.clone()), state: Some(RunState::Failed), since: UnixMillis(0) };
        for reverse in [false, true] {
            let found = walk(&mut conn, RunOrder::Created, reverse, async |tx, paging| {
                runs::list(tx, &list, &paging).await.unwrap()
            })
            .await;
            let times: Vec<_> = found.iter().map(|run| run.created).collect();
            assert!(sorted(&times, !reverse));
            assert!(found.iter().all(|run| run.state == RunState::Failed));
        }
        for order in SourceOrder::ALL {
            let found = walk(&mut conn, *order, false, async |tx, paging| {
                sources::list(tx, &selector, &paging).await.unwrap()
            })
            .await;
            assert_eq!(found.len(), expected, "{text} {order:?}");
        }
    }
    let by_label = usage::list(&mut conn, By::Label, &labels(""), "role", &Paging::first(10)).await.unwrap();
    let names: Vec<_> = by_label.rows.iter().map(|usage| (usage.name.as_str(), usage.hosts)).collect();
    assert_eq!(names, [("role=pos", 380), ("role=backoffice", 20)]);
    let by_host = walk(&mut conn, UsageOrder::Stored, false, async |tx, paging| {
        usage::list(tx, By::Host, &labels(""), "", &paging).await.unwrap()
    })
    .await;
    assert_eq!(by_host.len(), hosts);
    let counts = fleet::counts(&mut conn).await.unwrap();
    assert_eq!(counts.stored_bytes, by_host.iter().map(|usage| usage.stored_bytes).sum::<u64>());
    assert_eq!(counts.agents as usize, hosts);
}

async fn counters_follow_what_happens(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let counted = async || {
        let mut conn = world.core.store.reader().await.unwrap();
        let page = usage::list(&mut conn, By::Series, &labels(""), "", &Paging::first(10)).await.unwrap();
        let usage = page.rows.into_iter().next().unwrap();
        let sources = sources::list(&mut conn, &labels(""), &Paging::first(10)).await.unwrap();
        assert_eq!(sources.rows[0].backups, usage.backups);
        let last = sources::last_backups(&mut conn, &[agent.series]).await.unwrap();
        (usage.packs, usage.stored_bytes, usage.backups, last.get(&agent.series).map(|backup| backup.id))
    };
    assert_eq!(counted().await, (0, 0, 0, None));
    let (first, manifest) = world.back_up(&agent, &who, 3).await;
    assert_eq!(counted().await, (3, 9_000, 1, Some(first.backup.id)));
    let (second, _) = world.back_up(&agent, &who, 1).await;
    assert_eq!(counted().await, (4, 12_000, 2, Some(second.backup.id)));

    // A pack that is signed for takes no space yet; one that is gone takes none any more.
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let pack = world.pack(&begun);
    world.uploads.authorize(&world.as_agent(&agent), &attempt, pack.new).await.unwrap();
    assert_eq!(counted().await.0, 4);
    world.store_pack(&agent, &attempt, &pack).await;
    assert_eq!(counted().await.0, 5);
    let lost = sealift_coordinator::backups::listing::LostPack {
        series: agent.series,
        sha256: manifest.public.packs[0].meta.sha256,
        state: PackState::Missing,
        problem: "a test".to_owned(),
    };
    world.backups.record_lost(&world.as_admin(), &[lost]).await.unwrap();
    // Both need it: neither is good any more.
    assert_eq!(counted().await, (4, 12_000, 2, None));
}

on_both_databases!(
    every_query_over_history_uses_an_index,
    pages_hold_every_row_once_in_every_order,
    counters_follow_what_happens,
);
