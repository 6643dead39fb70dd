//! What counts or chooses, asked for by many at once: real transactions, side by side on PostgreSQL at READ COMMITTED.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sealift_common::id::{InstanceId, RunId};
use sealift_common::protocol::Features;
use sealift_coordinator::backups::BackupError;
use sealift_coordinator::policy::Policies;
use sealift_coordinator::policy::service::Terms;
use sealift_coordinator::runs::state::{AttemptState, RunState};
use sealift_coordinator::runs::{Report, RunError, Runs};
use sealift_coordinator::scheduler::Scheduler;
use sealift_coordinator::sessions::Sessions;
use sealift_coordinator::store::{attempts, packs, source_policies, sources};
use sealift_coordinator::uploads::{MAX_AHEAD, UploadError};

use crate::support::database::{Database, on_both_databases};
use crate::support::{Agent, World, recipient};

/// A coordinator beside the world's own, on the same database, to which these agents seem to be connected: all of them call
/// themselves the world's, so that each may claim.
fn coordinator(
    world: &World,
    agents: &[&Agent],
) -> (Runs, Vec<sealift_coordinator::sessions::registry::SessionEnd>) {
    let sessions = Arc::new(Sessions::default());
    let open = |agent: &&Agent| {
        let instance = InstanceId::generate(&world.core.random);
        let (features, address) = (Features::all(), "127.0.0.1:1".parse().unwrap());
        sessions.open(agent.id, 1, instance, features, address, world.clock.now())
    };
    let ends = agents.iter().map(open).collect();
    (Runs::new(world.core.clone(), sessions, Duration::from_secs(120)), ends)
}

async fn started(world: &World, agent: &Agent) -> RunId {
    let mut reader = world.core.store.reader().await.unwrap();
    let source = sources::of_agent(&mut reader, agent.id).await.unwrap().remove(0);
    drop(reader);
    world.runs.start(&world.as_admin(), &[source], "").await.unwrap()[0].id
}

async fn a_run_is_claimed_once_by_however_many_coordinators(on: Database) {
    let world = World::on(&on).await;
    world.trust(&[recipient()]).await;
    let mut agents = Vec::new();
    for n in 0..6 {
        agents.push(world.agent(&format!("store-{n}")).await);
    }
    let all: Vec<&Agent> = agents.iter().collect();
    let coordinators: Vec<_> = (0..4).map(|_| coordinator(&world, &all)).collect();
    let mut runs = Vec::new();
    for agent in &agents {
        world.connected(agent).await;
        runs.push(started(&world, agent).await);
    }
    let sent = join_all(coordinators.iter().map(|(runs, _)| runs.dispatch_once())).await;
    let sent: usize = sent.into_iter().map(Result::unwrap).sum();
    // Whoever found a row locked left it to the other, who has claimed it.
    assert_eq!(sent, agents.len());
    let mut reader = world.core.store.reader().await.unwrap();
    for run in runs {
        let made = attempts::of_run(&mut reader, run).await.unwrap();
        assert_eq!(made.iter().map(|a| (a.number, a.epoch)).collect::<Vec<_>>(), [(1, 1)]);
    }
}

async fn a_source_has_one_run_however_many_ask_for_it(on: Database) {
    let world = World::on(&on).await;
    world.trust(&[recipient()]).await;
    let agent = world.agent("store-1").await;
    let asked: BTreeSet<RunId> =
        join_all((0..8).map(|_| started(&world, &agent))).await.into_iter().collect();
    assert_eq!(asked.len(), 1);
}

async fn packs_get_ordinals_of_their_own_and_no_more_than_allowed_are_ahead(on: Database) {
    let world = World::on(&on).await;
    world.trust(&[recipient()]).await;
    let agent = world.agent("store-1").await;
    let attempt = world.attempt(&agent).await;
    let begun = world.begin(&agent, &attempt).await;
    let ctx = world.as_agent(&agent);
    let made: Vec<_> = (0..12).map(|_| world.pack(&begun)).collect();
    let signed = join_all(made.iter().map(|pack| world.uploads.authorize(&ctx, &attempt, pack.new))).await;
    let ahead = signed.iter().filter(|outcome| matches!(outcome, Err(UploadError::TooFarAhead))).count();
    let signed = signed.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!((signed, ahead), (MAX_AHEAD as usize, made.len() - MAX_AHEAD as usize));
    let mut ordinals = BTreeSet::new();
    let mut reader = world.core.store.reader().await.unwrap();
    for pack in &made {
        let row = packs::get(&mut reader, agent.series, pack.new.facts.meta.sha256).await.unwrap();
        ordinals.extend(row.map(|row| row.ordinal));
    }
    assert_eq!(ordinals, (0..MAX_AHEAD).collect());
}

