//! Opening: migrations once, a newer schema refused, TLS as the URL says; and what a lost connection costs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::secret::Secret;
use sealift_coordinator::store::{DatabaseUrl, Dialect, Store, StoreError, Tx, installation};
use sealift_tests::services::{Postgres, PostgresOptions};

use crate::support::database::{Database, on_both_databases};

async fn execute(tx: &mut Tx, sql: &'static str) -> Result<u64, StoreError> {
    let done = sqlx::query(sql).execute(tx).await;
    done.map(|done| done.rows_affected())
        .map_err(|source| StoreError::Database { operation: "a test's statement", source })
}

async fn run(store: &Store, sql: &'static str) -> Result<u64, StoreError> {
    store.run_tx("a test's transaction", move |tx, _| execute(tx, sql).boxed()).await
}

async fn the_audit_can_only_grow(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    let insert = "INSERT INTO audit_events (id, time_ms, actor, source_address, request_id, action, entity, outcome, details)
         VALUES ('1', 0, 'a', '', '', 'a', 'e', 'done', '{}')";
    assert_eq!(run(&store, insert).await.unwrap(), 1);
    let mut refused = vec!["UPDATE audit_events SET actor = 'nobody'", "DELETE FROM audit_events"];
    if let Database::Postgres(server) = &on {
        refused.push("TRUNCATE audit_events");
        // The superuser has all rights: what refuses him is the trigger.
        for statement in &refused {
            let mut psql = server.client("psql");
            let output = psql.args(["-d", "sealift", "-c", statement]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains("append-only"), "{said}");
        }
        let may = "SELECT 1 FROM information_schema.role_table_grants WHERE table_name = 'audit_events'
             AND privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE')";
        assert_eq!(server.sql("sealift", may), "", "nobody was given the right");
    }
    for statement in refused {
        run(&store, statement).await.unwrap_err();
    }
    store.close().await;
}

async fn a_database_of_a_newer_version_is_refused_and_left_alone(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    let newer = match store.dialect() {
        Dialect::Sqlite => "INSERT INTO _sqlx_migrations VALUES (9999, 'of tomorrow', 0, 1, x'00', 0)",
        Dialect::Postgres => {
            "INSERT INTO _sqlx_migrations VALUES (9999, 'of tomorrow', now(), TRUE, '\\x00', 0)"
        }
    };
    run(&store, newer).await.unwrap();
    store.close().await;
    drop(store);
    let error = Store::open(&on.url(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { version: 9999, .. }), "{error}");
    assert!(error.to_string().contains("install that version"), "{error}");
}

async fn facts_are_made_once(on: Database) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    let set = (0..8).map(|n| {
        let (store, value) = (store.clone(), n.to_string());
        async move {
            let value = &value;
            let set =
                store.run_tx("a fact", move |tx, _| installation::get_or_set(tx, "fact", value).boxed());
            set.await.unwrap()
        }
    });
    let mut seen = futures::future::join_all(set).await;
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    store.close().await;
}

on_both_databases!(
    the_audit_can_only_grow,
    a_database_of_a_newer_version_is_refused_and_left_alone,
    facts_are_made_once,
);

#[tokio::test]
async fn coordinators_that_start_together_migrate_once() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let url = on.url(dir.path());
    let opened = futures::future::join_all((0..4).map(|_| Store::open(&url))).await;
    for store in opened {
        store.unwrap().close().await;
    }
}

#[tokio::test]
async fn a_transaction_whose_connection_dies_is_tried_again_on_another() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    let tries = AtomicU32::new(0);
    let tries_ref = &tries;
    store
        .run_tx("dies once", move |tx, _| {
            async move {
                installation::get_or_set(tx, "fact", "1").await?;
                if tries_ref.fetch_add(1, Ordering::SeqCst) == 0 {
                    execute(tx, "SELECT pg_terminate_backend(pg_backend_pid())").await?;
                }
                Ok::<_, StoreError>(())
            }
            .boxed()
        })
        .await
        .unwrap();
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    let fact = installation::get(&mut store.reader().await.unwrap(), "fact").await.unwrap();
    assert_eq!(fact.as_deref(), Some("1"));
    store.close().await;
}

#[tokio::test]
async fn transactions_that_block_one_another_both_come_through() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let store = Store::open(&on.url(dir.path())).await.unwrap();
    run(&store, "INSERT INTO installation (name, value) VALUES ('a', '0'), ('b', '0')").await.unwrap();
    let both = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let count = |first: &'static str, second: &'static str| {
        let (store, both) = (store.clone(), both.clone());
        async move {
            let tries = AtomicU32::new(0);
            let (tries, both) = (&tries, &both);
            let done = store.run_tx("in one order", move |tx, _| {
                async move {
                    execute(tx, first).await?;
                    if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                        both.wait().await;
                    }
                    execute(tx, second).await
                }
                .boxed()
            });
            tokio::time::timeout(Duration::from_secs(60), done).await.unwrap().unwrap();
        }
    };
    const A: &str = "UPDATE installation SET value = value || '1' WHERE name = 'a'";
    const B: &str = "UPDATE installation SET value = value || '1' WHERE name = 'b'";
    tokio::join!(count(A, B), count(B, A));
    let a = installation::get(&mut store.reader().await.unwrap(), "a").await.unwrap();
    assert_eq!(a.as_deref(), Some("011"), "each came through once");
    store.close().await;
}

#[tokio::test]
async fn tls_is_as_the_url_says_and_a_wrong_ca_is_refused() {
    let (ca_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = own.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: String| {
        std::fs::write(dir.path().join(name), pem).unwrap();
        dir.path().join(name).display().to_string()
    };
    let right = write("ca.pem", ca_certificate.pem());
    let wrong = write("other.pem", other.cert.pem());
    let server = Postgres::start_with(PostgresOptions {
        settings: vec![("ssl".into(), "on".into())],
        hba: vec!["hostssl all all all scram-sha-256".into()],
        files: vec![
            ("server.key".into(), key.serialize_pem().into_bytes()),
            ("server.crt".into(), certificate.pem().into_bytes()),
        ],
    });
    let open = async |query: &str, password: &str| {
        let url = format!("postgres://postgres@localhost:{}/postgres?{query}", server.port());
        let url = DatabaseUrl::parse(&url, Some(Secret::new(password.to_owned()))).unwrap();
        Store::open(&url).await
    };
    let store = open(&format!("sslmode=verify-full&sslrootcert={right}"), server.password()).await.unwrap();
    let mut reader = store.reader().await.unwrap();
    let ssl = sqlx::query_scalar::<_, bool>("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    assert!(ssl.fetch_one(&mut *reader).await.unwrap());
    drop(reader);
    store.close().await;
    for (query, password) in [
        (format!("sslmode=verify-full&sslrootcert={wrong}"), server.password()),
        ("sslmode=disable".to_owned(), server.password()),
        (format!("sslmode=verify-full&sslrootcert={right}"), "not the pass/word"),
    ] {
        let error = open(&query, password).await.unwrap_err();
        let said = format!("{error:?} {error}");
        assert!(!said.contains(password), "{said}");
    }
}
