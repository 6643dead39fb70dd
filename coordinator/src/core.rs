//! What every domain module needs: the database, the time, randomness, and which installation this is.

use sealift_common::clock::Clock;
use sealift_common::id::{Random, RepositoryId};

use crate::store::{Store, StoreError, installation};

/// Cheap to clone; clones share one database.
#[derive(Debug, Clone)]
pub struct Core {
    /// The database.
    pub store: Store,
    /// What the time is.
    pub clock: Clock,
    /// Where ids and secrets come from.
    pub random: Random,
    /// Everything below this installation's prefix of its bucket.
    pub repository: RepositoryId,
    /// Made with the database: a database restored from an older backup is known by it. Part of every epoch.
    pub generation: u64,
}

impl Core {
    /// Reads which installation `store` belongs to; a new database becomes a new installation.
    ///
    /// # Errors
    /// The database's own.
    pub async fn load(store: Store, clock: Clock, random: Random) -> Result<Self, StoreError> {
        let repository = RepositoryId::generate(&random);
        // Kept below 2^63, so that it is a positive number in every database and language.
        let generation = u64::from_le_bytes(random.bytes()) >> 1;
        let facts = store
            .run_tx("load the installation", move |tx, _| {
                Box::pin(async move {
                    let repository =
                        installation::get_or_set(tx, "repository_id", &repository.to_string()).await?;
                    let generation =
                        installation::get_or_set(tx, "generation", &generation.to_string()).await?;
                    Ok::<_, StoreError>((repository, generation))
                })
            })
            .await?;
        let unreadable = |e: Box<dyn std::error::Error + Send + Sync>| StoreError::Database {
            operation: "read which installation this is",
            source: sqlx::Error::Decode(e),
        };
        Ok(Self {
            repository: facts.0.parse().map_err(|e: sealift_common::id::InvalidId| unreadable(e.into()))?,
            generation: facts.1.parse().map_err(|e: std::num::ParseIntError| unreadable(e.into()))?,
            store,
            clock,
            random,
        })
    }
}
