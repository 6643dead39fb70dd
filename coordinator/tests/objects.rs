//! The embedded S3 server passes the conformance suite, and the probe says of it what is true.

#![allow(clippy::unwrap_used)] // helpers of tests are not tests to clippy
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use bytes::Bytes;
use sealift_common::clock::Clock;
use sealift_common::format::names::ObjectName;
use sealift_common::id::{Random, SeriesId, Sha256};
use sealift_common::lifecycle::Lifecycle;
use sealift_coordinator::objects::probe::{self, Abilities};
use sealift_coordinator::objects::settings::Credentials;
use sealift_coordinator::objects::{
    ObjectErrorKind, ObjectKey, ObjectStore, Put, StorageSettings, conformance, embedded,
};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn start(dir: &Path) -> (StorageSettings, Lifecycle) {
    let lifecycle = Lifecycle::default();
    let settings = embedded::start(dir, ANY_PORT, &Random::from_os(), &lifecycle).await.unwrap();
    (settings, lifecycle)
}

fn store(settings: StorageSettings) -> ObjectStore {
    ObjectStore::new(settings, Clock::system()).unwrap()
}

/// A pack of a fresh series.
fn a_pack(body: &Bytes) -> ObjectKey {
    ObjectName::Pack { series: SeriesId::generate(&Random::from_os()), sha256: Sha256::of(body) }.into()
}

#[tokio::test]
async fn the_embedded_server_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _lifecycle) = start(dir.path()).await;
    conformance::run(&store(settings), &Random::from_os()).await.unwrap();
}

#[tokio::test]
async fn the_probe_says_what_the_embedded_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _lifecycle) = start(dir.path()).await;
    let store = store(settings);
    let report = probe::run(&store, &Random::from_os()).await;
    assert_eq!(report.error, None);
    assert!(report.usable && report.probed.is_some());
    assert_eq!(
        store.abilities(),
        Abilities {
            verifies_body_hash: true,
            verifies_checksum: true,
            if_none_match: true,
            ..Abilities::default()
        }
    );
    let warnings: Vec<_> = report.findings.iter().filter(|f| f.warning).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(report.findings.iter().any(|f| f.check == "put_only_credential" && f.result == "works"));
    assert!(store.list_all("", 10).await.unwrap().is_empty(), "the probe left something behind");
}

#[tokio::test]
async fn what_is_stored_survives_a_restart_with_the_same_keys() {
    let dir = tempfile::tempdir().unwrap();
    let body = Bytes::from(vec![7; 5_000]);
    let name = a_pack(&body);
    let (settings, lifecycle) = start(dir.path()).await;
    store(settings.clone()).put(&name, body.clone(), Put::New).await.unwrap();
    lifecycle.soft.cancel();
    lifecycle.finished().await;
    let (again, _lifecycle) = start(dir.path()).await;
    assert_eq!(again.credentials.access_key_id, settings.credentials.access_key_id);
    assert_eq!(store(again).hash(&name, 5_000).await.unwrap(), (5_000, Sha256::of(&body)));
}

#[tokio::test]
async fn the_put_only_credential_can_only_put_series_objects() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _lifecycle) = start(dir.path()).await;
    let put_only = settings.put_only.clone().unwrap();
    let as_agent = store(StorageSettings { credentials: put_only, put_only: None, ..settings });
    let body = Bytes::from(vec![1; 300]);
    let mine = a_pack(&body);
    as_agent.put(&mine, body.clone(), Put::New).await.unwrap();
    let foreign = ObjectKey::from(ObjectName::Trust { version: 1, sha256: Sha256::of(&body) });
    let denied = [
        as_agent.put(&foreign, body.clone(), Put::New).await.unwrap_err(),
        as_agent.hash(&mine, 300).await.unwrap_err(),
        as_agent.list_all("", 10).await.unwrap_err(),
        as_agent.delete(&mine, None).await.unwrap_err(),
    ];
    assert!(denied.iter().all(|e| e.kind == ObjectErrorKind::Denied), "{denied:?}");
}

#[tokio::test]
async fn a_wrong_key_is_denied_and_a_closed_port_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, lifecycle) = start(dir.path()).await;
    let wrong = Credentials { secret_access_key: "wrong".to_owned().into(), ..settings.credentials.clone() };
    let denied = store(StorageSettings { credentials: wrong, ..settings.clone() });
    assert_eq!(denied.list_all("", 10).await.unwrap_err().kind, ObjectErrorKind::Denied);

    lifecycle.soft.cancel();
    lifecycle.finished().await;
    let down = store(settings);
    let error = down.list_all("", 10).await.unwrap_err();
    assert_eq!(error.kind, ObjectErrorKind::Unreachable);
    assert!(error.is_retryable());
    let report = probe::run(&down, &Random::from_os()).await;
    assert!(!report.usable && report.error.is_some());
    assert_eq!(
        down.abilities(),
        Abilities::default(),
        "nothing good is assumed of a store that was never seen"
    );
}

#[tokio::test]
async fn the_embedded_server_stays_on_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused = embedded::start(dir.path(), everywhere, &Random::from_os(), &Lifecycle::default()).await;
    assert!(matches!(refused, Err(embedded::EmbeddedError::NotLoopback(_))));
}

#[test]
fn the_put_only_policy_grants_puts_below_series_and_nothing_else() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/iam");
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    let put_only = read("put-only.json");
    let statements = put_only["Statement"].as_array().unwrap();
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0]["Action"], serde_json::json!(["s3:PutObject", "s3:PutObjectRetention"]));
    assert_eq!(statements[0]["Resource"], "arn:aws:s3:::BUCKET/PREFIX/series/*");
    for name in ["coordinator.json", "restore-only.json", "bucket-tls-only.json"] {
        assert_eq!(read(name)["Version"], "2012-10-17", "{name}");
    }
    let coordinator = read("coordinator.json").to_string();
    assert!(!coordinator.contains("s3:*") && !coordinator.contains("\"*\""), "{coordinator}");
}
