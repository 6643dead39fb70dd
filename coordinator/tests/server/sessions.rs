//! Sessions: the newest wins, revoked hosts leave at once, series survive what hosts do to their configs.

use std::time::Duration;

use sealift_common::id::SeriesId;
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_client::AgentAdminClient;
use sealift_proto::v1::agent_message::Message as FromAgent;
use sealift_proto::v1::coordinator_message::Message as ToAgent;
use tonic::Code;

use crate::harness::Server;
use crate::support::database::{Database, on_both_databases};

async fn the_newest_session_wins(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    let mut older = host.connect(&server, &["db"]).await;
    let mut newer = host.connect(&server, &["db"]).await;
    assert_eq!(older.next().await.unwrap_err().code(), Code::Aborted);
    let mut agents = AgentAdminClient::new(server.admin());
    let request = v1::TestSourcesRequest { source: "store-1/db".into(), ..Default::default() };
    let mut answers = agents.test_sources(request).await.unwrap().into_inner();
    let Ok(ToAgent::TestSource(test)) = newer.next().await else { panic!("expected a test") };
    assert_eq!(test.source, "db");
    let check =
        v1::SourceCheck { source: "db".into(), ok: true, detail: "fine".into(), ..Default::default() };
    let result = v1::SourceTestResult { request_id: test.request_id, checks: vec![check], last: true };
    newer.tell(FromAgent::SourceTest(result)).await;
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.agent.as_str(), answer.check.unwrap().detail.as_str()), ("store-1", "fine"));
    assert!(answers.message().await.unwrap().is_none());
    server.stop().await;
}

async fn a_revoked_agent_is_out_at_once_and_for_good(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.set_trust().await.unwrap();
    let host = server.enrolled("store-1").await;
    let mut session = host.connect(&server, &["db", "files"]).await;
    let mut runs = v1::run_admin_client::RunAdminClient::new(server.admin());
    let start = v1::StartRunsRequest { source: "store-1".into(), ..Default::default() };
    let started = runs.start_runs(start).await.unwrap().into_inner().runs;
    session.offer().await;
    session.offer().await;
    let mut agents = AgentAdminClient::new(server.admin());
    let request = v1::RevokeAgentRequest { agent: "store-1".into(), reason: "stolen".into() };
    let revoked = agents.revoke_agent(request).await.unwrap().into_inner();
    assert_eq!((revoked.state.as_str(), revoked.connected), ("revoked", false));
    let ended = tokio::time::timeout(Duration::from_secs(30), session.next()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);

    for run in started {
        let ended = server.run(&run.id).await;
        assert_eq!((ended.state.as_str(), ended.error.as_str()), ("cancelled", "the agent was revoked"));
    }
    let again = host.connect_with(&server, &["db"], Vec::new()).await.err().unwrap();
    assert_eq!(again.code(), Code::PermissionDenied);
    let mut certificates = v1::certificates_client::CertificatesClient::new(host.channel(&server));
    let renewal = certificates.renew(v1::RenewRequest { csr_der: host.csr() }).await.unwrap_err();
    assert_eq!(renewal.code(), Code::PermissionDenied);
    let mut enrolment = v1::enrollment_client::EnrollmentClient::new(server.channel(None));
    let recovery =
        enrolment.challenge(v1::ChallengeRequest { agent_id: host.id.to_vec() }).await.unwrap_err();
    assert_eq!(recovery.code(), Code::PermissionDenied);
    assert_eq!(server.outcomes("agent.revoke").await, ["intended", "done"]);
    server.stop().await;
}

