//! Holds, deletion that can be undone, collection, and what stops it; on both databases.

use std::time::Duration;

use sealift_common::crypto::Recipient;
use sealift_common::format::manifest::Status;
use sealift_common::format::names::ObjectName;
use sealift_common::id::BackupId;
use sealift_coordinator::backups::BackupError;
use sealift_coordinator::backups::begin::Begun;
use sealift_coordinator::backups::query::BackupQuery;
use sealift_coordinator::objects::Put;
use sealift_coordinator::policy::Policies;
use sealift_coordinator::policy::service::Terms;
use sealift_coordinator::recovery::generation::MARKS_PREFIX;
use sealift_coordinator::recovery::{Generations, Mark, deletion_allowed};
use sealift_coordinator::retention::admin::PlanQuery;
use sealift_coordinator::retention::beside::Operation;
use sealift_coordinator::retention::collect::{Collected, Round};
use sealift_coordinator::retention::packs::{GRACE, LATE};
use sealift_coordinator::retention::rules::RetentionRules;
use sealift_coordinator::retention::states::{BackupState, PackState};
use sealift_coordinator::retention::{Retention, RetentionError};
use sealift_coordinator::scheduler::Scheduler;
use sealift_coordinator::store::backups::BackupRow;
use sealift_coordinator::store::lists::Paging;
use sealift_coordinator::store::lists::sources::{self, SourceOrder};
use sealift_coordinator::store::{Tx, backups, fleet, packs, retention, series_operations, source_policies};
use sealift_coordinator::verification::Level;
use sqlx::Row as _;

use crate::support::database::{Database, on_both_databases};
use crate::support::{Agent, World, recipient};

const MINUTE: Duration = Duration::from_secs(60);

async fn world(database: Database) -> (World, Agent, Recipient, Retention) {
    let world = World::on(&database).await;
    // The server goes with the database; the test ends before the process does.
    std::mem::forget(database);
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let retention = world.retention();
    (world, agent, who, retention)
}

/// A backup of `packs` new packs that refers to no earlier one.
async fn lone_backup(world: &World, agent: &Agent, who: &Recipient, packs: usize) -> Begun {
    lone_backup_of(Status::Complete, world, agent, who, packs).await
}

