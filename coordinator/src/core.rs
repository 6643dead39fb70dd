//! What every domain module needs: the database, the time, randomness, and which installation this is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::id::{CoordinatorId, Random, RepositoryId};

use crate::recovery::state::Standing;
use crate::store::{Store, StoreError, dialect, generation, installation};

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
    /// This coordinator process among those of the installation.
    pub coordinator: CoordinatorId,
    /// Which copy of the database this is, and whether it is in step with the bucket.
    pub standing: Standing,
    /// How far the database's clock is ahead of this one, in milliseconds.
    ahead: Arc<AtomicI64>,
}

impl Core {
    /// Reads which installation `store` belongs to; a new database becomes a new installation.
    ///
    /// # Errors
    /// The database's own.
    pub async fn load(store: Store, clock: Clock, random: Random) -> Result<Self, StoreError> {
        let repository = RepositoryId::generate(&random);
        // Kept below 2^63, so that it is a positive number in every database and language.
        let id = u64::from_le_bytes(random.bytes()) >> 1;
        let now = clock.now();
        let (repository, generation) = store
            .run_tx("load the installation", move |tx, _| {
                Box::pin(async move {
                    let repository =
                        installation::get_or_set(tx, "repository_id", &repository.to_string()).await?;
                    let generation = generation::get_or_start(tx, id, now).await?;
                    Ok::<_, StoreError>((repository, generation))
                })
            })
            .await?;
        let unreadable = |e: Box<dyn std::error::Error + Send + Sync>| StoreError::Database {
            operation: "read which installation this is",
            source: sqlx::Error::Decode(e),
        };
        let core = Self {
            repository: repository
                .parse()
                .map_err(|e: sealift_common::id::InvalidId| unreadable(e.into()))?,
            standing: Standing::new(&generation),
            coordinator: CoordinatorId::generate(&random),
            store,
            clock,
            random,
            ahead: Arc::default(),
        };
        core.compare_clocks().await?;
        Ok(core)
    }

    /// What the time is for leases, which several coordinators must agree on: the database's, as far as this coordinator
    /// knows it. Moves with [`Core::clock`].
    pub fn lease_time(&self) -> UnixMillis {
        UnixMillis(self.clock.now().0.saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// The moment `here`, by this coordinator's clock, in the time of leases.
    pub fn to_lease_time(&self, here: UnixMillis) -> UnixMillis {
        UnixMillis(here.0.saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// Asks the database for the time; [`Core::lease_time`] follows.
    ///
    /// # Errors
    /// The database's own.
    pub async fn compare_clocks(&self) -> Result<(), StoreError> {
        let mut reader = self.store.reader().await?;
        let before = self.clock.now();
        let there = dialect::now(&mut reader, before).await?;
        // Half-way between asking and hearing.
        let here = before.0 + (self.clock.now().0 - before.0) / 2;
        self.ahead.store(if there == before { 0 } else { there.0 - here }, Ordering::Relaxed);
        Ok(())
    }
}
