//! The life of runs, with a host that is driven by hand.

use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::id::{AgentId, Random, RunId, SeriesId};
use sealift_coordinator::store::{StoreError, agents, runs as run_rows, sources};
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as FromAgent;
use sealift_proto::v1::coordinator_message::Message as ToAgent;
use sealift_proto::v1::run_admin_client::RunAdminClient;
use tonic::Code;

use crate::harness::Server;
use crate::support::database::{Database, on_both_databases};

async fn start(server: &Server, source: &str) -> v1::Run {
    let mut runs = RunAdminClient::new(server.admin());
    let request = v1::StartRunsRequest { source: source.into(), ..Default::default() };
    runs.start_runs(request).await.unwrap().into_inner().runs.remove(0)
}

fn state(attempt: &v1::AttemptRef, phase: v1::AttemptPhase) -> v1::AttemptState {
    let failure = if phase == v1::AttemptPhase::Interrupted { "power cut".to_owned() } else { String::new() };
    v1::AttemptState { attempt: Some(attempt.clone()), phase: phase.into(), failure, ..Default::default() }
}

async fn a_run_waits_for_its_host_and_is_cancelled_through_it(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    host.visit(&server, &["db"]).await;
    let mut runs = RunAdminClient::new(server.admin());
    let request = v1::StartRunsRequest { source: "store-1/db".into(), ..Default::default() };
    let error = runs.start_runs(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("trust policy"), "{error}");
    server.set_trust().await.unwrap();

    let run = start(&server, "store-1/db").await;
    assert_eq!(start(&server, "store-1/db").await.id, run.id, "one run at a time waits for a source");
    let mut session = host.connect(&server, &["db"]).await;
    let offer = session.offer().await;
    assert_eq!(offer.source, "db");
    session.accept(&offer).await;
    server.run_until(&run.id, |run| run.attempts.iter().any(|a| a.state == "accepted")).await;
    let progress = v1::Progress { attempt: offer.attempt.clone(), raw_bytes: 42, ..Default::default() };
    session.tell(FromAgent::Progress(progress)).await;
    server.run_until(&run.id, |run| run.progress.as_ref().is_some_and(|p| p.raw_bytes == 42)).await;

    let cancel = v1::CancelRunRequest { run: run.id[..8].to_owned(), reason: "not now".into() };
    let cancelling = runs.cancel_run(cancel).await.unwrap().into_inner();
    assert_eq!(cancelling.attempts[0].state, "cancelling");
    match session.next().await.unwrap() {
        ToAgent::Cancel(cancel) => assert_eq!(cancel.attempt, offer.attempt),
        other => panic!("expected a cancel, got {other:?}"),
    }
    // The host is gone before it says so: the lease ends it.
    drop(session);
    server.clock.advance(Duration::from_secs(120));
    let ended = server.run_until(&run.id, |run| run.ended_ms != 0).await;
    assert_eq!(ended.state, "cancelled");
    assert_eq!(server.outcomes("run.cancel").await, ["intended", "done"]);
    server.stop().await;
}

async fn attempts_are_lost_with_their_process_and_tried_three_times(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    let mut session = host.connect(&server, &["db"]).await;
    let run = start(&server, "store-1/db").await;
    let first = session.offer().await.attempt.unwrap();
    assert_eq!((first.number, first.epoch), (1, 1));

    let lost = vec![state(&first, v1::AttemptPhase::Interrupted)];
    let mut session = host.connect_with(&server, &["db"], lost).await.unwrap();
    assert_eq!(session.welcome.lost, std::slice::from_ref(&first));
    let waiting = server.run(&run.id).await;
    assert_eq!((waiting.state.as_str(), waiting.attempts[0].error.as_str()), ("backoff", "power cut"));
    server.clock.advance(Duration::from_secs(6));
    let second = session.offer().await;
    assert_eq!(second.attempt.as_ref().map(|a| (a.number, a.epoch)), Some((2, 2)));

    // The host refuses for now; then the third attempt is never answered.
    let rejected = v1::OfferReply {
        attempt: second.attempt,
        accepted: false,
        reject: v1::RejectReason::Busy.into(),
        ..Default::default()
    };
    session.tell(FromAgent::OfferReply(rejected)).await;
    server.run_until(&run.id, |run| run.state == "backoff" && run.attempts.len() == 2).await;
    server.clock.advance(Duration::from_secs(31));
    assert_eq!(session.offer().await.attempt.unwrap().number, 3);
    server.clock.advance(Duration::from_secs(60));
    let failed = server.run_until(&run.id, |run| run.ended_ms != 0).await;
    assert_eq!(failed.state, "failed");
    let states: Vec<_> = failed.attempts.iter().map(|a| a.state.as_str()).collect();
    assert_eq!(states, ["lost", "rejected", "lost"]);
    assert!(failed.error.contains("did not answer"), "{}", failed.error);

    // Late words about what is over change nothing.
    session
        .tell(FromAgent::OfferReply(v1::OfferReply {
            attempt: Some(first),
            accepted: true,
            ..Default::default()
        }))
        .await;
    session.tell(FromAgent::Heartbeat(v1::Heartbeat::default())).await;
    assert_eq!(server.run(&run.id).await.state, "failed");
    server.stop().await;
}