async fn a_source_keeps_its_series_and_labels_come_from_admins_only(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    let mut agents = AgentAdminClient::new(server.admin());
    let get = || v1::GetAgentRequest { agent: "store-1".into() };
    let first = host.connect(&server, &["db", "files"]).await;
    let before = agents.get_agent(get()).await.unwrap().into_inner().sources;
    drop(first);
    let _second = host.connect(&server, &["db", "logs"]).await;
    let after = agents.get_agent(get()).await.unwrap().into_inner().sources;
    let find =
        |sources: &[v1::SourceState], name: &str| sources.iter().find(|s| s.name == name).unwrap().clone();
    assert_eq!(find(&before, "db").series_id, find(&after, "db").series_id);
    assert_eq!(find(&before, "files").series_id, find(&after, "files").series_id);
    assert!(!find(&after, "files").present && find(&after, "logs").present);

    let set = [("region".to_owned(), "eu".to_owned())].into();
    let prefix = host.id.to_string()[..13].to_owned();
    let labelled =
        agents.label_agent(v1::LabelAgentRequest { agent: prefix, set, remove: vec![] }).await.unwrap();
    assert_eq!(labelled.get_ref().labels["region"], "eu");
    let remove = v1::LabelAgentRequest {
        agent: "store-1".into(),
        remove: vec!["region".into()],
        ..Default::default()
    };
    assert!(agents.label_agent(remove).await.unwrap().get_ref().labels.is_empty());
    let unknown = agents.get_agent(v1::GetAgentRequest { agent: "store-9".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    server.stop().await;
}

async fn what_is_no_hello_or_of_another_age_is_refused(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    let mut client = v1::session_client::SessionClient::new(host.channel(&server));
    for (message, code) in [
        (FromAgent::Heartbeat(v1::Heartbeat::default()), Code::PermissionDenied),
        (
            FromAgent::Hello(v1::Hello { protocol_min: 7, protocol_max: 9, ..Default::default() }),
            Code::FailedPrecondition,
        ),
        (
            FromAgent::Hello(v1::Hello { protocol_min: 1, protocol_max: 1, ..Default::default() }),
            Code::PermissionDenied,
        ),
    ] {
        let stream = tokio_stream::iter([v1::AgentMessage { message: Some(message) }]);
        assert_eq!(client.open(stream).await.unwrap_err().code(), code);
    }
    server.stop().await;
}

async fn an_agent_that_speaks_less_is_asked_for_no_more(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    let hello = v1::Hello { protocol_min: 1, protocol_max: 1, ..Default::default() };
    let mut session = host.connect_saying(&server, &["db"], hello).await.unwrap();
    assert_eq!((session.welcome.protocol, session.welcome.protocol_minor), (1, 0));
    assert!(session.welcome.features.is_empty());
    let mut agents = AgentAdminClient::new(server.admin());
    let request = v1::TestSourcesRequest { source: "store-1/db".into(), ..Default::default() };
    let mut answers = agents.test_sources(request).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(answer.error.contains("upgrade it"), "{answer:?}");
    let shown = agents.get_agent(v1::GetAgentRequest { agent: "store-1".into() }).await.unwrap().into_inner();
    assert_eq!((shown.protocol.as_str(), shown.build.as_str()), ("1.0", "behind"));
    assert!(shown.features.is_empty() && shown.lacks.contains(&"reconnect".to_owned()), "{:?}", shown.lacks);

    // The coordinator stops: it is not asked to move, its session ends.
    let (stopped, ended) = tokio::join!(server.stop(), session.next());
    assert_eq!((stopped, ended.unwrap_err().code()), ((), Code::Unavailable));
}

async fn an_agent_that_is_too_old_is_told_so_and_may_still_renew(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let mut host = server.enrolled("store-1").await;
    let mut agents = AgentAdminClient::new(server.admin());
    let show = || v1::GetAgentRequest { agent: "store-1".into() };
    for _ in 0..2 {
        server.clock.advance(Duration::from_secs(60));
        let hello =
            v1::Hello { protocol_max: 0, protocol_max_minor: 9, protocol_min_minor: 2, ..Default::default() };
        let stream = tokio_stream::iter([v1::AgentMessage { message: Some(FromAgent::Hello(hello)) }]);
        let mut client = v1::session_client::SessionClient::new(host.channel(&server));
        let refused = client.open(stream).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(
            refused.message().starts_with("upgrade_required: this agent speaks protocol 0.9"),
            "{refused}"
        );
    }
    let shown = agents.get_agent(show()).await.unwrap().into_inner();
    assert_eq!((shown.protocol.as_str(), shown.build.as_str()), ("0.9", "upgrade_required"));
    assert_eq!(shown.upgrade_required_ms, server.clock.now().0 - 60_000, "since the first time");
    assert_eq!(server.outcomes("session.open").await, ["refused"], "once, however often it asks");
    let mut fleet = v1::fleet_admin_client::FleetAdminClient::new(server.admin());
    let status = fleet.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.agents_behind, status.agents_upgrade_required), (0, 1));

    let mut certificates = v1::certificates_client::CertificatesClient::new(host.channel(&server));
    let renewed = certificates.renew(v1::RenewRequest { csr_der: host.csr() }).await.unwrap().into_inner();
    assert!(renewed.not_after_ms > shown.certificate_expires_ms);
    host.adopt(&renewed);
    let _session = host.connect(&server, &["db"]).await;
    let shown = agents.get_agent(show()).await.unwrap().into_inner();
    assert_eq!((shown.build.as_str(), shown.upgrade_required_ms), ("current", 0));

    // Agents that went before their coordinator.
    let hello = v1::Hello { protocol_min: 7, protocol_max: 9, ..Default::default() };
    let refused = host.connect_saying(&server, &["db"], hello).await.err().unwrap();
    assert!(refused.message().contains("upgrade the coordinator"), "{refused}");
    server.stop().await;
}

async fn a_host_that_remembers_a_newer_backup_is_a_witness(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;
    drop(host.connect(&server, &["db"]).await);
    let mut agents = AgentAdminClient::new(server.admin());
    let request = v1::GetAgentRequest { agent: "store-1".into() };
    let series: SeriesId =
        agents.get_agent(request).await.unwrap().into_inner().sources[0].series_id.parse().unwrap();
    let warned = async || {
        let mut fleet = v1::fleet_admin_client::FleetAdminClient::new(server.admin());
        let status = fleet.status(v1::StatusRequest::default()).await.unwrap().into_inner();
        status.warnings.iter().any(|warning| warning.contains("hosts remember"))
    };
    assert!(!warned().await);
    let head = |series: SeriesId| v1::SeriesHead {
        series_id: series.to_vec(),
        sequence: 3,
        manifest_sha256: vec![9; 32],
    };
    // Twice the same is one event; another host's series is not its to speak of.
    let foreign = SeriesId::from_bytes([5; 16]);
    for _ in 0..2 {
        let heads = vec![head(series), head(foreign)];
        let hello = v1::Hello { heads, ..Default::default() };
        drop(host.connect_saying(&server, &["db"], hello).await.unwrap());
    }
    let events = server.audit("series.ahead").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].entity, format!("series:{series}"));
    assert!(events[0].details_json.contains("\"known_sequence\":0"), "{}", events[0].details_json);
    assert!(warned().await);
    server.stop().await;
}

on_both_databases!(
    the_newest_session_wins,
    a_revoked_agent_is_out_at_once_and_for_good,
    a_source_keeps_its_series_and_labels_come_from_admins_only,
    a_host_that_remembers_a_newer_backup_is_a_witness,
    an_agent_that_speaks_less_is_asked_for_no_more,
    an_agent_that_is_too_old_is_told_so_and_may_still_renew,
    what_is_no_hello_or_of_another_age_is_refused,
);
