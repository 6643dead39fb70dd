//! Roll-outs, replacements, and what becomes of the hosts before.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use futures::StreamExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, SeriesId};
use sealift_proto::v1;
use sealift_proto::v1::agent_admin_client::AgentAdminClient;
use sealift_proto::v1::certificates_client::CertificatesClient;
use sealift_proto::v1::host_admin_client::HostAdminClient;
use tonic::Code;

use crate::harness::{Host, Server};
use crate::support::database::{Database, on_both_databases};

/// Hosts of a roll-out, unless `SEALIFT_TEST_HOSTS` says otherwise (3,000 is what a chain of shops has).
const HOSTS: usize = 200;
/// Enrolments at a time.
const AT_A_TIME: usize = 16;

fn labels(number: usize) -> BTreeMap<String, String> {
    let region = ["eu", "uk", "us"][number % 3];
    [("store", format!("{number:04}")), ("region", region.to_owned())].map(|(k, v)| (k.to_owned(), v)).into()
}

/// Hosts behind many addresses, as shops are.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, u8::try_from(number % 250).unwrap() + 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_one_list_enrol_and_each_has_its_own_labels() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let count = std::env::var("SEALIFT_TEST_HOSTS").ok().map_or(HOSTS, |n| n.parse().unwrap());
    let host = |number| v1::HostToken {
        name: format!("store-{number:04}"),
        labels: labels(number).into_iter().collect(),
        scope: String::new(),
    };
    let request = v1::CreateTokensRequest { hosts: (0..count).map(host).collect(), ttl_ms: 3_600_000 };
    let mut hosts = HostAdminClient::new(server.admin());
    let made = hosts.create_tokens(request.clone()).await.unwrap().into_inner().tokens;
    assert_eq!(made.len(), count);

    let enrolments = made.into_iter().enumerate().map(|(number, made)| {
        let server = &server;
        async move {
            // What it calls itself does not matter: the list does.
            let mut host = Host::new("freshly-installed");
            let channel = server.enrolling_channel(address(number));
            let identity = host.enrol_over(channel, &made.token).await.unwrap();
            assert_eq!(identity.name, made.name);
            if number % 50 == 0 {
                host.connect(server, &["db"]).await;
            }
        }
    });
    futures::stream::iter(enrolments).buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;

    let mut agents = AgentAdminClient::new(server.admin());
    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let page = Some(v1::Page { limit: 1_000, after, ..v1::Page::default() });
        let request = v1::ListAgentsRequest { page, selector: "region in (eu,uk,us)".into(), brief: false };
        let reply = agents.list_agents(request).await.unwrap().into_inner();
        for agent in &reply.agents {
            let number: usize = agent.name.strip_prefix("store-").unwrap().parse().unwrap();
            let found: BTreeMap<_, _> = agent.labels.clone().into_iter().collect();
            assert_eq!(found, labels(number), "{}", agent.name);
            seen += 1;
        }
        after = reply.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(seen, count);

    // The same list again would give names away twice.
    let error = hosts.create_tokens(request).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    server.stop().await;
}

async fn a_list_is_taken_whole_or_not_at_all(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    server.enrolled("store-3").await;
    let mut hosts = HostAdminClient::new(server.admin());
    let host = |name: &str| v1::HostToken { name: name.into(), ..Default::default() };
    for (names, code) in [
        (vec!["store-1", "store-1"], Code::AlreadyExists),
        (vec!["store-1", "store-3"], Code::AlreadyExists),
        (vec!["store-1", "Not A Name"], Code::InvalidArgument),
    ] {
        let request = v1::CreateTokensRequest { hosts: names.iter().map(|n| host(n)).collect(), ttl_ms: 0 };
        assert_eq!(hosts.create_tokens(request).await.unwrap_err().code(), code, "{names:?}");
    }
    let mut tokens = v1::token_admin_client::TokenAdminClient::new(server.admin());
    let listed = tokens.list_tokens(v1::ListTokensRequest::default()).await.unwrap().into_inner().tokens;
    assert_eq!(listed.len(), 1, "only the one that store-3 used");
    server.stop().await;
}