async fn a_running_attempt_goes_on_after_the_coordinator_was_away(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    let mut session = host.connect(&server, &["db"]).await;
    let run = start(&server, "store-1/db").await;
    let offer = session.offer().await;
    session.accept(&offer).await;
    server.run_until(&run.id, |run| run.attempts.iter().any(|a| a.state == "accepted")).await;
    let attempt = offer.attempt.unwrap();
    let later = server.clock.clone();
    server.stop().await;
    assert!(matches!(session.next().await, Ok(ToAgent::Reconnect(_)) | Err(_)));

    later.advance(Duration::from_secs(240)); // much longer than a lease
    let server = Server::start_at(&on, dir.path(), later).await;
    let running = vec![state(&attempt, v1::AttemptPhase::Running)];
    let session = host.connect_with(&server, &["db"], running).await.unwrap();
    assert!(session.welcome.lost.is_empty());
    let now = server.run(&run.id).await;
    assert_eq!((now.state.as_str(), now.attempts.len()), ("active", 1));
    assert_eq!(now.attempts[0].state, "accepted");

    // Started anew without a word about it: its process is gone.
    let session = host.connect(&server, &["db"]).await;
    assert_eq!(session.welcome.lost, [attempt]);
    assert_eq!(server.run(&run.id).await.attempts[0].state, "lost");
    server.stop().await;
}

async fn a_failure_whose_report_nobody_took_is_told_by_hello(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    let mut session = host.connect(&server, &["db"]).await;
    let run = start(&server, "store-1/db").await;
    let offer = session.offer().await;
    session.accept(&offer).await;
    server.run_until(&run.id, |run| run.attempts.iter().any(|a| a.state == "accepted")).await;
    let attempt = offer.attempt.unwrap();
    let failed = v1::AttemptState {
        failed: true,
        failure: "pg_dump ended with exit status: 1".into(),
        stderr: "no such database".into(),
        ..state(&attempt, v1::AttemptPhase::Interrupted)
    };
    let session = host.connect_with(&server, &["db"], vec![failed]).await.unwrap();
    assert_eq!(session.welcome.lost, [attempt]);
    let ended = server.run(&run.id).await;
    assert_eq!(ended.state, "failed", "not worth another attempt, as the host said");
    assert_eq!(ended.attempts[0].state, "failed");
    assert_eq!(ended.attempts[0].stderr, "no such database");
    assert_eq!(server.outcomes("attempt.fail").await, ["done"]);
    server.stop().await;
}

