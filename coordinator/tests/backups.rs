//! Backups from Begin to Commit against a real database and a real S3 server: what an honest agent gets, what a hostile one
//! does not, and what is left when somebody dies in between.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sealift_coordinator::backups::BackupError;
use sealift_coordinator::backups::current::CurrentError;
use sealift_coordinator::backups::prepare::PrepareAnswer;
use sealift_coordinator::backups::resolve::Resolved;
use sealift_coordinator::objects::Put;
use sealift_coordinator::objects::signing::{MAX_PACK, MIN_SIGNED};
use sealift_coordinator::runs::state::RunState;
use sealift_coordinator::runs::{Report, RunError};
use sealift_coordinator::store::packs::{PackFacts, PackState};
use sealift_coordinator::uploads::{MAX_AHEAD, NewPack, UploadError};
use sealift_coordinator::verification::{Level, Progress};
use support::database::{Database, on_both_databases};
use support::{World, head_of, recipient, refused};

/// Longer than any signature, and than its grace.
const LONG: Duration = Duration::from_secs(3_600);

async fn a_backup_commits_and_the_next_one_refers_to_its_packs(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let (first, manifest) = world.back_up(&agent, &who, 3).await;
    assert_eq!((first.backup.sequence, first.backup.previous), (1, None));
    assert_eq!(world.listed().await, [first.backup.id]);

    let (second, _) = world.back_up(&agent, &who, 1).await;
    assert_eq!(second.backup.sequence, 2);
    assert_eq!(second.backup.previous, Some(manifest.sha256));
    let attempt = world.attempt(&agent).await;
    let third = world.begin(&agent, &attempt).await;
    assert_eq!(world.referable(&third).await.len(), 4);
    assert_eq!(world.audited("backup.commit", "done").await.len(), 2);

    let view = world.backups.show(&world.as_admin(), "latest:store-1/data").await.unwrap();
    assert_eq!(view.backup.id, second.backup.id);
}

