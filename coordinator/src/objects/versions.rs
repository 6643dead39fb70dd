//! Deleting for good, and locks, on buckets that keep versions.
//!
//! There, a DELETE without a version only hides an object behind a delete marker: the bytes stay, and are paid for. So every
//! version is named, markers included. A store that refuses to delete a version because it is locked is right: its time has
//! not come.

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use sealift_common::clock::UnixMillis;

use super::error::{ObjectError, ObjectErrorKind};
use super::key::ObjectKey;
use super::settings::{LockMode, ObjectLock};
use super::store::{ObjectStore, failed};

/// Pages of versions looked at for one name: more than this means that somebody is playing games.
const MAX_PAGES: usize = 100;

/// How a deletion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// Nothing is left under the name.
    Gone,
    /// The store refuses to delete what is left: locked, as far as we know.
    Refused {
        /// What the store said.
        why: String,
    },
}

impl ObjectStore {
    /// The lock that backups' objects get here, where the bucket has Object Lock and one is configured.
    pub fn lock(&self) -> Option<ObjectLock> {
        self.settings().object_lock.filter(|_| self.abilities().object_lock)
    }

    /// Deletes an object for good, with all its versions.
    ///
    /// # Errors
    /// [`ObjectError`] where the store cannot be asked. That it refuses is no error: [`Deletion::Refused`].
    pub async fn delete_for_good(&self, name: &ObjectKey) -> Result<Deletion, ObjectError> {
        let abilities = self.abilities();
        if !abilities.versioning && !abilities.object_lock && !abilities.default_lock {
            return self.deleted(name, None).await;
        }
        let mut outcome = Deletion::Gone;
        for version in self.versions(name).await? {
            match self.deleted(name, Some(&version)).await? {
                Deletion::Gone => {}
                refused => outcome = refused,
            }
        }
        Ok(outcome)
    }

    async fn deleted(&self, name: &ObjectKey, version: Option<&str>) -> Result<Deletion, ObjectError> {
        match self.delete(name, version).await {
            Ok(()) => Ok(Deletion::Gone),
            Err(error) if matches!(error.kind, ObjectErrorKind::Denied | ObjectErrorKind::Refused { .. }) => {
                Ok(Deletion::Refused { why: error.kind.to_string() })
            }
            Err(error) => Err(error),
        }
    }

    /// All versions of one name, delete markers among them.
    async fn versions(&self, name: &ObjectKey) -> Result<Vec<String>, ObjectError> {
        let key = self.key(name);
        let (mut found, mut key_marker, mut version_marker) = (Vec::new(), None, None);
        for _ in 0..MAX_PAGES {
            let request = self.client().list_object_versions().bucket(self.bucket()).prefix(&key);
            let request =
                request.set_key_marker(key_marker.take()).set_version_id_marker(version_marker.take());
            let page = request.send().await.map_err(|e| failed("list versions", name.as_str(), e))?;
            let versions = page.versions().iter().map(|v| (v.key(), v.version_id()));
            let markers = page.delete_markers().iter().map(|m| (m.key(), m.version_id()));
            let own = versions.chain(markers).filter(|(of, _)| *of == Some(key.as_str()));
            found.extend(own.filter_map(|(_, version)| version.map(str::to_owned)));
            if page.is_truncated() != Some(true) {
                break;
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            version_marker = page.next_version_id_marker().map(str::to_owned);
        }
        Ok(found)
    }

    /// Sees to it that an object is locked until `until` at least: until when it is then. Its lock is never shortened.
    ///
    /// # Errors
    /// [`ObjectError`], also where the object is not there.
    pub async fn extend_lock(
        &self,
        name: &ObjectKey,
        lock: &ObjectLock,
        until: UnixMillis,
    ) -> Result<UnixMillis, ObjectError> {
        let head = self.head(name).await?.ok_or_else(|| ObjectError {
            operation: "lock",
            object: name.to_string(),
            kind: ObjectErrorKind::NotFound,
            source: None,
        })?;
        if let Some(locked) = head.locked_until.filter(|locked| *locked >= until) {
            return Ok(locked);
        }
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(DateTime::from_millis(until.0))
            .build();
        self.client()
            .put_object_retention()
            .bucket(self.bucket())
            .key(self.key(name))
            .set_version_id(head.version)
            .retention(retention)
            .send()
            .await
            .map_err(|e| failed("lock", name.as_str(), e))?;
        Ok(until)
    }
}