async fn lone_backup_of(
    status: Status,
    world: &World,
    agent: &Agent,
    who: &Recipient,
    packs: usize,
) -> Begun {
    let attempt = world.attempt(agent).await;
    let begun = world.begin(agent, &attempt).await;
    let mut refs = Vec::new();
    for _ in 0..packs {
        let pack = world.pack(&begun);
        world.store_pack(agent, &attempt, &pack).await;
        refs.push(pack.new.facts);
    }
    let manifest = world.manifest_of(status, agent, &begun, who, &refs);
    let put = world.prepared(agent, &attempt, &manifest).await;
    assert_eq!(world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
    world.backups.commit(&world.as_agent(agent), &attempt, begun.backup.id).await.unwrap();
    world.clock.advance(MINUTE);
    begun
}

async fn row(world: &World, id: BackupId) -> BackupRow {
    backups::get(&mut world.core.store.reader().await.unwrap(), id).await.unwrap().unwrap()
}

async fn collect(world: &World, retention: &Retention, agent: &Agent) -> Collected {
    let done = retention.collect(agent.series, &mut Round::default()).await.unwrap();
    world.clock.advance(MINUTE);
    done
}

async fn pack_states(world: &World, agent: &Agent) -> Vec<PackState> {
    let mut reader = world.core.store.reader().await.unwrap();
    let rows = retention::packs(&mut reader, agent.series).await.unwrap();
    rows.into_iter().map(|pack| pack.fate.state).collect()
}

async fn what_is_deleted_goes_for_good_after_three_days(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = lone_backup(&world, &agent, &who, 2).await.backup.id;
    let new = lone_backup(&world, &agent, &who, 1).await.backup.id;
    let admin = world.as_admin();
    retention.delete(&admin, &old.to_string(), "not needed", false).await.unwrap();
    assert_eq!(world.listed().await, [new]);
    let error = world.backups.open_restore(&admin, &old.to_string()).await.unwrap_err();
    assert!(matches!(error, BackupError::Expired { .. }), "{error}");

    assert_eq!(collect(&world, &retention, &agent).await, Collected::default());
    assert_eq!(pack_states(&world, &agent).await, [PackState::Doomed, PackState::Doomed, PackState::Live]);
    let before = world.bucket().await;

    // Taken back: everything is as it was.
    retention.undelete(&admin, &old.to_string()).await.unwrap();
    assert_eq!(world.listed().await, [new, old]);
    assert_eq!(pack_states(&world, &agent).await, [PackState::Live; 3]);
    retention.delete(&admin, &old.to_string(), "not needed", false).await.unwrap();
    assert_eq!(collect(&world, &retention, &agent).await, Collected::default());

    world.clock.advance(GRACE - MINUTE * 10);
    assert_eq!(collect(&world, &retention, &agent).await, Collected::default());
    assert_eq!(world.bucket().await, before);
    world.clock.advance(MINUTE * 10);
    let done = collect(&world, &retention, &agent).await;
    assert_eq!((done.manifests, done.packs, done.bytes), (1, 2, 6_000));
    assert_eq!(row(&world, old).await.state, BackupState::Deleted);
    assert_eq!(pack_states(&world, &agent).await, [PackState::Live]);
    let left = world.bucket().await;
    assert_eq!(left.iter().filter(|name| name.contains("/packs/")).count(), 1);
    assert_eq!(left.iter().filter(|name| name.contains("/manifests/")).count(), 1);
    let error = retention.undelete(&admin, &old.to_string()).await.unwrap_err();
    assert!(matches!(error, RetentionError::Backup(BackupError::NotFound { .. })), "{error}");

    for (action, outcome, says) in [
        ("backup.delete", "done", ["\"before\":\"committed\"", "\"after\":\"expired\"", "not needed"]),
        ("backup.undelete", "done", ["\"before\":\"expired\"", "\"after\":\"committed\"", "not needed"]),
        ("backup.remove", "intended", ["\"before\":\"expired\"", "\"after\":\"deleting\"", "not needed"]),
        ("backup.remove", "done", ["\"before\":\"deleting\"", "\"after\":\"deleted\"", ""]),
        ("series.collect", "done", ["\"deleted\":2", "\"bytes\":6000", ""]),
    ] {
        let events = world.audited(action, outcome).await;
        let said = events.iter().any(|event| says.iter().all(|text| event.details.contains(text)));
        assert!(said, "{action} {outcome}: {events:?}");
    }
}

async fn what_must_stay_is_refused(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = lone_backup(&world, &agent, &who, 1).await.backup.id.to_string();
    let new = lone_backup(&world, &agent, &who, 1).await.backup.id.to_string();
    let admin = world.as_admin();
    let delete = async |id: &str| retention.delete(&admin, id, "a test", false).await;

    assert!(matches!(delete(&new).await, Err(RetentionError::LastGood { .. })));
    retention.hold(&admin, &old, "an audit").await.unwrap();
    assert!(matches!(delete(&old).await, Err(RetentionError::Held { by, reason, .. })
        if by == "admin:alice" && reason == "an audit"));
    assert!(matches!(
        retention.hold(&admin, &old, "again").await,
        Err(RetentionError::Hold { held: true, .. })
    ));
    retention.release(&admin, &old).await.unwrap();
    assert!(matches!(retention.release(&admin, &old).await, Err(RetentionError::Hold { held: false, .. })));
    let opened = world.backups.open_restore(&admin, &old).await.unwrap();
    assert!(matches!(delete(&old).await, Err(RetentionError::InUse { .. })));
    world.backups.close_restore(&admin, opened.lease, "done").await.unwrap();
    for reason in ["", "  ", &"x".repeat(501)] {
        assert!(matches!(retention.delete(&admin, &old, reason, false).await, Err(RetentionError::Reason)));
    }
    retention.delete(&admin, &old, "a test", true).await.unwrap();
    assert_eq!(world.listed().await.len(), 2, "a dry run changes nothing");
    delete(&old).await.unwrap();
    assert!(matches!(delete(&old).await, Err(RetentionError::State { .. })));
    assert!(matches!(retention.hold(&admin, &old, "late").await, Err(RetentionError::State { .. })));
    assert!(matches!(retention.undelete(&admin, &new).await, Err(RetentionError::State { .. })));

    let agent_ctx = world.as_agent(&agent);
    assert!(retention.delete(&agent_ctx, &old, "a test", false).await.is_err(), "hosts delete nothing");
    assert_eq!(world.audited("backup.delete", "refused").await.len(), 8);
    assert_eq!(world.audited("backup.hold", "refused").await.len(), 2);
    assert_eq!(world.audited("backup.release", "refused").await.len(), 1);
    assert_eq!(world.audited("backup.undelete", "refused").await.len(), 1);
}

async fn rules_let_go_and_say_why(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(lone_backup(&world, &agent, &who, 1).await.backup.id);
    }
    assert_eq!(
        collect(&world, &retention, &agent).await,
        Collected::default(),
        "without rules nothing expires"
    );
    retention.hold(&world.as_admin(), &all[0].to_string(), "an audit").await.unwrap();
    world.set_rules(agent.series, &RetentionRules { last: 2, ..RetentionRules::default() }).await;
    let (plans, next) = retention.plans(&world.as_admin(), &everything()).await.unwrap();
    let why: Vec<String> = plans[0].verdicts.iter().map(|(_, verdict)| verdict.why()).collect();
    assert_eq!(
        why,
        ["among the last, last good backup", "among the last", "older than what the rules keep", "held"]
    );
    assert_eq!((plans[0].source.as_str(), next), ("data", None));
    assert_eq!(collect(&world, &retention, &agent).await.expired, 1);
    assert_eq!(world.listed().await, [all[3], all[2], all[0]]);
    let deleted = BackupQuery { expired: true, ..BackupQuery::default() };
    let deleted = world.backups.list(&world.as_admin(), &deleted, &Paging::first(10)).await.unwrap().rows;
    let note = deleted[0].backup.keeping.expired.clone().unwrap();
    assert_eq!((note.by.as_str(), note.reason.as_str()), ("coordinator", "older than what the rules keep"));
    assert_eq!(world.audited("backup.expire", "done").await.len(), 1);

    // What was undeleted stays for a week, whatever the rules say.
    retention.undelete(&world.as_admin(), &all[1].to_string()).await.unwrap();
    assert_eq!(collect(&world, &retention, &agent).await.expired, 0);
    world.clock.advance(Duration::from_secs(7 * 86_400));
    assert_eq!(collect(&world, &retention, &agent).await.expired, 1);
}