async fn every_step_may_be_asked_again(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let (ctx, begun) = (world.as_agent(&agent), world.begin(&agent, &attempt).await);
    let pack = world.pack(&begun);
    let facts = pack.new.facts;
    for status in [200, 412] {
        let put = world.uploads.authorize(&ctx, &attempt, pack.new).await.unwrap();
        assert_eq!(world.send(&put, &pack.bytes).await.0, status);
        world.uploads.confirm(&ctx, &attempt, facts.origin, facts.meta.sha256).await.unwrap();
    }
    let manifest = world.manifest(&agent, &begun, &who, &[facts]);
    let early = world.backups.commit(&ctx, &attempt, begun.backup.id).await;
    assert!(matches!(early, Err(BackupError::NotPrepared { .. })), "{early:?}");
    world.prepared(&agent, &attempt, &manifest).await;
    let put = world.prepared(&agent, &attempt, &manifest).await;
    let early = world.backups.commit(&ctx, &attempt, begun.backup.id).await;
    assert!(matches!(early, Err(BackupError::NotArrived { .. })), "{early:?}");
    assert_eq!(world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
    world.backups.commit(&ctx, &attempt, begun.backup.id).await.unwrap();
    world.backups.commit(&ctx, &attempt, begun.backup.id).await.unwrap();
    let again = world.prepare(&agent, &attempt, &manifest).await.unwrap();
    assert_eq!(again, PrepareAnswer::AlreadyCommitted);
    assert_eq!(world.listed().await, [begun.backup.id]);
}

async fn a_hostile_agent_gets_nothing_signed_and_nothing_stored(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let (agent, victim) = (world.agent("store-1").await, world.agent("store-2").await);
    let attempt = world.attempt(&agent).await;
    let theirs = world.attempt(&victim).await;
    let (ctx, begun) = (world.as_agent(&agent), world.begin(&agent, &attempt).await);
    let their_backup = world.begin(&victim, &theirs).await;
    let pack = world.pack(&begun);

    // Another host's attempt, another host's backup under one's own attempt, a stale epoch.
    let outcome = world.uploads.authorize(&ctx, &theirs, world.pack(&their_backup).new).await;
    assert!(
        matches!(&outcome, Err(UploadError::Current(CurrentError::Run(RunError::NotYours { .. })))),
        "{outcome:?}"
    );
    let outcome = world.uploads.authorize(&ctx, &attempt, world.pack(&their_backup).new).await;
    assert!(refused(&outcome), "{outcome:?}");
    let mut stale = attempt;
    stale.epoch -= 1;
    assert!(refused(&world.uploads.authorize(&ctx, &stale, pack.new).await));

    // Lengths that nothing has.
    for size in [0, MIN_SIGNED - 1, MAX_PACK + 1, u64::MAX] {
        let mut odd = pack.new;
        odd.facts.meta.size = size;
        assert!(refused(&world.uploads.authorize(&ctx, &attempt, odd).await), "{size}");
    }
    let mut odd = pack.new;
    odd.facts.meta.header_len = u32::MAX;
    assert!(refused(&world.uploads.authorize(&ctx, &attempt, odd).await));

    // Not confirmed without having been signed for; not stored without having been sent.
    let sha256 = pack.new.facts.meta.sha256;
    assert!(refused(&world.uploads.confirm(&ctx, &attempt, begun.backup.id, sha256).await));
    let put = world.uploads.authorize(&ctx, &attempt, pack.new).await.unwrap();
    let absent = world.uploads.confirm(&ctx, &attempt, begun.backup.id, sha256).await;
    assert!(matches!(absent, Err(UploadError::NotThere { .. })), "{absent:?}");

    // A signature is good for those bytes under that name alone.
    let other = world.pack(&begun).bytes;
    assert!(world.send(&put, &other).await.0 >= 400);
    let elsewhere = put.url.replace(&agent.series.to_string(), &victim.series.to_string());
    let mut moved = put.clone();
    moved.url = elsewhere;
    assert_eq!(world.send(&moved, &pack.bytes).await.0, 403);
    let mut longer = pack.bytes.to_vec();
    longer.push(0);
    assert!(world.send(&put, &longer.into()).await.0 >= 400);
    let mut riding = put.clone();
    riding.headers.push(("x-amz-acl".into(), "public-read".into()));
    assert_eq!(world.send(&riding, &pack.bytes).await.0, 403);

    assert_eq!(world.bucket().await, Vec::<String>::new());
    assert_eq!(world.audited("pack.authorize", "refused").await.len(), 8);
    assert_eq!(world.audited("pack.confirm", "refused").await.len(), 2);

    // Nothing is committed that was not prepared, is another's, or was never there; each time it is on record.
    let commit = async |attempt, backup| world.backups.commit(&ctx, attempt, backup).await.unwrap_err();
    let outcome = commit(&attempt, begun.backup.id).await;
    assert!(matches!(outcome, BackupError::NotPrepared { .. }), "{outcome:?}");
    let outcome = commit(&attempt, their_backup.backup.id).await;
    assert!(matches!(outcome, BackupError::Current(CurrentError::Backup { .. })), "{outcome:?}");
    let outcome = commit(&theirs, their_backup.backup.id).await;
    assert!(matches!(outcome, BackupError::Run(RunError::NotYours { .. })), "{outcome:?}");
    assert_eq!(world.audited("backup.commit", "refused").await.len(), 3);
}

async fn no_more_than_four_packs_are_ahead(on: Database) {
    let world = World::on(&on).await;
    world.trust(&[recipient()]).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let (ctx, begun) = (world.as_agent(&agent), world.begin(&agent, &attempt).await);
    let packs: Vec<_> = (0..=MAX_AHEAD).map(|_| world.pack(&begun)).collect();
    for pack in &packs[..MAX_AHEAD as usize] {
        world.uploads.authorize(&ctx, &attempt, pack.new).await.unwrap();
    }
    let fifth = &packs[MAX_AHEAD as usize];
    let refused = world.uploads.authorize(&ctx, &attempt, fifth.new).await;
    assert!(matches!(refused, Err(UploadError::TooFarAhead)), "{refused:?}");
    world.store_pack(&agent, &attempt, &packs[0]).await;
    world.uploads.authorize(&ctx, &attempt, fifth.new).await.unwrap();
}

async fn a_manifest_must_say_what_the_coordinator_knows(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let (agent, victim) = (world.agent("store-1").await, world.agent("store-2").await);
    let (foreign, _) = world.back_up(&victim, &who, 1).await;
    let attempt = world.attempt(&agent).await;
    let theirs = {
        let attempt = world.attempt(&victim).await;
        let begun = world.begin(&victim, &attempt).await;
        world.referable(&begun).await
    };
    let begun = world.begin(&agent, &attempt).await;
    let (stored, sent) = (world.pack(&begun), world.pack(&begun));
    world.store_pack(&agent, &attempt, &stored).await;
    let put = world.uploads.authorize(&world.as_agent(&agent), &attempt, sent.new).await.unwrap();
    assert_eq!(world.send(&put, &sent.bytes).await.0, 200);
    let before = world.bucket().await;

    let invented = world.pack(&begun).new.facts;
    let mut resized = stored.new.facts;
    resized.meta.size += 1;
    let mut other_origin = stored.new.facts;
    other_origin.origin = foreign.backup.id;
    let unconfirmed = sent.new.facts;
    for packs in [vec![invented], vec![theirs[0]], vec![resized], vec![other_origin], vec![unconfirmed]] {
        let manifest = world.manifest(&agent, &begun, &who, &packs);
        let outcome = world.prepare(&agent, &attempt, &manifest).await;
        assert!(matches!(outcome, Err(BackupError::Manifest { .. })), "{packs:?}: {outcome:?}");
    }

    let packs = [stored.new.facts];
    let refuse = |what: &'static str, outcome: Result<PrepareAnswer, BackupError>| {
        assert!(matches!(outcome, Err(BackupError::Manifest { .. })), "{what}: {outcome:?}");
    };
    let mut later = begun.clone();
    later.backup.sequence += 1;
    let manifest = world.manifest(&agent, &later, &who, &packs);
    refuse("another sequence number", world.prepare(&agent, &attempt, &manifest).await);
    let mut renonced = begun.clone();
    renonced.backup.session_nonce = [0; 32];
    let manifest = world.manifest(&agent, &renonced, &who, &packs);
    refuse("another nonce", world.prepare(&agent, &attempt, &manifest).await);
    let manifest = world.manifest(&agent, &begun, &recipient(), &packs);
    refuse("another recipient", world.prepare(&agent, &attempt, &manifest).await);
    let impostor = support::Agent {
        id: agent.id,
        name: agent.name.clone(),
        series: agent.series,
        signing: sealift_common::crypto::SigningKey::generate(&world.core.random),
        secret: agent.secret.clone(),
    };
    let manifest = world.manifest(&impostor, &begun, &who, &packs);
    refuse("another key", world.prepare(&agent, &attempt, &manifest).await);
    let manifest = world.manifest(&agent, &begun, &who, &packs);
    let mut head = head_of(&manifest);
    head.signature[0] ^= 1;
    let public: Bytes = manifest.public_bytes.clone().into();
    let ctx = world.as_agent(&agent);
    refuse("a broken signature", world.backups.prepare(&ctx, &attempt, head, public).await);

    assert_eq!(world.audited("backup.prepare", "refused").await.len(), 10);
    assert_eq!(world.bucket().await, before);
    world.prepared(&agent, &attempt, &manifest).await;
}

