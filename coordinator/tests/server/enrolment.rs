//! Hosts become agents, renew, come back, and are turned away, each with a clear word.

use std::time::Duration;

use sealift_common::crypto::{AgentKeyObject, SigningKey};
use sealift_common::id::{AgentId, Random, Sha256};
use sealift_common::tls;
use sealift_proto::v1;
use sealift_proto::v1::certificates_client::CertificatesClient;
use sealift_proto::v1::enrollment_client::EnrollmentClient;
use sealift_proto::v1::token_admin_client::TokenAdminClient;
use tonic::Code;

use crate::harness::{Host, Server};
use crate::support::database::{Database, on_both_databases};

#[tokio::test]
async fn a_host_enrols_and_everything_about_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let labels = [("role".to_owned(), "pos".to_owned())].into();
    let made = server
        .token(v1::CreateTokenRequest { labels, uses: 1, scope: "eu".into(), ..Default::default() })
        .await;
    assert_eq!(made.ca_sha256, tls::fingerprint(&server.ca[0]).to_vec());
    assert_eq!(made.root_sha256, [server.root_sha256.to_vec()]);

    let mut host = Host::new("Store-0042");
    let identity = host.enrol(&server, &made.token).await.unwrap();
    assert_eq!((identity.name.as_str(), identity.scope.as_str()), ("store-0042", "eu"));
    assert_eq!(identity.agent_id, host.id.to_vec());
    assert_eq!(identity.trust_domain, "sealift.test");
    assert_eq!(identity.ca_der, [server.ca[0].to_vec()]);
    let life = Duration::from_millis(u64::try_from(identity.not_after_ms - server.clock.now().0).unwrap());
    assert_eq!(life, Duration::from_secs(24 * 3_600));

    let key = AgentKeyObject::parse_first(
        &host.enrolment("").agent_key_object,
        host.id,
        &host.signing.verifying_key(),
    );
    let name = key.unwrap().name().to_string();
    assert!(
        walk(&server.dir.join("s3")).iter().any(|path| path.ends_with(&name)),
        "the bucket has the agent's key"
    );

    let session = host.connect(&server, &["db", "files"]).await;
    assert_eq!(session.welcome.heartbeat_ms, 5_000);
    let mut agents = v1::agent_admin_client::AgentAdminClient::new(server.admin());
    let request = v1::ListAgentsRequest { selector: "role=pos".into(), ..Default::default() };
    let listed = agents.list_agents(request).await.unwrap().into_inner().agents;
    assert_eq!(listed.len(), 1);
    assert!(listed[0].connected && listed[0].state == "active");
    assert_eq!(listed[0].sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["db", "files"]);
    let none = v1::ListAgentsRequest { selector: "role=web".into(), ..Default::default() };
    assert!(agents.list_agents(none).await.unwrap().into_inner().agents.is_empty());

    assert_eq!(server.outcomes("agent.enroll").await, ["intended", "done"]);
    let database = std::fs::read(server.dir.join("coordinator.db")).unwrap();
    let wal = std::fs::read(server.dir.join("coordinator.db-wal")).unwrap_or_default();
    let secret = made.token.rsplit('_').next().unwrap().as_bytes();
    let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    assert!(!holds(&database) && !holds(&wal), "the token's secret is in the database");
    server.stop().await;
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

