//! Schedules against a clock that moves only when told, with hosts that are driven by hand.

use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_client::AgentAdminClient;
use sealift_proto::v1::agent_message::Message as FromAgent;
use sealift_proto::v1::coordinator_message::Message as ToAgent;
use sealift_proto::v1::policy_admin_client::PolicyAdminClient;
use sealift_proto::v1::run_admin_client::RunAdminClient;

use crate::harness::{HostSession, PATIENCE, Server};
use crate::support::database::{Database, on_both_databases};

const MINUTE: Duration = Duration::from_secs(60);

async fn apply(server: &Server, document: &str, expect: u32) -> v1::PolicyChange {
    let mut policies = PolicyAdminClient::new(server.admin());
    let request =
        v1::ApplyPolicyRequest { document: document.to_owned(), expect: Some(expect), ..Default::default() };
    policies.apply_policy(request).await.unwrap().into_inner()
}

async fn sources(server: &Server) -> Vec<v1::SourceState> {
    let mut agents = AgentAdminClient::new(server.admin());
    agents.list_sources(v1::ListSourcesRequest::default()).await.unwrap().into_inner().sources
}

/// All runs, newest first.
async fn runs(server: &Server) -> Vec<v1::Run> {
    let mut runs = RunAdminClient::new(server.admin());
    runs.list_runs(v1::ListRunsRequest::default()).await.unwrap().into_inner().runs
}