async fn a_manifest_that_never_arrives_leaves_no_ghost(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let pack = world.pack(&begun);
    world.store_pack(&agent, &attempt, &pack).await;
    let manifest = world.manifest(&agent, &begun, &who, &[pack.new.facts]);
    world.prepared(&agent, &attempt, &manifest).await;

    // The coordinator restarts: the signature may still be used.
    let waiting = Resolved { waiting: 1, ..Resolved::default() };
    assert_eq!(world.backups.resolve_once().await.unwrap(), waiting);
    // The store refused the PUT: the agent gives up, and the next attempt is fine.
    let report = Report { error: "the store refused the manifest".into(), ..Report::default() };
    world.runs.fail(&world.as_agent(&agent), &attempt, report, false).await.unwrap();
    assert_eq!(world.run_of(&attempt).await.state, RunState::Failed);
    assert!(world.listed().await.is_empty());
    let (next, next_manifest) = world.back_up(&agent, &who, 1).await;
    assert_eq!(next.backup.sequence, 2, "a number that was signed for is never given again");
    assert_eq!(next.backup.previous, None, "of the newest manifest known");
    assert_eq!(world.listed().await, [next.backup.id]);

    world.clock.advance(LONG);
    let abandoned = Resolved { abandoned: 1, ..Resolved::default() };
    assert_eq!(world.backups.resolve_once().await.unwrap(), abandoned);
    assert_eq!(world.backups.resolve_once().await.unwrap(), Resolved::default());
    assert_eq!(world.listed().await, [next.backup.id]);

    // A store that finishes a PUT hours late: what readers of the bucket see, the coordinator sees.
    let key = manifest.name.into();
    world.objects.put(&key, manifest.bytes.clone().into(), Put::New).await.unwrap();
    let late = Resolved { committed: 1, ..Resolved::default() };
    assert_eq!(world.backups.resolve_once().await.unwrap(), late);
    assert_eq!(world.listed().await.len(), 2);
    let attempt = world.attempt(&agent).await;
    let third = world.begin(&agent, &attempt).await;
    assert_eq!((third.backup.sequence, third.backup.previous), (3, Some(next_manifest.sha256)));
}

