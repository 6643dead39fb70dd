//! Brings one pack to the store: sealed for the session that is up, authorised, PUT, confirmed. Whatever fails on the way is
//! tried again until it is stored or the attempt ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tracing::Instrument;

use sealift_common::format::pack::{Pack, PackMeta};
use sealift_common::id::BackupId;
use sealift_proto::v1;

use super::begin::{Binding, Bindings};
use super::failure::AttemptError;
use super::patience::{Patience, StorePatience};
use crate::agent::Agent;
use crate::pack::ReadyPack;
use crate::progress::Meters;
use crate::put::{Put, PutClient, PutError};
use crate::state::index_cache::IndexCache;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A new pack that is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredPack {
    /// Hash and lengths.
    pub meta: PackMeta,
    /// The backup it is sealed for (an earlier one of this attempt where the session was lost after it).
    pub origin: BackupId,
    /// Raw bytes in it.
    pub raw_len: u64,
}

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
    /// How long the store may be away.
    pub store_timeout: Duration,
}

/// How waiting goes for one pack.
struct Tries {
    coordinator: Patience,
    store: StorePatience,
    /// The backup under which the PUT went through already: only the confirmation is left.
    written_for: Option<BackupId>,
}

impl PackStore {
    /// Stores one pack; its memory is free when this returns.
    ///
    /// # Errors
    /// [`AttemptError`] where the attempt is over.
    pub async fn store(&self, ready: ReadyPack) -> Result<StoredPack, AttemptError> {
        let ReadyPack { pack, permit: _memory } = ready;
        let mut pack = Arc::new(pack);
        let mut tries = Tries {
            coordinator: Patience::new(&self.agent, "store a pack"),
            store: StorePatience::new(&self.agent, self.store_timeout),
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
        self.is_stored(pack).await
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
                Err(error) => return tries.store.wait(error).await.map(|()| false),
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

    async fn is_stored(&self, pack: Arc<Pack>) -> Result<StoredPack, AttemptError> {
        let meta = *pack.meta();
        self.meters.stored_bytes.fetch_add(meta.size, Relaxed);
        self.meters.packs.fetch_add(1, Relaxed);
        let stored = StoredPack { meta, origin: pack.owner().backup, raw_len: pack.raw_len() };
        let cache = self.cache.clone();
        let kept = tokio::task::spawn_blocking(move || cache.store(meta.sha256, pack.chunks())).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "a chunk index is not cached: the next backup reads it from the store");
        }
        Ok(stored)
    }
}