async fn commit_against_cancel_is_decided_by_prepare(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let admin = world.as_admin();
    for _ in 0..8 {
        let attempt = world.attempt(&agent).await;
        let begun = world.begin(&agent, &attempt).await;
        let pack = world.pack(&begun);
        world.store_pack(&agent, &attempt, &pack).await;
        let manifest = world.manifest(&agent, &begun, &who, &[pack.new.facts]);
        let run = attempt.run.to_string();
        let (prepared, cancelled) = tokio::join!(
            world.prepare(&agent, &attempt, &manifest),
            world.runs.cancel(&admin, &run, "not now")
        );
        let mut reader = world.core.store.reader().await.unwrap();
        let state = attempts::get(&mut reader, attempt.run, 1).await.unwrap().unwrap().state;
        drop(reader);
        match (&prepared, &cancelled) {
            (Ok(_), Err(RunError::Illegal(_))) => {
                assert_eq!(state, AttemptState::Preparing);
                let failed = Report { error: "enough".into(), ..Report::default() };
                world.runs.fail(&world.as_agent(&agent), &attempt, failed, false).await.unwrap();
            }
            (Err(BackupError::Run(RunError::Illegal(_))), Ok(_)) => {
                assert_eq!(state, AttemptState::Cancelling);
                let stopped = Report { error: "told to".into(), ..Report::default() };
                world.runs.fail(&world.as_agent(&agent), &attempt, stopped, true).await.unwrap();
            }
            other => panic!("one of the two wins: {other:?}"),
        }
        assert!(world.run_of(&attempt).await.state.is_over());
        world.clock.advance(Duration::from_secs(1));
    }
}

async fn a_manifest_that_the_agent_and_the_resolver_find_is_committed_once(on: Database) {
    let world = World::on(&on).await;
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    for n in 1..=4 {
        let attempt = world.attempt(&agent).await;
        let begun = world.begin(&agent, &attempt).await;
        let pack = world.pack(&begun);
        world.store_pack(&agent, &attempt, &pack).await;
        let manifest = world.manifest(&agent, &begun, &who, &[pack.new.facts]);
        let put = world.prepared(&agent, &attempt, &manifest).await;
        assert_eq!(world.send(&put, &manifest.bytes.clone().into()).await.0, 200);
        let ctx = world.as_agent(&agent);
        let (commit, resolved) =
            tokio::join!(world.backups.commit(&ctx, &attempt, begun.backup.id), world.backups.resolve_once());
        commit.unwrap();
        resolved.unwrap();
        assert_eq!(world.run_of(&attempt).await.state, RunState::Succeeded);
        assert_eq!(world.listed().await.len(), n);
    }
}

async fn a_lease_that_ends_while_its_agent_reports_ends_once(on: Database) {
    let world = World::on(&on).await;
    world.trust(&[recipient()]).await;
    let agent = world.agent("store-1").await;
    for _ in 0..8 {
        let attempt = world.attempt(&agent).await;
        world.clock.advance(Duration::from_secs(300));
        let ctx = world.as_agent(&agent);
        let report = Report { error: "the tool failed".into(), ..Report::default() };
        let expire = || world.runs.expire(world.core.lease_time(), None);
        let (failed, one, two) =
            tokio::join!(world.runs.fail(&ctx, &attempt, report, false), expire(), expire());
        let ended = one.unwrap() + two.unwrap();
        let state = failed.unwrap().state;
        assert!(
            matches!((state, ended), (AttemptState::Failed, 0) | (AttemptState::Lost, 1)),
            "{state}, ended {ended} times"
        );
        let run = world.run_of(&attempt).await;
        assert_eq!(run.state == RunState::Backoff, state == AttemptState::Lost);
        if !run.state.is_over() {
            world.runs.cancel(&world.as_admin(), &run.id.to_string(), "next").await.unwrap();
        }
    }
}

/// A pass over all sources that began before a policy was made must not take away what that policy has just put in force: the
/// instant that is due next would be lost.
async fn a_pass_of_before_does_not_undo_a_new_policy(on: Database) {
    let world = World::on(&on).await;
    let agent = world.agent("store-1").await;
    let policies = Policies::new(world.core.clone());
    let scheduler = Scheduler::new(world.core.clone(), world.runs.clone());
    let (admin, scheduler) = (world.as_admin(), &scheduler);
    let in_force = async || {
        let mut reader = world.core.store.reader().await.unwrap();
        source_policies::get(&mut reader, agent.series).await.unwrap().unwrap()
    };
    for round in 0..25 {
        let name = format!("p{round}");
        let text = format!("name = \"{name}\"\n[schedule]\ncron = \"0 * * * *\"\ntimezone = \"UTC\"\n");
        let passes = join_all((0..8).map(|_| async {
            for _ in 0..4 {
                scheduler.assign_once(None).await.unwrap();
            }
        }));
        let apply = async {
            policies.apply(&admin, &text, &Terms::default()).await.unwrap();
            scheduler.assign_once(None).await.unwrap();
            let row = in_force().await;
            // Whoever makes the schedule anew from here on makes it for a later instant.
            world.clock.advance(Duration::from_secs(3_600));
            row
        };
        let ((), seen) = futures::join!(async { drop(passes.await) }, apply);
        let after = in_force().await;
        assert!(seen.policy.is_some() && seen.next_due.is_some(), "round {round}: {seen:?}");
        assert_eq!((after.policy, after.next_due), (seen.policy, seen.next_due), "round {round}");
        policies.delete(&admin, &name, None, false).await.unwrap();
        scheduler.assign_once(None).await.unwrap();
    }
}

on_both_databases!(
    a_pass_of_before_does_not_undo_a_new_policy,
    a_run_is_claimed_once_by_however_many_coordinators,
    a_source_has_one_run_however_many_ask_for_it,
    packs_get_ordinals_of_their_own_and_no_more_than_allowed_are_ahead,
    commit_against_cancel_is_decided_by_prepare,
    a_manifest_that_the_agent_and_the_resolver_find_is_committed_once,
    a_lease_that_ends_while_its_agent_reports_ends_once,
);