async fn a_manifest_that_arrived_is_committed_without_its_agent(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let pack = world.pack(&begun);
    world.store_pack(&agent, &attempt, &pack).await;
    let manifest = world.manifest(&agent, &begun, &who, &[pack.new.facts]);
    let put = world.prepared(&agent, &attempt, &manifest).await;
    assert_eq!(world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
    let committed = Resolved { committed: 1, ..Resolved::default() };
    assert_eq!(world.backups.resolve_once().await.unwrap(), committed);
    assert_eq!(world.listed().await, [begun.backup.id]);
    assert_eq!(world.run_of(&attempt).await.state, RunState::Succeeded);
    world.backups.commit(&world.as_agent(&agent), &attempt, begun.backup.id).await.unwrap();
}

async fn begin_after_a_lost_session_goes_on_with_what_is_stored(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let first = world.begin(&agent, &attempt).await;
    let (stored, signed) = (world.pack(&first), world.pack(&first));
    world.store_pack(&agent, &attempt, &stored).await;
    let ctx = world.as_agent(&agent);
    world.uploads.authorize(&ctx, &attempt, signed.new).await.unwrap();
    let second = world.begin(&agent, &attempt).await;
    assert_ne!(second.backup.id, first.backup.id);
    assert_ne!(second.backup.session_nonce, first.backup.session_nonce);
    assert_eq!(second.backup.sequence, 1, "nothing was prepared");
    assert_eq!(world.referable(&second).await, [stored.new.facts]);
    // Nothing more under the old backup: its data key is gone.
    assert!(refused(&world.uploads.authorize(&ctx, &attempt, world.pack(&first).new).await));
    let manifest = world.manifest(&agent, &first, &who, &[stored.new.facts]);
    assert!(world.prepare(&agent, &attempt, &manifest).await.is_err());
    let manifest = world.manifest(&agent, &second, &who, &[stored.new.facts]);
    world.prepared(&agent, &attempt, &manifest).await;
}

async fn a_new_recipient_gets_packs_of_its_own(on: Database) {
    let world = World::on(&on).await;
    let (one, two) = (recipient(), recipient());
    world.trust(std::slice::from_ref(&one)).await;
    let agent = world.agent("store-1").await;
    let (_, _) = world.back_up(&agent, &one, 2).await;
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    assert_eq!(world.referable(&begun).await.len(), 2);
    // Another recipient while the backup runs: what it is sealed to is no longer enough.
    world.trust(&[one.clone(), two]).await;
    let manifest = world.manifest(&agent, &begun, &one, &world.referable(&begun).await);
    assert!(world.prepare(&agent, &attempt, &manifest).await.is_err());
    let begun = world.begin(&agent, &attempt).await;
    assert!(world.referable(&begun).await.is_empty(), "the new recipient cannot open the old packs");
    // Fewer recipients: those that are left can open everything.
    world.trust(std::slice::from_ref(&one)).await;
    let begun = world.begin(&agent, &attempt).await;
    assert_eq!(world.referable(&begun).await.len(), 2);
}

async fn a_restore_is_signed_its_own_objects_and_no_others(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let (agent, other) = (world.agent("store-1").await, world.agent("store-2").await);
    let (_, first) = world.back_up(&agent, &who, 2).await;
    let (backup, manifest) = world.back_up(&agent, &who, 1).await;
    let (_, foreign) = world.back_up(&other, &who, 1).await;
    let admin = world.as_admin();
    let opened = world.backups.open_restore(&admin, "latest:store-1/data").await.unwrap();
    assert_eq!(opened.view.backup.id, backup.backup.id);
    assert_eq!(opened.witness, Some((manifest.sha256, 2)));
    let names: Vec<String> = std::iter::once(manifest.name.to_string())
        .chain(manifest.public.packs.iter().map(|pack| pack.meta.name(agent.series).to_string()))
        .collect();
    assert_eq!(names.len(), 4);
    let signed = world.backups.sign_gets(&admin, opened.lease, &names).await.unwrap();
    let (status, body) = world.send(&signed[0], &Bytes::new()).await;
    assert_eq!((status, body.as_ref()), (200, manifest.bytes.as_slice()));

    let foreign_pack = foreign.public.packs[0].meta.name(other.series).to_string();
    for name in [first.name.to_string(), foreign.name.to_string(), foreign_pack, "coordinator/x".into()] {
        let outcome = world.backups.sign_gets(&admin, opened.lease, &[name]).await;
        assert!(matches!(outcome, Err(BackupError::ForeignObject { .. })), "{outcome:?}");
    }
    assert_eq!(world.audited("restore.sign", "refused").await.len(), 4);
    world.backups.close_restore(&admin, opened.lease, "done").await.unwrap();
    let closed = world.backups.sign_gets(&admin, opened.lease, &names).await;
    assert!(matches!(closed, Err(BackupError::RestoreOver)), "{closed:?}");
}

/// All that a verification says.
async fn verify(world: &World, level: Level) -> Progress {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
    let admin = world.as_admin();
    world.verification.verify(&admin, "latest:store-1/data", level, &sender).await.unwrap();
    drop(sender);
    let mut all = Progress::default();
    while let Some(said) = receiver.recv().await {
        let findings = std::mem::take(&mut all.findings);
        all = Progress { findings: [findings, said.findings.clone()].concat(), ..said };
    }
    all
}

async fn what_is_lost_is_found_and_not_referred_to_again(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let (_, manifest) = world.back_up(&agent, &who, 3).await;
    for level in [Level::Presence, Level::Hash] {
        let said = verify(&world, level).await;
        assert!(said.done && said.findings.is_empty(), "{said:?}");
        assert_eq!((said.packs_checked, said.packs_total), (3, 3));
    }
    world.clock.advance(Duration::from_secs(1)); // a listing says nothing about what was stored since it began
    let name = |pack: usize| manifest.public.packs[pack].meta.name(agent.series);
    world.objects.delete(&name(0).into(), None).await.unwrap();
    let said = verify(&world, Level::Presence).await;
    assert_eq!(said.findings.len(), 1);
    assert_eq!(said.findings[0].object, name(0).to_string());

    world.objects.put(&name(1).into(), Bytes::from(vec![0; 3_000]), Put::Replace).await.unwrap();
    assert_eq!(verify(&world, Level::Presence).await.findings.len(), 1);
    let said = verify(&world, Level::Hash).await;
    assert_eq!(said.findings.len(), 2, "{said:?}");
    assert_eq!(said.bytes_checked, 9_000 - 3_000);
    assert_eq!(world.audited("backup.verify", "failed").await.len(), 3);

    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let left: Vec<PackFacts> = world.referable(&begun).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].meta.sha256, manifest.public.packs[2].meta.sha256);
}

