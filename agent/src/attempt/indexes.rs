//! Fills the chunk table: from the index cache, and where that was lost, from the packs' own indexes, which the coordinator
//! reads on this host's behalf (agents never GET).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sealift_common::format::chunk::ChunkRecord;
use sealift_common::format::pack::open_chunk_index;
use sealift_common::id::Sha256;
use sealift_proto::v1;

use super::begin::{Binding, Bindings, KnownPack};
use super::failure::AttemptError;
use super::patience::Patience;
use crate::agent::Agent;
use crate::dedup::ChunkTable;
use crate::state::index_cache::IndexCache;

const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// Packs per request.
const BATCH: usize = 64;

/// The stored packs that a backup can refer to, laid on the raw line in this order.
#[derive(Debug, Default)]
pub struct KnownPacks {
    /// The packs.
    pub packs: Vec<KnownPack>,
    /// Where each ends on the raw line.
    pub ends: Vec<u64>,
}

/// Lays all packs that may be referred to on the raw line. A pack whose index cannot be read counts as absent.
///
/// # Errors
/// [`AttemptError`] where the coordinator gives the attempt up, or the disk cannot be read.
pub async fn fill(
    agent: &Arc<Agent>,
    bindings: &Bindings,
    binding: &Binding,
    cache: &IndexCache,
) -> Result<(ChunkTable, KnownPacks), AttemptError> {
    let usable: Vec<KnownPack> = binding.packs.iter().filter(|pack| !pack.retiring).copied().collect();
    let wanted: HashSet<Sha256> = usable.iter().map(|pack| pack.meta.sha256).collect();
    cache.retain(|pack| wanted.contains(&pack)).map_err(AttemptError::State)?;

    let mut filled = (ChunkTable::default(), KnownPacks::default());
    let mut missing = Vec::new();
    for pack in usable {
        match cache.load(pack.meta.sha256).map_err(AttemptError::State)? {
            Some(chunks) => lay(&mut filled, pack, &chunks),
            None => missing.push(pack),
        }
    }
    if !missing.is_empty() {
        tracing::info!(packs = missing.len(), "reading chunk indexes that are not cached");
    }
    for batch in missing.chunks(BATCH) {
        read(agent, bindings, batch, cache, &mut filled).await?;
    }
    Ok(filled)
}

fn lay((table, known): &mut (ChunkTable, KnownPacks), pack: KnownPack, chunks: &[ChunkRecord]) {
    table.append_pack(chunks);
    known.packs.push(pack);
    known.ends.push(table.end());
}

async fn read(
    agent: &Arc<Agent>,
    bindings: &Bindings,
    batch: &[KnownPack],
    cache: &IndexCache,
    filled: &mut (ChunkTable, KnownPacks),
) -> Result<(), AttemptError> {
    let mut patience = Patience::new(agent, "read chunk indexes");
    let mut left: Vec<KnownPack> = batch.to_vec();
    while !left.is_empty() {
        let binding = bindings.current().await?;
        match read_once(&binding, bindings, &mut left, cache, filled).await {
            Ok(()) => return Ok(()),
            Err(status) => patience.wait(status, binding.connection.number).await?,
        }
    }
    Ok(())
}

/// Takes each pack off `left` as its answer comes.
async fn read_once(
    binding: &Binding,
    bindings: &Bindings,
    left: &mut Vec<KnownPack>,
    cache: &IndexCache,
    filled: &mut (ChunkTable, KnownPacks),
) -> Result<(), tonic::Status> {
    let mut request = tonic::Request::new(v1::ReadIndexesRequest {
        attempt: Some(bindings.attempt().to_wire()),
        sha256: left.iter().map(|pack| pack.meta.sha256.to_vec()).collect(),
    });
    request.set_timeout(READ_TIMEOUT);
    let mut replies = binding.client().read_indexes(request).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        let Some(at) = left.iter().position(|pack| pack.meta.sha256.as_bytes().as_slice() == reply.sha256)
        else {
            continue;
        };
        let pack = left.swap_remove(at);
        if reply.unreadable {
            tracing::warn!(pack = %pack.meta.sha256, "its chunk index cannot be read: its chunks are uploaded anew");
            continue;
        }
        let keys = &binding.keys;
        match open_chunk_index(keys.owner.series, &pack.meta, &reply.tail, &keys.secret) {
            Ok(chunks) => {
                if let Err(error) = cache.store(pack.meta.sha256, &chunks) {
                    tracing::debug!(%error, "a chunk index is not cached");
                }
                lay(filled, pack, &chunks);
            }
            Err(error) => tracing::warn!(%error, "its chunks are uploaded anew"),
        }
    }
    left.clear();
    Ok(())
}