async fn runs_are_listed_newest_first_in_pages_by_agent_state_and_labels(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    for name in ["store-1", "store-2"] {
        server.enrolled(name).await.visit(&server, &["a", "b"]).await;
    }
    let mut runs = RunAdminClient::new(server.admin());
    let all = v1::StartRunsRequest { selector: "!none".into(), ..Default::default() };
    assert_eq!(runs.start_runs(all).await.unwrap().into_inner().runs.len(), 4);
    let nothing = runs.start_runs(v1::StartRunsRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = Some(v1::Page { limit: 3, after, ..v1::Page::default() });
        let reply =
            runs.list_runs(v1::ListRunsRequest { page, ..Default::default() }).await.unwrap().into_inner();
        seen.extend(reply.runs.into_iter().map(|run| run.id));
        after = reply.next;
        if after.is_empty() {
            break;
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 4);
    let count = async |request| {
        RunAdminClient::new(server.admin()).list_runs(request).await.unwrap().into_inner().runs.len()
    };
    assert_eq!(count(v1::ListRunsRequest { source: "store-1".into(), ..Default::default() }).await, 2);
    assert_eq!(count(v1::ListRunsRequest { source: "store-1/a".into(), ..Default::default() }).await, 1);
    assert_eq!(count(v1::ListRunsRequest { selector: "role=pos".into(), ..Default::default() }).await, 0);
    assert_eq!(count(v1::ListRunsRequest { state: "failed".into(), ..Default::default() }).await, 0);
    let wrong = runs.list_runs(v1::ListRunsRequest { state: "asleep".into(), ..Default::default() }).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);
    server.stop().await;
}

async fn an_answer_that_was_lost_with_its_session_is_made_up_for_by_hello(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    let mut session = host.connect(&server, &["db"]).await;
    let run = start(&server, "store-1/db").await;
    let attempt = session.offer().await.attempt.unwrap();
    drop(session);
    let running = vec![state(&attempt, v1::AttemptPhase::Running)];
    let session = host.connect_with(&server, &["db"], running).await.unwrap();
    assert!(session.welcome.lost.is_empty());
    assert_eq!(server.run(&run.id).await.attempts[0].state, "accepted");
    server.stop().await;
}

/// Copies a host with its one run that waits so many times; the copies never connect, and their runs came first.
async fn add_absent_hosts(server: &Server, like: AgentId, run: &v1::Run, count: usize) {
    let random = &Random::from_os();
    let run: RunId = run.id.parse().unwrap();
    let fill = server.store.run_tx("add absent hosts", move |tx, _| {
        async move {
            let mut host = agents::get(tx, like).await?.unwrap();
            let mut run = run_rows::get(tx, run).await?.unwrap();
            let mut source = sources::get(tx, like, &run.source).await?.unwrap();
            run.created = run.created.minus(Duration::from_secs(3_600));
            run.due = run.created;
            for n in 0..count {
                host.id = AgentId::generate(random);
                host.name = format!("absent-{n:04}").parse().unwrap();
                (source.agent, source.series) = (host.id, SeriesId::generate(random));
                (run.id, run.agent, run.series) = (RunId::generate(random), host.id, source.series);
                agents::insert(tx, &host).await?;
                sources::insert_series(tx, &source, "").await?;
                sources::put(tx, &source).await?;
                assert!(run_rows::insert(tx, &run).await?);
            }
            Ok::<_, StoreError>(())
        }
        .boxed()
    });
    fill.await.unwrap();
}

async fn runs_of_hosts_that_are_away_do_not_hold_up_those_of_hosts_that_are_here(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    host.visit(&server, &["db"]).await;
    let run = start(&server, "store-1/db").await;
    // More than dispatch looks at in one go.
    add_absent_hosts(&server, host.id, &run, 600).await;
    let waiting = async || {
        let page = Some(v1::Page { limit: 1_000, ..v1::Page::default() });
        let request = v1::ListRunsRequest { page, state: "queued".into(), ..Default::default() };
        RunAdminClient::new(server.admin()).list_runs(request).await.unwrap().into_inner().runs.len()
    };
    assert_eq!(waiting().await, 601);
    let mut session = host.connect(&server, &["db"]).await;
    let wanted: RunId = run.id.parse().unwrap();
    assert_eq!(session.offer().await.attempt.unwrap().run_id, wanted.to_vec());
    assert_eq!(waiting().await, 600);
    server.stop().await;
}

on_both_databases!(
    a_failure_whose_report_nobody_took_is_told_by_hello,
    a_run_waits_for_its_host_and_is_cancelled_through_it,
    attempts_are_lost_with_their_process_and_tried_three_times,
    a_running_attempt_goes_on_after_the_coordinator_was_away,
    runs_are_listed_newest_first_in_pages_by_agent_state_and_labels,
    an_answer_that_was_lost_with_its_session_is_made_up_for_by_hello,
    runs_of_hosts_that_are_away_do_not_hold_up_those_of_hosts_that_are_here,
);