async fn a_day_later_a_missing_pack_is_noticed_by_begin(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let (_, manifest) = world.back_up(&agent, &who, 2).await;
    world.clock.advance(Duration::from_secs(25 * 3_600));
    let gone = manifest.public.packs[0].meta.name(agent.series);
    world.objects.delete(&gone.into(), None).await.unwrap();
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    assert_eq!(world.referable(&begun).await.len(), 1);
    let events = world.audited("backup.verify", "done").await;
    assert!(events.iter().any(|event| event.details.contains(PackState::Missing.as_str())), "{events:?}");
}

async fn indexes_are_read_from_the_own_series_only(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let (agent, other) = (world.agent("store-1").await, world.agent("store-2").await);
    let (_, foreign) = world.back_up(&other, &who, 1).await;
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let pack = world.pack(&begun);
    world.store_pack(&agent, &attempt, &pack).await;
    let NewPack { facts, .. } = pack.new;
    let asked = [facts.meta.sha256, foreign.public.packs[0].meta.sha256];
    let ctx = world.as_agent(&agent);
    let (series, found) = world.uploads.indexes(&ctx, &attempt, &asked).await.unwrap();
    assert_eq!(series, agent.series);
    assert_eq!(found, [Some(facts), None]);
    let tail = world.uploads.read_index(series, &facts).await.unwrap().unwrap();
    assert_eq!(tail, pack.bytes.slice(3_000 - 620..3_000 - 20));
    world.objects.delete(&facts.meta.name(series).into(), None).await.unwrap();
    assert_eq!(world.uploads.read_index(series, &facts).await.unwrap(), None);
}

on_both_databases!(
    a_backup_commits_and_the_next_one_refers_to_its_packs,
    every_step_may_be_asked_again,
    a_hostile_agent_gets_nothing_signed_and_nothing_stored,
    no_more_than_four_packs_are_ahead,
    a_manifest_must_say_what_the_coordinator_knows,
    a_manifest_that_never_arrives_leaves_no_ghost,
    a_manifest_that_arrived_is_committed_without_its_agent,
    begin_after_a_lost_session_goes_on_with_what_is_stored,
    a_new_recipient_gets_packs_of_its_own,
    a_restore_is_signed_its_own_objects_and_no_others,
    what_is_lost_is_found_and_not_referred_to_again,
    a_day_later_a_missing_pack_is_noticed_by_begin,
    indexes_are_read_from_the_own_series_only,
);