/// Looks at the runs until they are as wanted.
async fn until_runs(server: &Server, what: &str, wanted: impl Fn(&[v1::Run]) -> bool) -> Vec<v1::Run> {
    let mut seen = Vec::new();
    let look = async {
        loop {
            seen = runs(server).await;
            if wanted(&seen) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, look).await;
    outcome.unwrap_or_else(|_| panic!("{what}; last seen: {seen:#?}"));
    seen
}

/// When the first schedule is due next.
async fn next_due(server: &Server) -> UnixMillis {
    let look = async {
        loop {
            let due = sources(server).await.iter().map(|s| s.next_due_ms).filter(|due| *due > 0).min();
            if let Some(due) = due.filter(|due| *due > server.clock.now().0) {
                return UnixMillis(due);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("no source has a schedule"))
}

/// Moves the clock to `moment`.
fn go_to(server: &Server, moment: UnixMillis) {
    server.clock.advance(moment.since(server.clock.now()));
}

fn states(runs: &[v1::Run]) -> Vec<(&str, &str, u32)> {
    runs.iter().map(|run| (run.state.as_str(), run.occasion.as_str(), run.collapsed)).collect()
}

async fn reject(session: &HostSession, offer: v1::Offer) {
    let reply = v1::OfferReply {
        attempt: offer.attempt,
        accepted: false,
        reject: v1::RejectReason::UnknownSource.into(),
        ..Default::default()
    };
    session.tell(FromAgent::OfferReply(reply)).await;
}

async fn an_absence_leaves_one_row_and_one_run_makes_up_for_it(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    host.visit(&server, &["db"]).await;
    let hourly =
        "name = \"hourly\"\n[schedule]\ncron = \"0 * * * *\"\ntimezone = \"UTC\"\nwindow = \"30m\"\n";
    apply(&server, hourly, 1).await;
    let first = next_due(&server).await;

    // The host is away: the run waits, then its window is over.
    go_to(&server, first.plus(Duration::from_secs(1)));
    let planned =
        until_runs(&server, "a run waits", |runs| runs.iter().any(|run| run.state == "queued")).await;
    assert_eq!(planned[0].instant_ms, first.0);
    assert_eq!(planned[0].deadline_ms, first.plus(MINUTE * 30).0);
    go_to(&server, first.plus(MINUTE * 31));
    until_runs(&server, "it is missed", |runs| states(runs) == [("missed", "schedule", 0)]).await;
    assert_eq!(server.outcomes("run.finish").await, ["done"]);

    // Later instants are counted on that row.
    for hours in 1..=3 {
        go_to(&server, first.plus(MINUTE * 60 * hours + Duration::from_secs(1)));
        until_runs(&server, "one more", |runs| states(runs) == [("missed", "schedule", hours)]).await;
    }
    let last = first.plus(MINUTE * 180);
    go_to(&server, last.plus(MINUTE * 40));
    let mut session = host.connect(&server, &["db"]).await;
    let offer = session.offer().await;
    assert_eq!(offer.source, "db");
    let all = runs(&server).await;
    assert_eq!(states(&all), [("active", "catch-up", 0), ("missed", "schedule", 3)]);
    assert_eq!(all[0].instant_ms, last.0);

    // A day in which nobody looked is one row as well.
    reject(&session, offer).await;
    until_runs(&server, "it fails", |runs| runs[0].state == "failed").await;
    server.clock.advance(MINUTE * 60 * 24);
    let all = until_runs(&server, "the absence is noticed", |runs| runs.len() == 3).await;
    assert_eq!(all[0].occasion, "schedule");
    assert!((23..=24).contains(&all[0].collapsed), "{:?}", states(&all));
    server.stop().await;
}

async fn while_the_database_recovers_no_instant_is_taken(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    drop(host.connect(&server, &["db"]).await);
    let hourly =
        "name = \"hourly\"\n[schedule]\ncron = \"0 * * * *\"\ntimezone = \"UTC\"\nwindow = \"30m\"\n";
    apply(&server, hourly, 1).await;
    let first = next_due(&server).await;

    server.set_recovering().await;
    for minutes in [0, 40] {
        go_to(&server, first.plus(MINUTE * minutes + Duration::from_secs(1)));
        // Some rounds of the scheduler, which looks once a second.
        for _ in 0..15 {
            assert_eq!(states(&runs(&server).await), []);
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    let mut policies = PolicyAdminClient::new(server.admin());
    let request = v1::ApplyPolicyRequest { document: hourly.to_owned(), ..Default::default() };
    let refused = policies.apply_policy(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("recover --from-bucket"), "{refused}");
    assert_eq!(server.outcomes("policy.apply").await, ["intended", "done", "refused"]);

    // It goes on as after any other absence: one row, and one run that makes up for it.
    assert_eq!(server.recover().await.generation, 2);
    until_runs(&server, "it is missed", |runs| states(runs) == [("missed", "schedule", 0)]).await;
    let mut session = host.connect(&server, &["db"]).await;
    assert_eq!(session.offer().await.source, "db");
    let all = runs(&server).await;
    let mut seen = states(&all);
    seen.sort_unstable();
    assert_eq!(seen, [("active", "catch-up", 0), ("missed", "schedule", 0)]);
    assert!(all.iter().all(|run| run.instant_ms == first.0));
    server.stop().await;
}

async fn a_run_that_has_not_ended_serves_for_the_schedule_too(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    host.visit(&server, &["db"]).await;
    let hourly =
        "name = \"hourly\"\n[schedule]\ncron = \"0 * * * *\"\ntimezone = \"UTC\"\ncatch_up = \"never\"\n";
    apply(&server, hourly, 1).await;

    // Nobody could open the backup yet: that is said.
    go_to(&server, next_due(&server).await.plus(Duration::from_secs(1)));
    let all = until_runs(&server, "an instant without trust", |runs| runs.len() == 1).await;
    assert_eq!((all[0].state.as_str(), all[0].error.as_str()), ("skipped", "there is no trust policy"));

    server.set_trust().await.unwrap();
    server.clock.advance(MINUTE);
    let mut admin = RunAdminClient::new(server.admin());
    let request = v1::StartRunsRequest { source: "store-1/db".into(), ..Default::default() };
    let asked = admin.start_runs(request).await.unwrap().into_inner().runs.remove(0);
    go_to(&server, next_due(&server).await.plus(Duration::from_secs(1)));
    let all = until_runs(&server, "the instant coalesces", |runs| runs.len() == 3).await;
    assert_eq!(states(&all), [("skipped", "schedule", 0), ("queued", "", 0), ("skipped", "schedule", 0)]);
    assert!(all[0].error.contains("serves for both"), "{}", all[0].error);
    assert_eq!(all[1].id, asked.id);
    server.stop().await;
}

async fn one_run_at_a_time_in_each_site_and_within_the_policys_limits(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let (a, b, c) = (
        server.enrolled("till-1").await,
        server.enrolled("till-2").await,
        server.enrolled("elsewhere").await,
    );
    let mut agents = AgentAdminClient::new(server.admin());
    for (agent, store) in [("till-1", "0001"), ("till-2", "0001"), ("elsewhere", "0002")] {
        let set = [("store".to_owned(), store.to_owned())].into();
        agents.label_agent(v1::LabelAgentRequest { agent: agent.into(), set, remove: vec![] }).await.unwrap();
    }
    let (mut a, mut b, mut c) = (
        a.connect(&server, &["db"]).await,
        b.connect(&server, &["db"]).await,
        c.connect(&server, &["db"]).await,
    );
    let policy = "name = \"tills\"\n[schedule]\ncron = \"0 * * * *\"\ntimezone = \"UTC\"\n[limits]\n\
        concurrent_per_site = 1\nbandwidth = \"1MiB/s\"\nstall_timeout = \"5m\"\nmax_duration = \"2h\"\ncompression = 7\n";
    apply(&server, policy, 3).await;
    go_to(&server, next_due(&server).await.plus(Duration::from_secs(1)));

    // The other site has its run; of the two tills, one.
    let elsewhere = c.offer().await;
    let limits = elsewhere.limits.unwrap();
    assert_eq!(
        (
            limits.bandwidth_bytes_per_s,
            limits.stall_timeout_ms,
            limits.max_duration_ms,
            limits.compression_level
        ),
        (1 << 20, 300_000, 7_200_000, 7)
    );
    let (first, offer) =
        tokio::select! { offer = a.offer() => ("a", offer), offer = b.offer() => ("b", offer) };
    let taken = until_runs(&server, "one till works, one waits", |runs| {
        let count = |state: &str| runs.iter().filter(|run| run.state == state).count();
        (count("active"), count("queued")) == (2, 1)
    })
    .await;
    assert_eq!(taken.len(), 3);
    // It gives its place back: the other one has it.
    let (session, other) = if first == "a" { (&a, &mut b) } else { (&b, &mut a) };
    reject(session, offer).await;
    match other.next().await.unwrap() {
        ToAgent::Offer(offer) => assert_eq!(offer.source, "db"),
        answer => panic!("expected an offer, got {answer:?}"),
    }
    let all = runs(&server).await;
    let failed: Vec<_> = all.iter().filter(|run| run.state == "failed").collect();
    assert_eq!(failed.len(), 1, "{all:#?}");
    server.stop().await;
}

async fn a_run_that_waits_goes_by_the_policy_in_force(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    host.visit(&server, &["db"]).await;
    let policy = |cron: &str, more: &str| {
        format!("name = \"p\"\n[schedule]\ncron = \"{cron}\"\ntimezone = \"UTC\"\n{more}")
    };
    apply(&server, &policy("0 * * * *", ""), 1).await;
    let due = next_due(&server).await;
    go_to(&server, due.plus(Duration::from_secs(1)));
    let all = until_runs(&server, "a run waits", |runs| runs.iter().any(|run| run.state == "queued")).await;
    assert_eq!(all[0].policy_version, 1);

    // Another window: the run goes on under the new version.
    apply(&server, &policy("0 * * * *", "window = \"45m\"\n"), 1).await;
    let all = until_runs(&server, "the run has the new version", |runs| runs[0].policy_version == 2).await;
    assert_eq!((all[0].state.as_str(), all[0].deadline_ms), ("queued", due.plus(MINUTE * 45).0));
    // Another schedule: it does not.
    apply(&server, &policy("30 5 * * *", ""), 1).await;
    let all = until_runs(&server, "the run is superseded", |runs| runs[0].state == "superseded").await;
    assert_eq!((all.len(), all[0].policy_version), (1, 2));
    assert!(all[0].error.contains("policy changed"), "{}", all[0].error);

    // The promise, and that it is broken: said once.
    apply(&server, &policy("30 5 * * *", "[alert]\noverdue_after = \"26h\"\n"), 1).await;
    let waiting = sources(&server).await;
    assert_eq!((waiting[0].policy.as_str(), waiting[0].policy_version), ("p", 4));
    server.clock.advance(MINUTE * 60 * 27);
    let broken = async {
        while server.audit("promise.break").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, broken).await.unwrap_or_else(|_| panic!("no broken promise is recorded"));
    assert_eq!(sources(&server).await[0].rpo, "overdue");
    let mut fleet = v1::fleet_admin_client::FleetAdminClient::new(server.admin());
    let status = fleet.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.sources_overdue, status.overdue), (1, vec!["store-1/db".to_owned()]));
    server.clock.advance(MINUTE);
    assert_eq!(server.audit("promise.break").await.len(), 1);
    server.stop().await;
}

on_both_databases!(
    an_absence_leaves_one_row_and_one_run_makes_up_for_it,
    while_the_database_recovers_no_instant_is_taken,
    a_run_that_has_not_ended_serves_for_the_schedule_too,
    one_run_at_a_time_in_each_site_and_within_the_policys_limits,
    a_run_that_waits_goes_by_the_policy_in_force,
);
