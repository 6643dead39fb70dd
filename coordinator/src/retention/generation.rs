//! Recognises a database that was set back to an earlier copy.
//!
//! Before each round of deletion a new random number, the *deletion generation*, is written to the database and to the
//! bucket. A database from before such a round has another one than the bucket: what it believes to be there may be gone, so
//! under it nothing is deleted, and every series is listed anew before a backup refers to anything in it.

use futures::FutureExt as _;

use crate::audit::{Action, Details, OpContext, Outcome};
use crate::objects::key::ObjectKey;
use crate::objects::{ByteRange, ObjectError, ObjectErrorKind, ObjectStore, Put};
use crate::store::{StoreError, Tx, installation, retention};

use super::{Retention, RetentionError};

/// The numbers written last, newest last: written here before the bucket, so that a crash between the two is no difference.
const ISSUED: &str = "deletion_generations";
/// Of these, how many are remembered.
const REMEMBERED: usize = 4;
/// Where the difference was seen last: one event for each.
const DIFFERENT: &str = "deletion_generation_different";
const OBJECT: &str = "generation";
const MAX_LEN: u64 = 256;

/// That database and bucket belong together: needed to delete anything. Good for one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission(String);

impl Retention {
    /// Asks for the permission to delete; `None` where database and bucket do not belong together, which is audited.
    ///
    /// # Errors
    /// Those of store and database.
    pub async fn permission(&self) -> Result<Option<Permission>, RetentionError> {
        if self.check_generation().await? { self.advance().await.map(Some) } else { Ok(None) }
    }

    /// Whether database and bucket belong together; audited where they do not.
    ///
    /// # Errors
    /// Those of store and database.
    pub async fn check_generation(&self) -> Result<bool, RetentionError> {
        let there = bucket(&self.objects).await.map_err(RetentionError::Objects)?;
        let issued = issued(&mut *self.core.store.reader().await?).await?;
        let belongs = match &there {
            None => issued.is_empty(),
            Some(there) => issued.contains(there),
        };
        if !belongs {
            self.note_difference(issued.last().cloned().unwrap_or_default(), there.unwrap_or_default())
                .await?;
        }
        Ok(belongs)
    }

    async fn advance(&self) -> Result<Permission, RetentionError> {
        let new = &hex::encode(self.core.random.bytes::<16>());
        let issue = self.core.store.run_tx("advance the generation", move |tx, _| {
            async move {
                self.fence(tx).await?;
                let mut issued = issued(tx).await?;
                issued.push(new.clone());
                let from = issued.len().saturating_sub(REMEMBERED);
                installation::set(tx, ISSUED, Some(&issued[from..].join(","))).await?;
                installation::set(tx, DIFFERENT, None).await
            }
            .boxed()
        });
        issue.await?;
        let (key, body) = (key(), format!("{new}\n"));
        self.objects.put(&key, body.into(), Put::Replace).await.map_err(RetentionError::Objects)?;
        Ok(Permission(new.clone()))
    }

    async fn note_difference(&self, database: String, bucket: String) -> Result<(), RetentionError> {
        let ctx = &OpContext::coordinator(&self.core);
        let (database, bucket) = (&database, &bucket);
        self.core
            .store
            .run_tx("record that database and bucket differ", move |tx, _| {
                async move {
                    self.fence(tx).await?;
                    if installation::get(tx, DIFFERENT).await?.as_ref() == Some(bucket) {
                        return Ok(());
                    }
                    installation::set(tx, DIFFERENT, Some(bucket)).await?;
                    // What was deleted since is missing in the bucket: nothing may refer to it.
                    retention::forget_listings(tx).await?;
                    let said = Details::none()
                        .with("database", database.as_str())
                        .with("bucket", bucket.as_str())
                        .with("after", "nothing is deleted until `sealift-coordinator recover`");
                    ctx.record(tx, Action::DeletionHalt, &"fleet", Outcome::Done, said).await
                }
                .boxed()
            })
            .await?;
        tracing::error!("the database is not the one that last deleted in this bucket: nothing is deleted");
        Ok(())
    }
}

/// The database was brought in step with the bucket: they belong together from now on.
///
/// # Errors
/// The database's own.
pub async fn adopt(tx: &mut Tx, bucket: Option<&str>) -> Result<(), StoreError> {
    installation::set(tx, ISSUED, bucket).await?;
    installation::set(tx, DIFFERENT, None).await
}

async fn issued(tx: &mut Tx) -> Result<Vec<String>, StoreError> {
    let known = installation::get(tx, ISSUED).await?.unwrap_or_default();
    Ok(known.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
}

impl Permission {
    /// Whether it still holds: nobody else has written another generation since.
    ///
    /// # Errors
    /// The store's own.
    pub async fn holds(&self, objects: &ObjectStore) -> Result<bool, RetentionError> {
        let there = bucket(objects).await.map_err(RetentionError::Objects)?;
        Ok(there.as_ref() == Some(&self.0))
    }
}

/// What the bucket says.
///
/// # Errors
/// The store's own.
pub async fn bucket(objects: &ObjectStore) -> Result<Option<String>, ObjectError> {
    match objects.get(&key(), ByteRange::All, MAX_LEN).await {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind == ObjectErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn key() -> ObjectKey {
    let valid = "the name is made of key parts";
    #[allow(clippy::expect_used)] // a constant, and tested
    ObjectKey::coordinator(OBJECT).expect(valid)
}

/// Whether database and bucket were found not to belong together.
///
/// # Errors
/// The database's own.
pub async fn differs(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(installation::get(tx, DIFFERENT).await?.is_some())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_generation_has_a_key() {
        assert_eq!(super::key().as_str(), "coordinator/generation");
    }
}