async fn a_retired_host_keeps_its_backups_until_its_day(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(lone_backup(&world, &agent, &who, 1).await.backup.id);
    }
    world.set_rules(agent.series, &RetentionRules { last: 2, ..RetentionRules::default() }).await;
    let (admin, day) = (world.as_admin(), world.clock.now().plus(Duration::from_secs(30 * 86_400)));
    world.retire(&agent, day).await;

    // Until then the rules go on, and the last good backup is not deleted.
    assert_eq!(collect(&world, &retention, &agent).await.expired, 2);
    assert_eq!(world.listed().await, [all[3], all[2]]);
    let refused = retention.delete(&admin, &all[3].to_string(), "a test", false).await;
    assert!(matches!(refused, Err(RetentionError::LastGood { .. })), "{refused:?}");
    world.clock.advance(day.since(world.clock.now()) - MINUTE);
    assert_eq!(collect(&world, &retention, &agent).await.expired, 0, "not before its day");
    assert_eq!(world.listed().await, [all[3], all[2]]);

    // On its day all of it goes, but what somebody holds.
    retention.hold(&admin, &all[2].to_string(), "the tax office").await.unwrap();
    let (plans, _) = retention.plans(&admin, &everything()).await.unwrap();
    assert_eq!(plans[0].term.to_string(), format!("nothing: its host is retired, until {day}"));
    let why: Vec<String> = plans[0].verdicts.iter().map(|(_, verdict)| verdict.why()).collect();
    assert_eq!(
        why,
        [format!("its host is retired, and its backups were to stay until {day}"), "held".to_owned()]
    );
    assert_eq!(collect(&world, &retention, &agent).await.expired, 1);
    assert_eq!(world.listed().await, [all[2]]);
    let events = world.audited("backup.expire", "done").await;
    let said = events.iter().find(|event| event.entity == format!("backup:{}", all[3])).unwrap();
    assert!(
        said.details.contains("its host is retired") && said.details.contains("undelete_until"),
        "{}",
        said.details
    );

    // It can be taken back like any other; a day later than that it is gone, and nothing holds what nobody holds.
    retention.undelete(&admin, &all[3].to_string()).await.unwrap();
    assert_eq!(collect(&world, &retention, &agent).await.expired, 0, "undeleted, it stays for a week");
    retention.release(&admin, &all[2].to_string()).await.unwrap();
    retention.delete(&admin, &all[3].to_string(), "not needed", false).await.unwrap();
    assert_eq!(collect(&world, &retention, &agent).await.expired, 1);
    assert!(world.listed().await.is_empty());
    world.clock.advance(GRACE);
    collect(&world, &retention, &agent).await;
    collect(&world, &retention, &agent).await;
    let left = world.bucket().await;
    assert!(!left.iter().any(|name| name.contains("/packs/") || name.contains("/manifests/")), "{left:?}");
}

