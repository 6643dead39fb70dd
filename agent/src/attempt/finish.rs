//! Prepare, the manifest's PUT, Commit: what turns stored packs into a backup.
//!
//! All three may be repeated for one backup id. When the session is lost in between, the same manifest is tried again first:
//! perhaps it exists already. Only where the coordinator does not know it is the backup begun anew and sealed again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use sealift_common::format::manifest::ManifestObject;
use sealift_common::id::BackupId;
use sealift_proto::v1;
use sealift_proto::v1::prepare_request::Part;

use super::begin::{Binding, client};
use super::failure::AttemptError;
use super::manifest::Plan;
use super::patience::{Patience, StorePatience};
use super::store::PackStore;
use crate::put::PutError;
use crate::session::error::CallError;
use crate::session::link::Connection;
use crate::state::series::Head;

const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of the public part per message.
const PIECE: usize = 1024 * 1024;
/// Sessions under which the manifest is sealed anew before the attempt gives up.
const MOST_SEALINGS: u32 = 20;

/// A backup that exists.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// Its id.
    pub backup: BackupId,
    /// Its manifest.
    pub head: Head,
    /// Whether something is missing from it.
    pub partial: bool,
}

/// Writes the manifest of what was read.
///
/// # Errors
/// [`AttemptError`]: there is no backup, or it is the coordinator's to find out.
pub async fn finish(store: &PackStore, plan: Plan) -> Result<Finished, AttemptError> {
    let plan = Arc::new(plan);
    for _ in 0..MOST_SEALINGS {
        let binding = store.bindings.current().await?;
        let gone = plan.packs_gone(&binding);
        if gone > 0 {
            return Err(AttemptError::PacksGone(gone));
        }
        let manifest = seal(store, &plan, &binding).await?;
        let writing = Writing { store, binding: &binding, manifest: &manifest, plan: &plan };
        if writing.write().await? == Written::Exists {
            let head = Head { sequence: binding.sequence, manifest: manifest.sha256 };
            return Ok(Finished { backup: binding.backup(), head, partial: plan.is_partial() });
        }
    }
    Err(AttemptError::Build { what: "the manifest", problem: "the session was lost too often".to_owned() })
}

async fn seal(
    store: &PackStore,
    plan: &Arc<Plan>,
    binding: &Arc<Binding>,
) -> Result<Arc<ManifestObject>, AttemptError> {
    let (plan, binding) = (plan.clone(), binding.clone());
    let (identity, random) = (store.agent.identity.current(), store.agent.random.clone());
    tokio::task::spawn_blocking(move || plan.seal(&binding, &identity, &random))
        .await
        .map_err(|error| AttemptError::Build { what: "the manifest", problem: error.to_string() })?
        .map(Arc::new)
}

#[derive(Debug, PartialEq, Eq)]
enum Written {
    /// The manifest is in the bucket.
    Exists,
    /// The session was lost, and the coordinator does not know this backup id any more.
    Superseded,
}

/// One manifest on its way.
struct Writing<'a> {
    store: &'a PackStore,
    binding: &'a Binding,
    manifest: &'a ManifestObject,
    plan: &'a Plan,
}

impl Writing<'_> {
    async fn write(&self) -> Result<Written, AttemptError> {
        let agent = &self.store.agent;
        let mut patience = Patience::new(agent, "commit the backup");
        let mut store_patience = StorePatience::new(agent);
        let mut link = agent.link.clone();
        loop {
            let connection = link.connected().await.ok_or(AttemptError::AgentStops)?;
            match self.write_once(&connection).await {
                Ok(()) => return Ok(Written::Exists),
                Err(WriteError::Put(error)) => store_patience.wait(error, self.store.store_timeout()).await?,
                Err(WriteError::Call(status)) => {
                    let moved = connection.number != self.binding.connection.number;
                    if moved && !matches!(CallError::from(status.clone()), CallError::Away(_)) {
                        tracing::info!(error = status.message(), "the manifest is written anew");
                        return Ok(Written::Superseded);
                    }
                    patience.wait(status, connection.number).await?;
                }
            }
        }
    }

    async fn write_once(&self, connection: &Connection) -> Result<(), WriteError> {
        let reply = self.prepare(connection).await?;
        if !reply.already_committed {
            let signed = reply.put.unwrap_or_default();
            let body = [Bytes::copy_from_slice(&self.manifest.bytes)];
            self.store.put.put(&signed, &body).await?;
        }
        let mut request = tonic::Request::new(v1::CommitRequest {
            attempt: Some(self.store.bindings.attempt().to_wire()),
            backup_id: self.binding.backup().to_vec(),
        });
        request.set_timeout(CALL_TIMEOUT);
        client(connection).commit(request).await?;
        Ok(())
    }

    async fn prepare(&self, connection: &Connection) -> Result<v1::PrepareReply, tonic::Status> {
        let part = |part| v1::PrepareRequest { part: Some(part) };
        let pieces =
            self.manifest.public_bytes.chunks(PIECE).map(|piece| part(Part::PublicPart(piece.to_vec())));
        let messages: Vec<_> = std::iter::once(part(Part::Head(self.head()))).chain(pieces).collect();
        let mut request = tonic::Request::new(tokio_stream::iter(messages));
        request.set_timeout(CALL_TIMEOUT);
        Ok(client(connection).prepare(request).await?.into_inner())
    }

    fn head(&self) -> v1::PrepareHead {
        let (manifest, report) = (self.manifest, &self.plan.report);
        let stream = |(name, kind, raw_bytes): &(String, String, u64)| v1::StreamInfo {
            name: name.clone(),
            kind: kind.clone(),
            raw_bytes: *raw_bytes,
        };
        v1::PrepareHead {
            attempt: Some(self.store.bindings.attempt().to_wire()),
            backup_id: self.binding.backup().to_vec(),
            slots_sha256: manifest.slots_sha256.to_vec(),
            sealed_sha256: manifest.sealed_sha256.to_vec(),
            signature: manifest.signature.to_vec(),
            manifest_sha256: manifest.sha256.to_vec(),
            manifest_size: manifest.bytes.len() as u64,
            public_sha256: manifest.public_sha256.to_vec(),
            warnings: report.warnings.clone(),
            warnings_omitted: report.warnings_omitted,
            streams: report.streams.iter().map(stream).collect(),
            tool_version: report.tool_version.clone(),
            server_version: report.server_version.clone(),
            new_raw_bytes: report.new_raw_bytes,
        }
    }
}

enum WriteError {
    Call(tonic::Status),
    Put(PutError),
}

impl From<tonic::Status> for WriteError {
    fn from(status: tonic::Status) -> Self {
        Self::Call(status)
    }
}

impl From<PutError> for WriteError {
    fn from(error: PutError) -> Self {
        Self::Put(error)
    }
}