async fn each_token_that_is_not_good_gets_its_own_clear_error(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let mut tokens = TokenAdminClient::new(server.admin());
    let good = server.usual_token().await;

    let refused = |token: String, code: Code, says: &'static str| {
        let server = &server;
        async move {
            let error = Host::new("store-1").enrol(server, &token).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(says), "{error}");
        }
    };
    refused("hunter2".into(), Code::InvalidArgument, "slt_").await;
    let wrong =
        format!("{}{}", &good[..good.len() - 4], if good.ends_with("0000") { "1111" } else { "0000" });
    refused(wrong, Code::PermissionDenied, "not known").await;
    refused(format!("slt_{}_{}", "0".repeat(16), "0".repeat(64)), Code::PermissionDenied, "not known").await;

    Host::new("store-0").enrol(&server, &good).await.unwrap();
    refused(good, Code::PermissionDenied, "used up (1 of 1)").await;

    let revoked = server.token(v1::CreateTokenRequest { uses: 1, ..Default::default() }).await;
    let id = revoked.info.unwrap().id;
    tokens.revoke_token(v1::RevokeTokenRequest { id }).await.unwrap();
    refused(revoked.token, Code::PermissionDenied, "revoked").await;

    let short = server.token(v1::CreateTokenRequest { uses: 1, ttl_ms: 1_000, ..Default::default() }).await;
    server.clock.advance(Duration::from_secs(2));
    refused(short.token, Code::PermissionDenied, "expired").await;

    let refusals = server.outcomes("agent.enroll").await.into_iter().filter(|o| o == "refused").count();
    assert_eq!(refusals, 5, "all but the malformed one, which is no token, are audited");
    for bad in [
        v1::CreateTokenRequest { uses: 2, name: "store-1".into(), ..Default::default() },
        v1::CreateTokenRequest { uses: 1, ttl_ms: u64::MAX, ..Default::default() },
        v1::CreateTokenRequest { uses: 1, scope: "no/pe".into(), ..Default::default() },
        v1::CreateTokenRequest { labels: [("a b".into(), "c".into())].into(), ..Default::default() },
    ] {
        assert_eq!(tokens.create_token(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    server.stop().await;
}

async fn a_lost_reply_bricks_nobody_and_a_stolen_id_gets_nothing(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let made = server.token(v1::CreateTokenRequest { uses: 1, ttl_ms: 60_000, ..Default::default() }).await;
    let token = made.token;
    let mut host = Host::new("store-1");
    let first = host.enrol(&server, &token).await.unwrap();
    server.clock.advance(Duration::from_secs(120)); // expired, and used up
    let again = host.enrol(&server, &token).await.unwrap();
    assert_eq!((&first.agent_id, &first.name), (&again.agent_id, &again.name));
    host.connect(&server, &[]).await;

    // Another host under the same id, with keys of its own and a good token.
    let mut thief = Host::new("store-2");
    thief.id = host.id;
    let error = thief.enrol(&server, &server.usual_token().await).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");

    let mut second = Host::new("store-1");
    let waiting = second.enrol(&server, &server.usual_token().await).await.unwrap();
    assert_ne!(waiting.name, "store-1", "a name is given once");
    let error = second.connect_with(&server, &[], Vec::new()).await.err().unwrap();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("agent approve"), "{error}");
    server.stop().await;
}

async fn what_does_not_hold_in_an_enrolment_is_refused(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let token = server.usual_token().await;
    let mut client = EnrollmentClient::new(server.channel(None));
    let host = Host::new("store-1");
    let good = host.enrolment(&token);
    let other = SigningKey::generate(&Random::from_os());
    let foreign = AgentKeyObject::first(host.id, &other, server.clock.now()).bytes().to_vec();
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let wrong_kind = rcgen::CertificateParams::default().serialize_request(&ed25519).unwrap().der().to_vec();
    let mut forged = good.csr_der.clone();
    *forged.last_mut().unwrap() ^= 1;
    for (bad, code) in [
        (v1::EnrollRequest { csr_der: vec![1, 2, 3], ..good.clone() }, Code::InvalidArgument),
        (v1::EnrollRequest { csr_der: forged, ..good.clone() }, Code::InvalidArgument),
        (v1::EnrollRequest { csr_der: wrong_kind, ..good.clone() }, Code::InvalidArgument),
        (v1::EnrollRequest { agent_key_object: foreign, ..good.clone() }, Code::PermissionDenied),
        (v1::EnrollRequest { agent_id: vec![0; 3], ..good.clone() }, Code::InvalidArgument),
        (v1::EnrollRequest { host: "not a name!".into(), ..good.clone() }, Code::InvalidArgument),
    ] {
        let error = client.enroll(bad).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    client.enroll(good).await.unwrap();

    let pinned = tls::pinned_client_config(Sha256::of(b"another CA")).unwrap();
    let mut elsewhere = EnrollmentClient::new(tls::channel(&server.url, pinned).unwrap());
    let error = elsewhere.enroll(host.enrolment(&token)).await.unwrap_err();
    assert!(format!("{error:?}").contains("not the pinned one"), "{error:?}");
    server.stop().await;
}

async fn certificates_are_renewed_and_won_back_with_the_signing_key(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let mut host = server.enrolled("store-1").await;
    let old = host.channel(&server);
    host.key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let renewed =
        CertificatesClient::new(old.clone()).renew(v1::RenewRequest { csr_der: host.csr() }).await.unwrap();
    host.adopt(renewed.get_ref());
    host.connect(&server, &[]).await;
    // The old one stays good until it expires: a lost reply bricks nobody.
    CertificatesClient::new(old).renew(v1::RenewRequest { csr_der: host.csr() }).await.unwrap();

    let mut client = EnrollmentClient::new(server.channel(None));
    let challenge = || v1::ChallengeRequest { agent_id: host.id.to_vec() };
    let answer = |challenge: &[u8], key: &SigningKey| {
        let csr = host.csr();
        let digest = Sha256::of(&csr);
        let signature =
            key.sign("sealift/1/recover", &[host.id.as_bytes(), challenge, digest.as_bytes()]).to_vec();
        v1::RecoverRequest {
            agent_id: host.id.to_vec(),
            challenge: challenge.to_vec(),
            csr_der: csr,
            signature,
        }
    };
    let asked = client.challenge(challenge()).await.unwrap().into_inner().challenge;
    let good = answer(&asked, &host.signing);
    let recovered = client.recover(good.clone()).await.unwrap().into_inner();
    assert_eq!(recovered.agent_id, host.id.to_vec());
    // Once only; with the right key only; within a minute only; for who is known only.
    assert_eq!(client.recover(good).await.unwrap_err().code(), Code::FailedPrecondition);
    let asked = client.challenge(challenge()).await.unwrap().into_inner().challenge;
    let forged = answer(&asked, &SigningKey::generate(&Random::from_os()));
    assert_eq!(client.recover(forged).await.unwrap_err().code(), Code::PermissionDenied);
    let asked = client.challenge(challenge()).await.unwrap().into_inner().challenge;
    server.clock.advance(Duration::from_secs(61));
    assert_eq!(
        client.recover(answer(&asked, &host.signing)).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let unknown = v1::ChallengeRequest { agent_id: AgentId::generate(&Random::from_os()).to_vec() };
    assert_eq!(client.challenge(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.outcomes("agent.recover").await, ["intended", "done", "refused", "refused", "refused"]);
    server.stop().await;
}

async fn a_token_is_used_as_often_as_it_says_by_however_many_at_once(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let made = server.token(v1::CreateTokenRequest { uses: 3, ttl_ms: 60_000, ..Default::default() }).await;
    let mut hosts: Vec<Host> = (0..8).map(|n| Host::new(&format!("store-{n}"))).collect();
    let enrolled =
        futures::future::join_all(hosts.iter_mut().map(|host| host.enrol(&server, &made.token))).await;
    assert_eq!(enrolled.iter().filter(|outcome| outcome.is_ok()).count(), 3);
    for refused in enrolled.into_iter().filter_map(Result::err) {
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("3"), "{refused}");
    }

    // One name, many hosts: one gets it, the others wait for an admin.
    let many = server.token(v1::CreateTokenRequest { uses: 8, ttl_ms: 60_000, ..Default::default() }).await;
    let mut hosts: Vec<Host> = (0..4).map(|_| Host::new("twin")).collect();
    let enrolled =
        futures::future::join_all(hosts.iter_mut().map(|host| host.enrol(&server, &many.token))).await;
    let mut names: Vec<String> = enrolled.into_iter().map(|identity| identity.unwrap().name).collect();
    names.sort();
    assert_eq!(names.iter().filter(|name| *name == "twin").count(), 1, "{names:?}");
    assert!(names.iter().all(|name| name == "twin" || name.starts_with("twin.")), "{names:?}");

    // Labels that are set side by side are all there.
    let mut agents = v1::agent_admin_client::AgentAdminClient::new(server.admin());
    let label = |n: u32| {
        let mut agents = agents.clone();
        let set = [(format!("l{n}"), "x".to_owned())].into();
        async move {
            let request = v1::LabelAgentRequest { agent: "twin".into(), set, ..Default::default() };
            agents.label_agent(request).await.unwrap();
        }
    };
    futures::future::join_all((0..8).map(label)).await;
    let twin = agents.get_agent(v1::GetAgentRequest { agent: "twin".into() }).await.unwrap().into_inner();
    assert_eq!(twin.labels.len(), 8, "{:?}", twin.labels);
    server.stop().await;
}

on_both_databases!(
    each_token_that_is_not_good_gets_its_own_clear_error,
    a_lost_reply_bricks_nobody_and_a_stolen_id_gets_nothing,
    what_does_not_hold_in_an_enrolment_is_refused,
    certificates_are_renewed_and_won_back_with_the_signing_key,
    a_token_is_used_as_often_as_it_says_by_however_many_at_once,
);