async fn a_difference_stops_deletion(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = lone_backup(&world, &agent, &who, 1).await.backup.id;
    let new = lone_backup(&world, &agent, &who, 1).await;
    retention.delete(&world.as_admin(), &old.to_string(), "a test", false).await.unwrap();
    collect(&world, &retention, &agent).await;
    world.clock.advance(GRACE);

    // A manifest that nobody knows.
    let other = world.manifest(&agent, &new, &who, &[]);
    world.objects.put(&other.name.into(), other.bytes.clone().into(), Put::New).await.unwrap();
    let before = world.bucket().await;
    for _ in 0..2 {
        let done = collect(&world, &retention, &agent).await;
        assert!(done.halted && done.manifests == 0, "{done:?}");
    }
    let events = world.audited("series.halt", "done").await;
    assert_eq!(events.len(), 1, "one event for each difference: {events:?}");
    assert!(events[0].details.contains("the database does not know it"), "{events:?}");
    let (plans, _) = retention.plans(&world.as_admin(), &everything()).await.unwrap();
    assert!(plans[0].halted.as_ref().is_some_and(|why| why.contains("manifests/")));
    let same = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| !name.starts_with(MARKS_PREFIX)).collect()
    };
    assert_eq!(same(world.bucket().await), same(before));

    // It is gone again, and deletion goes on.
    world.objects.delete(&other.name.into(), None).await.unwrap();
    let done = collect(&world, &retention, &agent).await;
    assert!(!done.halted && done.manifests == 1, "{done:?}");
    assert_eq!(world.audited("series.halt", "done").await.len(), 2);
}

/// A backup whose time has come to be deleted, and another one.
async fn one_to_delete(world: &World, agent: &Agent, who: &Recipient, retention: &Retention) -> BackupId {
    let old = lone_backup(world, agent, who, 1).await.backup.id;
    lone_backup(world, agent, who, 1).await;
    retention.delete(&world.as_admin(), &old.to_string(), "a test", false).await.unwrap();
    collect(world, retention, agent).await;
    world.clock.advance(GRACE);
    old
}

/// The newest mark in the bucket.
async fn newest_mark(world: &World) -> Mark {
    world.bucket().await.iter().filter_map(|name| Mark::parse(name)).max().unwrap()
}

