//! The two databases that a coordinator may have: every test of the store runs on both.

use std::path::Path;

use sealift_common::secret::Secret;
use sealift_coordinator::store::DatabaseUrl;
use sealift_tests::services::Postgres;

/// Where a test's coordinator keeps its rows. Keep it until the coordinator is gone.
pub enum Database {
    /// A file in the coordinator's directory.
    Sqlite,
    /// A server of the test's own.
    Postgres(Box<Postgres>),
}

impl Database {
    /// Starts a PostgreSQL server with an empty database `sealift`.
    pub fn postgres() -> Self {
        let server = Postgres::start();
        server.create_database("sealift");
        Self::Postgres(Box::new(server))
    }

    /// For a coordinator in `dir`.
    pub fn url(&self, dir: &Path) -> DatabaseUrl {
        match self {
            Self::Sqlite => DatabaseUrl::file(dir.join("coordinator.db")),
            Self::Postgres(server) => {
                let password = Secret::new(server.password().to_owned());
                DatabaseUrl::parse(&server.url("sealift"), Some(password)).unwrap()
            }
        }
    }
}

/// Runs each of these `async fn(Database)` once on each database.
macro_rules! on_both_databases {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::$test($crate::support::database::Database::Sqlite).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $test() { super::$test($crate::support::database::Database::postgres()).await })+
        }
    };
}
pub(crate) use on_both_databases;
