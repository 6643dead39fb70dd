//! Who may do what: refusals have the right code and are in the audit; the trust policy takes only what root keys signed.

use sealift_common::crypto::SigningKey;
use sealift_common::id::Random;
use sealift_coordinator::store::{DatabaseUrl, Store, StoreError};
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_client::AgentAdminClient;
use sealift_proto::v1::fleet_admin_client::FleetAdminClient;
use sealift_proto::v1::run_admin_client::RunAdminClient;
use sealift_proto::v1::session_client::SessionClient;
use sealift_proto::v1::token_admin_client::TokenAdminClient;
use sealift_proto::v1::trust_admin_client::TrustAdminClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::Server;
use crate::support::database::{Database, on_both_databases};

async fn admin_calls(channel: Channel) -> Vec<Status> {
    let mut refused = Vec::new();
    let mut tokens = TokenAdminClient::new(channel.clone());
    refused.extend(tokens.create_token(v1::CreateTokenRequest::default()).await.err());
    refused.extend(tokens.list_tokens(v1::ListTokensRequest::default()).await.err());
    let mut agents = AgentAdminClient::new(channel.clone());
    refused.extend(agents.list_agents(v1::ListAgentsRequest::default()).await.err());
    refused.extend(
        agents.revoke_agent(v1::RevokeAgentRequest { agent: "a".into(), reason: "b".into() }).await.err(),
    );
    let mut runs = RunAdminClient::new(channel.clone());
    refused.extend(runs.start_runs(v1::StartRunsRequest::default()).await.err());
    let mut trust = TrustAdminClient::new(channel.clone());
    refused.extend(trust.get_trust(v1::GetTrustRequest {}).await.err());
    refused.extend(trust.set_trust(v1::SetTrustRequest::default()).await.err());
    let mut fleet = FleetAdminClient::new(channel);
    refused.extend(fleet.status(v1::StatusRequest {}).await.err());
    refused.extend(fleet.list_audit(v1::ListAuditRequest::default()).await.err());
    refused
}

async fn what_is_for_admins_is_refused_to_everybody_else_and_audited(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let host = server.enrolled("store-1").await;

    let as_agent = admin_calls(host.channel(&server)).await;
    assert_eq!(as_agent.iter().map(Status::code).collect::<Vec<_>>(), [Code::PermissionDenied; 9]);
    let as_nobody = admin_calls(server.channel(None)).await;
    assert_eq!(as_nobody.iter().map(Status::code).collect::<Vec<_>>(), [Code::Unauthenticated; 9]);
    for actor in [format!("agent:{}", host.id), "anonymous".to_owned()] {
        let request = v1::ListAuditRequest { actor: actor.clone(), ..Default::default() };
        let events =
            FleetAdminClient::new(server.admin()).list_audit(request).await.unwrap().into_inner().events;
        assert_eq!(events.iter().filter(|e| e.outcome == "refused").count(), 9, "{actor}");
        assert!(events.iter().all(|e| e.source_address == "127.0.0.1"));
    }

    // An admin is no agent.
    let (_out, receiver) = tokio::sync::mpsc::channel::<v1::AgentMessage>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let error = SessionClient::new(server.admin()).open(stream).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    server.stop().await;
}

async fn the_trust_policy_takes_only_what_the_root_key_signed(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let error = server.set_trust_signed_by(&SigningKey::generate(&Random::from_os())).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(error.message().contains("root keys"), "{error}");
    assert_eq!(server.set_trust().await.unwrap().version, 1);
    assert_eq!(server.set_trust().await.unwrap().version, 2);
    let mut trust = TrustAdminClient::new(server.admin());
    let chain = trust.get_trust(v1::GetTrustRequest {}).await.unwrap().into_inner().chain;
    assert_eq!(chain.len(), 2);
    // The same again is no error; another first version is.
    let again = trust.set_trust(v1::SetTrustRequest { object: chain[1].clone() }).await.unwrap().into_inner();
    assert_eq!(again.version, 2);
    let mut altered = chain[1].clone();
    altered[20] ^= 1;
    trust.set_trust(v1::SetTrustRequest { object: altered }).await.unwrap_err();
    let status =
        FleetAdminClient::new(server.admin()).status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.trust_version, status.recipients), (2, 1));
    server.stop().await;
}

#[tokio::test]
async fn one_database_has_one_coordinator_and_its_audit_only_grows() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let database = server.dir.join("coordinator.db");
    let second = Store::open(&DatabaseUrl::file(&database)).await.unwrap_err();
    assert!(matches!(second, StoreError::Locked { .. }), "{second}");
    assert!(second.to_string().contains("another coordinator"));
    server.usual_token().await;
    server.stop().await;
    for statement in ["UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events"] {
        let output = std::process::Command::new("sqlite3").arg(&database).arg(statement).output();
        let output = output.unwrap_or_else(|error| panic!("install sqlite3 (apt install sqlite3): {error}"));
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("append-only"));
    }
}

#[tokio::test]
async fn health_is_told_over_https() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(sealift_common::tls::roots(&server.ca).unwrap())
        .with_no_client_auth();
    let client = reqwest::Client::builder().use_preconfigured_tls(config).build().unwrap();
    let get = |path: &str| client.get(format!("{}{path}", server.http)).send();
    let health = get("/healthz").await.unwrap();
    assert_eq!(health.status().as_u16(), 200);
    assert_eq!(health.text().await.unwrap(), "ok\n");
    assert_eq!(get("/etc/passwd").await.unwrap().status().as_u16(), 404);
    drop(client);
    server.stop().await;
}

on_both_databases!(
    what_is_for_admins_is_refused_to_everybody_else_and_audited,
    the_trust_policy_takes_only_what_the_root_key_signed,
);