async fn a_mark_that_nobody_here_made_stops_deletion(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let generations = Generations::new(world.core.clone(), world.objects.clone());
    generations.mark(&generations.check().await.unwrap()).await.unwrap();
    let old = one_to_delete(&world, &agent, &who, &retention).await;
    // Another copy of this database has counted as far as this one.
    let own = newest_mark(&world).await;
    let other = Mark { nonce: own.nonce ^ 1, ..own };
    generations.put(&other).await.unwrap();
    for _ in 0..2 {
        assert!(collect(&world, &retention, &agent).await.halted);
    }
    assert_eq!(row(&world, old).await.state, BackupState::Expired);
    let events = world.audited("recovery.notice", "done").await;
    assert_eq!(events.len(), 1, "one event: {events:?}");
    assert!(events[0].details.contains("two copies"), "{events:?}");
    assert_eq!(world.audited("series.halt", "done").await.len(), 0);
    assert_eq!(newest_mark(&world).await.mark, own.mark, "and it does not make itself at home");
}

/// Database and bucket part while a round is under way: its next batch does not begin.
async fn deletion_is_allowed_batch_by_batch(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = one_to_delete(&world, &agent, &who, &retention).await;
    let round = &mut Round::default();
    // The round has its mark, and only then another coordinator counts further.
    assert!(!retention.collect(agent.series, round).await.unwrap().halted);
    assert_eq!(row(&world, old).await.state, BackupState::Deleted);
    one_to_delete(&world, &agent, &who, &retention).await;
    let own = newest_mark(&world).await;
    let generations = Generations::new(world.core.clone(), world.objects.clone());
    generations.put(&Mark { mark: own.mark + 1, ..own }).await.unwrap();
    let before = world.bucket().await;
    let done = retention.collect(agent.series, round).await.unwrap();
    assert!(done.halted && done.manifests == 0 && done.packs == 0, "{done:?}");
    assert_eq!(world.bucket().await, before);
    assert!(deletion_allowed(&world.core, &world.objects).await.is_err());
    assert_eq!(world.audited("recovery.notice", "done").await.len(), 1);
}

async fn while_it_recovers_admins_let_nothing_go(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let held = lone_backup(&world, &agent, &who, 1).await.backup.id.to_string();
    let deleted = lone_backup(&world, &agent, &who, 1).await.backup.id.to_string();
    let other = lone_backup(&world, &agent, &who, 1).await.backup.id.to_string();
    let admin = &world.as_admin();
    retention.hold(admin, &held, "an audit").await.unwrap();
    retention.delete(admin, &deleted, "a test", false).await.unwrap();
    Generations::new(world.core.clone(), world.objects.clone()).behind("a test").await.unwrap();

    let mut refused = Vec::new();
    refused.push(retention.delete(admin, &other, "a test", false).await.unwrap_err());
    refused.push(retention.delete(admin, &other, "a test", true).await.unwrap_err());
    refused.push(retention.release(admin, &held).await.unwrap_err());
    for error in &refused {
        assert!(error.to_string().contains("recover --from-bucket"), "{error}");
    }
    assert_eq!(world.audited("backup.delete", "refused").await.len(), 2);
    let events = world.audited("backup.release", "refused").await;
    assert!(events.len() == 1 && events[0].details.contains("recover --from-bucket"), "{events:?}");
    let policies = Policies::new(world.core.clone());
    let terms = Terms { canary: None, expect: None };
    let document = "name = \"p\"\n[retention]\nlast = 1\n";
    let refused = policies.apply(admin, document, &terms).await.unwrap_err();
    assert!(refused.to_string().contains("recover --from-bucket"), "{refused}");
    assert_eq!(world.audited("policy.apply", "refused").await.len(), 1);

    // What only reads or protects goes on.
    retention.plans(admin, &everything()).await.unwrap();
    retention.undelete(admin, &deleted).await.unwrap();
    retention.hold(admin, &other, "an audit").await.unwrap();
    assert_eq!(world.listed().await.len(), 3);
}