async fn the_new_host_of_an_agent_takes_its_place_and_the_old_one_is_shut_out(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_on(&on, dir.path()).await;
    let old = server.enrolled("store-1").await;
    let mut session = old.connect(&server, &["db"]).await;
    let mut agents = AgentAdminClient::new(server.admin());
    let show = || v1::GetAgentRequest { agent: "store-1".into() };
    let set = [("store".to_owned(), "0001".to_owned())].into();
    let label = v1::LabelAgentRequest { agent: "store-1".into(), set, remove: Vec::new() };
    let before = agents.label_agent(label).await.unwrap().into_inner();

    let replaces = v1::CreateTokenRequest { uses: 1, replaces: "store-1".into(), ..Default::default() };
    let wrong = v1::CreateTokenRequest { name: "x".into(), ..replaces.clone() };
    let mut tokens = v1::token_admin_client::TokenAdminClient::new(server.admin());
    assert_eq!(tokens.create_token(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let token = server.token(replaces).await.token;

    let mut new = Host::new("whatever");
    let asked = new.enrol(&server, &token).await.unwrap();
    assert_eq!(AgentId::try_from(asked.replaces_agent_id.as_slice()).unwrap(), old.id);
    assert!(asked.certificate_chain_der.is_empty(), "nothing is given before the right id");
    assert_eq!(agents.get_agent(show()).await.unwrap().into_inner().signing_key, before.signing_key);
    new.id = old.id;
    let identity = new.enrol(&server, &token).await.unwrap();
    assert_eq!((identity.name.as_str(), identity.agent_id), ("store-1", old.id.to_vec()));
    // A lost reply bricks nobody here either; another host with the same token gets nothing.
    new.enrol(&server, &token).await.unwrap();
    let mut thief = Host::new("thief");
    thief.id = old.id;
    assert_eq!(thief.enrol(&server, &token).await.unwrap_err().code(), Code::PermissionDenied);

    assert_eq!(session.next().await.unwrap_err().code(), Code::PermissionDenied, "the old session ends");
    let mut certificates = CertificatesClient::new(old.channel(&server));
    let error = certificates.renew(v1::RenewRequest { csr_der: old.csr() }).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(error.message().contains("was replaced"), "{error}");

    new.connect(&server, &["db"]).await;
    let after = agents.get_agent(show()).await.unwrap().into_inner();
    assert_eq!((&after.id, &after.labels), (&before.id, &before.labels));
    assert_eq!(after.signing_key, new.signing.verifying_key().to_vec());
    let series = |agent: &v1::Agent| agent.sources[0].series_id.parse::<SeriesId>().unwrap();
    assert_eq!(series(&after), series(&before));
    let enrolled = server.audit("agent.enroll").await;
    let told = enrolled.iter().find(|event| event.details_json.contains("\"key_epoch\":1")).unwrap();
    assert!(told.details_json.contains("\"before\":{"), "{}", told.details_json);

    // And once more: the one that took its place is replaced as well.
    let again = v1::CreateTokenRequest { uses: 1, replaces: "store-1".into(), ..Default::default() };
    let mut third = Host::new("third");
    third.id = old.id;
    third.enrol(&server, &server.token(again).await.token).await.unwrap();
    third.connect(&server, &["db"]).await;
    assert!(new.connect_with(&server, &[], Vec::new()).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_clock_shows() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let host = server.enrolled("store-1").await;
    let mut agents = AgentAdminClient::new(server.admin());
    let ten_minutes = 600_000;
    for (clock_ms, skew) in [(server.clock.now().0 + ten_minutes, ten_minutes), (server.clock.now().0, 0)] {
        host.connect_at(&server, UnixMillis(clock_ms)).await;
        let shown =
            agents.get_agent(v1::GetAgentRequest { agent: "store-1".into() }).await.unwrap().into_inner();
        assert_eq!(shown.clock_skew_ms, skew);
    }
    server.stop().await;
}

on_both_databases!(
    a_list_is_taken_whole_or_not_at_all,
    the_new_host_of_an_agent_takes_its_place_and_the_old_one_is_shut_out,
);
