//! Brings one pack to the store: sealed for the session that is up, authorised, PUT, confirmed. Whatever fails on the way is
//! tried again until it is stored or the attempt ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tracing::Instrument;

use sealift_common::format::pack::Pack;
use sealift_common::id::BackupId;
use sealift_proto::v1;

use super::begin::{Binding, Bindings};
use super::failure::AttemptError;
use super::job::Limits;
use super::patience::{Patience, StorePatience};
use crate::agent::Agent;
use crate::pack::{ReadyPack, StoredPack};
use crate::progress::{Meters, Stage};
use crate::put::{Put, PutClient, PutError};
use crate::source::whole_chain;
use crate::spool::folder::Folder;
use crate::state::index_cache::IndexCache;
use crate::upload::Outgoing;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Stores packs for one attempt.
#[derive(Debug)]
pub struct PackStore {
    /// For time and randomness.
    pub agent: Arc<Agent>,
    /// The session to store them under.
    pub bindings: Arc<Bindings>,
    /// How bytes get to the store.
    pub put: PutClient,
    /// Takes in the index of each stored pack.
    pub cache: IndexCache,
    /// Counters.
    pub meters: Arc<Meters>,
    /// What the attempt may take.
    pub limits: Limits,
    /// Where packs wait for a slow store.
    pub folder: Option<Arc<Folder>>,
}

/// How waiting goes for one pack.
struct Tries {
    coordinator: Patience,
    store: StorePatience,
    /// The backup under which the PUT went through already: only the confirmation is left.
    written_for: Option<BackupId>,
}

impl PackStore {
    /// Stores one pack; its memory is free when this returns, and so is its place in the spool.
    ///
    /// # Errors
    /// [`AttemptError`] where the attempt is over.
    pub async fn store(&self, outgoing: Outgoing) -> Result<StoredPack, AttemptError> {
        let Outgoing { number, ready } = outgoing;
        let ReadyPack { mut pack, permit: _memory } = match ready {
            Some(ready) => ready,
            None => self.load(number).await?,
        };
        let mut tries = Tries {
            coordinator: Patience::new(&self.agent, "store a pack"),
            store: StorePatience::new(&self.agent),
            written_for: None,
        };
        loop {
            let binding = self.bindings.current().await?;
            if pack.owner().backup != binding.backup() {
                if binding.pack(pack.meta().sha256).is_some_and(|known| !known.retiring) {
                    break; // it was stored, and only the word of it was lost
                }
                pack = self.reseal(pack, &binding).await?;
            }
            if self.try_once(&binding, &pack, &mut tries).await? {
                break;
            }
        }
        self.is_stored(number, pack).await
    }

    /// How long the store may be away: once the source is through, nothing is held open for it.
    pub fn store_timeout(&self) -> Duration {
        match self.meters.stage() {
            Stage::Dumping | Stage::Uploading => self.limits.stall_timeout,
            Stage::Spooled | Stage::Committing => self.limits.stall_timeout.max(self.limits.max_duration),
        }
    }

    async fn load(&self, number: u32) -> Result<ReadyPack, AttemptError> {
        let nowhere = || AttemptError::Build { what: "a pack", problem: "it waits in no spool".to_owned() };
        let folder = self.folder.clone().ok_or_else(nowhere)?;
        let pack = tokio::task::spawn_blocking(move || folder.load(number))
            .await
            .map_err(|error| AttemptError::Build { what: "a pack", problem: error.to_string() })?
            .map_err(AttemptError::Spool)?;
        Ok(ReadyPack { pack: Arc::new(pack), permit: None })
    }

    async fn reseal(&self, pack: Arc<Pack>, binding: &Binding) -> Result<Arc<Pack>, AttemptError> {
        tracing::info!(pack = %pack.id(), "sealing a pack anew for the new session");
        let (keys, random) = (binding.keys.clone(), self.agent.random.clone());
        let failed = |problem: String| AttemptError::Build { what: "a pack", problem };
        tokio::task::spawn_blocking(move || pack.reseal(&keys, &random))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map(Arc::new)
            .map_err(|error| failed(error.to_string()))
    }

    /// One try; whether the pack is stored. Waits before it asks for another.
    async fn try_once(
        &self,
        binding: &Binding,
        pack: &Arc<Pack>,
        tries: &mut Tries,
    ) -> Result<bool, AttemptError> {
        if tries.written_for != Some(binding.backup()) {
            let signed = match self.authorize(binding, pack).await {
                Ok(signed) => signed,
                Err(status) => {
                    return tries.coordinator.wait(status, binding.connection.number).await.map(|()| false);
                }
            };
            match self.put(&signed, pack).await {
                Ok(_) => tries.written_for = Some(binding.backup()),
                Err(error) => return tries.store.wait(error, self.store_timeout()).await.map(|()| false),
            }
        }
        match self.confirm(binding, pack).await {
            Ok(()) => Ok(true),
            Err(status) => {
                // Perhaps it is not there after all: the next try writes it again, and 412 costs little.
                tries.written_for = None;
                tries.coordinator.wait(status, binding.connection.number).await.map(|()| false)
            }
        }
    }

    async fn authorize(&self, binding: &Binding, pack: &Pack) -> Result<v1::SignedRequest, tonic::Status> {
        let meta = pack.meta();
        let mut request = tonic::Request::new(v1::AuthorizePackRequest {
            attempt: Some(self.bindings.attempt().to_wire()),
            backup_id: binding.backup().to_vec(),
            sha256: meta.sha256.to_vec(),
            size: meta.size,
            meta_sha256: meta.meta_sha256.to_vec(),
            index_len: meta.index_len,
            directory_len: meta.directory_len,
            header_len: meta.header_len,
            pack_id: pack.id().to_vec(),
            raw_bytes: pack.raw_len(),
        });
        request.set_timeout(CALL_TIMEOUT);
        Ok(binding.client().authorize_pack(request).await?.into_inner())
    }

    async fn put(&self, signed: &v1::SignedRequest, pack: &Pack) -> Result<Put, PutError> {
        let span = tracing::info_span!("put", pack = %pack.meta().sha256, bytes = pack.meta().size);
        self.put.put(signed, pack.body()).instrument(span).await
    }

    async fn confirm(&self, binding: &Binding, pack: &Pack) -> Result<(), tonic::Status> {
        let mut request = tonic::Request::new(v1::ConfirmPackRequest {
            attempt: Some(self.bindings.attempt().to_wire()),
            backup_id: binding.backup().to_vec(),
            sha256: pack.meta().sha256.to_vec(),
        });
        request.set_timeout(CALL_TIMEOUT);
        binding.client().confirm_pack(request).await?;
        Ok(())
    }

    async fn is_stored(&self, number: u32, pack: Arc<Pack>) -> Result<StoredPack, AttemptError> {
        let meta = *pack.meta();
        self.meters.stored_bytes.fetch_add(meta.size, Relaxed);
        self.meters.packs.fetch_add(1, Relaxed);
        let stored = StoredPack { meta, origin: pack.owner().backup, raw_len: pack.raw_len() };
        let cache = self.cache.clone();
        let kept = tokio::task::spawn_blocking(move || cache.store(meta.sha256, pack.chunks())).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "a chunk index is not cached: the next backup reads it from the store");
        }
        if let Some(folder) = self.folder.clone() {
            let noted = tokio::task::spawn_blocking(move || folder.stored(number, stored)).await;
            if let Ok(Err(error)) = noted {
                tracing::warn!(
                    error = whole_chain(&error),
                    "after a restart a pack would be stored once more"
                );
            }
        }
        Ok(stored)
    }
}
