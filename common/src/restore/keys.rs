//! Data keys, opened once per origin backup: a year-old backup has thousands of packs and a few dozen origins.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ObjectSource, RestoreError};
use crate::crypto::slots::MAX_SLOTS;
use crate::crypto::{DataKey, Identities, KeySlots};
use crate::format::names::ObjectName;
use crate::id::{BackupId, Sha256};

/// Opens slots with the admin's identities, and remembers what it opened.
#[derive(Debug)]
pub struct KeyCache {
    identities: Arc<Identities>,
    source: Arc<dyn ObjectSource>,
    /// Further slots, for recipients that were added later.
    added: HashMap<BackupId, Vec<ObjectName>>,
    opened: Mutex<HashMap<BackupId, DataKey>>,
}

impl KeyCache {
    /// Opens with `identities`, and with the `slots/` objects named where a pack's or manifest's own slots do not serve.
    pub fn new(source: Arc<dyn ObjectSource>, identities: Arc<Identities>, slots: &[ObjectName]) -> Self {
        let mut added: HashMap<BackupId, Vec<ObjectName>> = HashMap::new();
        for name in slots {
            if let ObjectName::Slots { backup, .. } = name {
                added.entry(*backup).or_default().push(*name);
            }
        }
        Self { identities, source, added, opened: Mutex::default() }
    }

    /// The data key of `backup`: the one that was opened before, where it `commits`, else the one that `unlock` opens from
    /// an object's own slots and those added later.
    ///
    /// # Errors
    /// What `unlock` says; slots that cannot be read or are not what their names say.
    pub async fn open(
        &self,
        backup: BackupId,
        commits: impl Fn(&DataKey) -> bool,
        unlock: impl Fn(&Identities, &[KeySlots]) -> Result<DataKey, RestoreError> + Send + Sync + 'static,
    ) -> Result<DataKey, RestoreError> {
        let known = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&backup).cloned();
        if let Some(key) = known.filter(commits) {
            return Ok(key);
        }
        let unlock = Arc::new(unlock);
        let key = match self.unlocked(unlock.clone(), Vec::new()).await {
            Err(_) if self.added.contains_key(&backup) => {
                self.unlocked(unlock, self.further(backup).await?).await?
            }
            other => other?,
        };
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(backup, key.clone());
        Ok(key)
    }

    /// A key exchange per recipient and identity is not for the async threads.
    async fn unlocked(
        &self,
        unlock: Arc<
            impl Fn(&Identities, &[KeySlots]) -> Result<DataKey, RestoreError> + Send + Sync + 'static,
        >,
        further: Vec<KeySlots>,
    ) -> Result<DataKey, RestoreError> {
        let identities = self.identities.clone();
        let work = tokio::task::spawn_blocking(move || unlock(&identities, &further));
        work.await.unwrap_or(Err(RestoreError::Cancelled))
    }

    async fn further(&self, backup: BackupId) -> Result<Vec<KeySlots>, RestoreError> {
        let mut further = Vec::new();
        for name in self.added.get(&backup).into_iter().flatten() {
            let bytes = self.source.get(name, MAX_SLOTS as u64).await?;
            let actual = Sha256::of(&bytes);
            if name.sha256() != Some(actual) {
                return Err(RestoreError::Hash { object: name.to_string(), actual });
            }
            // Anyone can make slots; those that do not parse open nothing and spoil nothing.
            further.extend(KeySlots::parse(&bytes).ok());
        }
        Ok(further)
    }
}