async fn it_keeps_away_from_what_must_not_run_beside_it(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    lone_backup(&world, &agent, &who, 1).await;
    let import = async |until| {
        let now = world.clock.now();
        world
            .core
            .store
            .run_tx("a test", move |tx, _| {
                Box::pin(async move {
                    series_operations::take(tx, agent.series, Operation::Import, "a", now, until).await
                })
            })
            .await
            .unwrap()
    };
    assert_eq!(import(world.clock.now().plus(MINUTE * 5)).await, None);
    assert!(collect(&world, &retention, &agent).await.busy);
    world.clock.advance(MINUTE * 5);
    assert!(!collect(&world, &retention, &agent).await.busy, "whoever took it is not heard of any more");
}

async fn prepare_takes_back_what_was_doomed(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = lone_backup(&world, &agent, &who, 2).await.backup.id;
    lone_backup(&world, &agent, &who, 1).await;
    // A run that was offered all packs …
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let offered = world.referable(&begun).await;
    assert_eq!(offered.len(), 3);
    // … while an old backup is deleted, and days pass.
    retention.delete(&world.as_admin(), &old.to_string(), "a test", false).await.unwrap();
    collect(&world, &retention, &agent).await;
    world.clock.advance(GRACE + LATE);
    let done = collect(&world, &retention, &agent).await;
    assert_eq!((done.manifests, done.packs), (1, 0), "an open run may name them");
    let manifest = world.manifest(&agent, &begun, &who, &offered);
    let put = world.prepared(&agent, &attempt, &manifest).await;
    assert_eq!(world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
    world.backups.commit(&world.as_agent(&agent), &attempt, begun.backup.id).await.unwrap();
    assert_eq!(pack_states(&world, &agent).await, [PackState::Live; 3]);
}

async fn what_is_about_to_be_deleted_is_not_referred_to(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let old = lone_backup(&world, &agent, &who, 1).await;
    lone_backup(&world, &agent, &who, 1).await;
    let mut reader = world.core.store.reader().await.unwrap();
    let gone =
        packs::referable(&mut reader, agent.series, old.backup.epoch, &[1], None, 10).await.unwrap()[0].1;
    drop(reader);
    retention.delete(&world.as_admin(), &old.backup.id.to_string(), "a test", false).await.unwrap();
    collect(&world, &retention, &agent).await;
    let attempt = {
        world.clock.advance(GRACE);
        let attempt = world.attempt(&agent).await;
        let begun = world.begin(&agent, &attempt).await;
        assert!(!world.referable(&begun).await.contains(&gone), "doomed packs are not offered");
        let done = collect(&world, &retention, &agent).await;
        assert_eq!(done.packs, 1, "a run that began after it was doomed cannot name it");
        (attempt, begun)
    };
    let manifest = world.manifest(&agent, &attempt.1, &who, &[gone]);
    let refused = world.prepare(&agent, &attempt.0, &manifest).await;
    assert!(matches!(refused, Err(BackupError::Manifest { .. })), "{refused:?}");
}

async fn a_vanished_object_is_shown_and_healed(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let (first, manifest) = world.back_up(&agent, &who, 2).await;
    world.clock.advance(MINUTE);
    let (second, _) = world.back_up(&agent, &who, 1).await;
    world.clock.advance(Duration::from_secs(86_400));
    let lost: ObjectName = manifest.public.packs[0].meta.name(agent.series);
    world.objects.delete(&lost.into(), None).await.unwrap();
    let done = retention.reconcile_once().await.unwrap();
    assert_eq!((done.listed, done.lost), (1, 1));
    for id in [first.backup.id, second.backup.id] {
        assert_eq!(row(&world, id).await.keeping.lost_packs, 1);
        let events = world.audited("backup.damage", "done").await;
        assert!(events.iter().any(|event| event.entity == format!("backup:{id}")), "{events:?}");
    }
    let mut reader = world.core.store.reader().await.unwrap();
    assert_eq!(retention::troubles(&mut reader).await.unwrap(), (2, 0));
    drop(reader);

    // The next backup does not refer to it, and is whole.
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    assert_eq!(world.referable(&begun).await.len(), 2);
    world.runs.fail(&world.as_agent(&agent), &attempt, Default::default(), false).await.unwrap();
    let third = world.back_up(&agent, &who, 1).await.0.backup.id;
    assert!(row(&world, third).await.keeping.is_whole());

    // A manifest that vanishes is shown as well, and taken back when it is there again.
    let name: ObjectName = manifest.name;
    world.clock.advance(Duration::from_secs(86_400));
    world.objects.delete(&name.into(), None).await.unwrap();
    retention.reconcile_once().await.unwrap();
    assert!(row(&world, first.backup.id).await.keeping.manifest_lost);
    world.objects.put(&name.into(), manifest.bytes.clone().into(), Put::New).await.unwrap();
    world.clock.advance(Duration::from_secs(86_400));
    retention.reconcile_once().await.unwrap();
    assert!(!row(&world, first.backup.id).await.keeping.manifest_lost);
}

async fn the_latest_backup_is_the_newest_good_one(database: Database) {
    let (world, agent, who, _) = world(database).await;
    let (first, manifest) = world.back_up(&agent, &who, 1).await;
    world.clock.advance(MINUTE);
    let second = lone_backup(&world, &agent, &who, 1).await.backup.id;
    let latest = async || {
        let opened = world.backups.open_restore(&world.as_admin(), "latest:store-1/data").await.unwrap();
        opened.view.backup.id
    };
    assert_eq!(latest().await, second);
    let mut reader = world.core.store.reader().await.unwrap();
    let lost = backups::get(&mut reader, second).await.unwrap().unwrap().prepared.unwrap().refs;
    let lost = packs::of_ordinals(&mut reader, agent.series, &lost).await.unwrap()[0].0.meta.sha256;
    drop(reader);
    world
        .objects
        .delete(&ObjectName::Pack { series: agent.series, sha256: lost }.into(), None)
        .await
        .unwrap();
    world.backups.check_listing(&world.as_admin(), agent.series).await.unwrap();
    assert_eq!(latest().await, first.backup.id, "the newer one cannot be restored whole");
    assert_eq!(manifest.public.packs.len(), 1);
}

/// What each of those that speak of the newest good backup says: the list of sources and its order, the overview, promises,
/// catch-up, and (where there is one) a restore of the latest.
async fn newest_good(world: &World, agent: &Agent) -> Option<BackupId> {
    let mut reader = world.core.store.reader().await.unwrap();
    let last = sources::last_backups(&mut reader, &[agent.series]).await.unwrap();
    let good = last.get(&agent.series).map(|backup| (backup.id, backup.created));
    let direct = backups::newest_good(&mut reader, agent.series).await.unwrap();
    assert_eq!(direct.map(|backup| (backup.id, backup.created)), good);

    let order = Paging { order: SourceOrder::LastBackup, ..Paging::first(10) };
    let plan = sources::query(&"".parse().unwrap(), &order);
    let sorted: Vec<i64> =
        plan.fetch(&mut reader, "a test's order", |row| row.try_get("position_value")).await.unwrap();
    assert_eq!(sorted, [good.map_or(0, |(_, created)| created.0)]);

    let bare = fleet::counts(&mut reader).await.unwrap().sources_without_good_backup;
    assert_eq!(bare, u32::from(good.is_none()));

    // A promise that nothing can keep: what it is measured by.
    let far = world.clock.now().plus(MINUTE * 60 * 24 * 365);
    let broken = source_policies::overdue(&mut reader, far, false, 10).await.unwrap();
    assert_eq!(broken[0].last_good, good.map(|(_, created)| created));
    let since = good.map_or(broken[0].assigned, |(_, created)| created);
    let promise = MINUTE * 60 * 26;
    let late = async |reader: &mut Tx, now| source_policies::counts(reader, now).await.unwrap().1;
    assert_eq!(late(&mut reader, since.plus(promise)).await, 0);
    assert_eq!(late(&mut reader, since.plus(promise + MINUTE)).await, 1);
    if let Some((id, _)) = good {
        assert_eq!(world.backups.find(&mut reader, "latest:store-1/data").await.unwrap().id, id);
    }
    good.map(|(id, _)| id)
}

async fn one_rule_says_which_backup_is_the_newest_good_one(database: Database) {
    let (world, agent, who, retention) = world(database).await;
    let policies = Policies::new(world.core.clone());
    let text = "name = \"p\"\n[alert]\noverdue_after = \"26h\"\n";
    policies.apply(&world.as_admin(), text, &Terms::default()).await.unwrap();
    Scheduler::new(world.core.clone(), world.runs.clone()).assign_once(None).await.unwrap();
    assert_eq!(newest_good(&world, &agent).await, None);
    let latest = async || {
        let mut reader = world.core.store.reader().await.unwrap();
        world.backups.find(&mut reader, "latest:store-1/data").await.unwrap().id
    };

    // Of nothing but a partial one that is what a restore takes, and it is not good.
    let partial = lone_backup_of(Status::Partial, &world, &agent, &who, 1).await.backup.id;
    assert_eq!((newest_good(&world, &agent).await, latest().await), (None, partial));
    let first = lone_backup(&world, &agent, &who, 1).await.backup.id;
    assert_eq!(newest_good(&world, &agent).await, Some(first));
    lone_backup_of(Status::Partial, &world, &agent, &who, 1).await;
    assert_eq!(newest_good(&world, &agent).await, Some(first), "a partial one does not take its place");
    let second = lone_backup(&world, &agent, &who, 1).await.backup.id;
    assert_eq!(newest_good(&world, &agent).await, Some(second));

    // A verification finds an object of the newest altered: the one before is the newest good one.
    let refs = row(&world, second).await.prepared.unwrap().refs;
    let mut reader = world.core.store.reader().await.unwrap();
    let pack = packs::of_ordinals(&mut reader, agent.series, &refs).await.unwrap()[0].0.meta.sha256;
    drop(reader);
    let key = ObjectName::Pack { series: agent.series, sha256: pack }.into();
    world.objects.delete(&key, None).await.unwrap();
    world.objects.put(&key, vec![7; 3_000].into(), Put::New).await.unwrap();
    let (said, _heard) = tokio::sync::mpsc::channel(100);
    let (admin, newest) = (world.as_admin(), second.to_string());
    world.verification.verify(&admin, &newest, Level::Hash, &said).await.unwrap();
    assert_eq!(newest_good(&world, &agent).await, Some(first));
    // The next backup stores what is missing anew.
    let third = lone_backup(&world, &agent, &who, 1).await.backup.id;
    assert_eq!(newest_good(&world, &agent).await, Some(third));

    // Deleted, and taken back.
    retention.delete(&world.as_admin(), &first.to_string(), "a test", false).await.unwrap();
    assert_eq!(newest_good(&world, &agent).await, Some(third));
    retention.undelete(&world.as_admin(), &first.to_string()).await.unwrap();
    world.backups.record_manifest(&world.as_admin(), third, true).await.unwrap();
    assert_eq!(newest_good(&world, &agent).await, Some(first), "the manifest of the newest is lost");
    world.backups.record_manifest(&world.as_admin(), third, false).await.unwrap();
    assert_eq!(newest_good(&world, &agent).await, Some(third));
}

on_both_databases!(
    one_rule_says_which_backup_is_the_newest_good_one,
    what_is_deleted_goes_for_good_after_three_days,
    what_must_stay_is_refused,
    rules_let_go_and_say_why,
    a_retired_host_keeps_its_backups_until_its_day,
    a_difference_stops_deletion,
    a_mark_that_nobody_here_made_stops_deletion,
    deletion_is_allowed_batch_by_batch,
    while_it_recovers_admins_let_nothing_go,
    it_keeps_away_from_what_must_not_run_beside_it,
    prepare_takes_back_what_was_doomed,
    what_is_about_to_be_deleted_is_not_referred_to,
    a_vanished_object_is_shown_and_healed,
    the_latest_backup_is_the_newest_good_one,
);

/// A plan of all sources.
fn everything() -> PlanQuery {
    PlanQuery { limit: 100, ..PlanQuery::default() }
}
