//! Object Lock and versions, on Ceph RGW's locked bucket: reused packs are locked for longer, what is locked stays, and what
//! is deleted leaves neither versions nor delete markers.

use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::format::names::ObjectName;
use sealift_common::secret::Secret;
use sealift_coordinator::objects::settings::{
    Credentials, Endpoint, LockMode, ObjectLock, ServerSideEncryption,
};
use sealift_coordinator::objects::{Deletion, ObjectKey, Put, StorageSettings};
use sealift_coordinator::retention::Retention;
use sealift_coordinator::retention::collect::{Collected, Round};
use sealift_coordinator::retention::packs::GRACE;
use sealift_tests::services::S3;

use crate::support::database::Database;
use crate::support::{Agent, World, recipient};

/// What a backup refers to is locked for so long at least.
const PERIOD: Duration = Duration::from_secs(12);

fn locked_bucket() -> S3 {
    let mut server = S3::rgw();
    server.bucket = format!("{}-locked", server.bucket);
    server.aws(&["s3api", "create-bucket", "--bucket", &server.bucket, "--object-lock-enabled-for-bucket"]);
    server
}

fn settings(server: &S3) -> StorageSettings {
    StorageSettings {
        endpoint: Some(Endpoint::parse(&server.endpoint, false).unwrap()),
        region: server.region.clone(),
        bucket: server.bucket.parse().unwrap(),
        prefix: server.prefix.parse().unwrap(),
        path_style: true,
        credentials: Credentials {
            access_key_id: server.access_key.clone(),
            secret_access_key: Secret::new(server.secret_key.clone()),
            session_token: None,
        },
        put_only: None,
        encryption: ServerSideEncryption::BucketDefault,
        object_lock: Some(ObjectLock { mode: LockMode::Compliance, period: PERIOD }),
        ca_pem: None,
        client_identity_pem: None,
    }
}

/// Versions and delete markers of one key, as the store lists them.
fn versions(server: &S3, name: &str) -> usize {
    let key = server.key(name);
    let listed = server.aws(&["s3api", "list-object-versions", "--bucket", &server.bucket, "--prefix", &key]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
    let count = |what: &str| listed[what].as_array().map_or(0, Vec::len);
    count("Versions") + count("DeleteMarkers")
}

async fn locked_until(world: &World, name: ObjectName) -> UnixMillis {
    world.objects.head(&name.into()).await.unwrap().unwrap().locked_until.unwrap()
}

async fn collect(retention: &Retention, agent: &Agent) -> Collected {
    retention.collect(agent.series, &mut Round::default()).await.unwrap()
}

#[tokio::test]
async fn what_is_locked_stays_and_is_locked_for_longer_while_it_is_used() {
    let server = tokio::task::spawn_blocking(locked_bucket).await.unwrap();
    let world = World::in_store(&Database::Sqlite, Some(settings(&server))).await;
    assert!(world.objects.abilities().object_lock, "{:?}", world.objects.report());
    let who = recipient();
    world.trust(std::slice::from_ref(&who)).await;
    let agent = world.agent("store-1").await;
    let retention = world.retention();

    let (first, manifest) = world.back_up(&agent, &who, 1).await;
    let pack: ObjectName = manifest.public.packs[0].meta.name(agent.series);
    let at_upload = locked_until(&world, pack).await;
    assert!(at_upload >= world.clock.now().plus(PERIOD * 2).minus(Duration::from_secs(2)), "{at_upload}");

    // Used again with more than a period left: as it was. With less: extended, and never shortened.
    world.back_up(&agent, &who, 1).await;
    assert_eq!(locked_until(&world, pack).await, at_upload);
    world.clock.advance(PERIOD + PERIOD / 2);
    let (third, _) = world.back_up(&agent, &who, 1).await;
    let extended = locked_until(&world, pack).await;
    assert!(extended >= world.clock.now().plus(PERIOD), "{extended}, not {at_upload}");

    // Long after, for the coordinator; the store's clock says that everything is still locked.
    let admin = world.as_admin();
    retention.delete(&admin, &first.backup.id.to_string(), "a test", false).await.unwrap();
    assert_eq!(collect(&retention, &agent).await, Collected::default());
    world.clock.advance(GRACE);
    let done = collect(&retention, &agent).await;
    assert_eq!((done.manifests, done.refused), (0, 1), "the store refuses, and that is no error: {done:?}");
    let name = manifest.name.to_string();
    let there = {
        let (server, name) = (server.clone(), name.clone());
        tokio::task::spawn_blocking(move || versions(&server, &name)).await.unwrap()
    };
    assert_eq!(there, 1, "a refusal leaves no delete marker");

    // When the lock has ended, it goes for good.
    let end = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        let done = collect(&retention, &agent).await;
        if done.manifests == 1 {
            break;
        }
        assert!(std::time::Instant::now() < end, "it is never deleted: {done:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let left = {
        let (server, name) = (server.clone(), name.clone());
        tokio::task::spawn_blocking(move || versions(&server, &name)).await.unwrap()
    };
    assert_eq!(left, 0);
    assert!(locked_until(&world, pack).await >= extended, "the third backup needs it: {}", third.backup.id);
}

#[tokio::test]
async fn a_delete_marker_is_no_delete() {
    let server = tokio::task::spawn_blocking(locked_bucket).await.unwrap();
    let open = StorageSettings { object_lock: None, ..settings(&server) };
    let world = World::in_store(&Database::Sqlite, Some(open)).await;
    let name: ObjectKey = "coordinator/hidden".parse().unwrap();
    for body in ["one", "two"] {
        world.objects.put(&name, body.into(), Put::Replace).await.unwrap();
    }
    world.objects.delete(&name, None).await.unwrap();
    let count = async || {
        let (server, name) = (server.clone(), name.to_string());
        tokio::task::spawn_blocking(move || versions(&server, &name)).await.unwrap()
    };
    assert_eq!(world.objects.head(&name).await.unwrap(), None, "hidden");
    assert_eq!(count().await, 3, "two versions and a marker");
    assert_eq!(world.objects.delete_for_good(&name).await.unwrap(), Deletion::Gone);
    assert_eq!(count().await, 0);
}
