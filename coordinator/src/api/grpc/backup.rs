//! The `Backup` service: what an agent's backup asks, step by step.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use sealift_common::crypto::EpochId;
use sealift_common::format::manifest::MAX_PUBLIC;
use sealift_common::format::pack::PackMeta;
use sealift_common::id::{BackupId, Sha256};
use sealift_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Gate;
use super::convert::{
    MAX_TEXT, all_bytes, attempt_ref, bad_field, bytes, cut, report, signed_request_to_wire,
};
use crate::audit::{Action, OpContext};
use crate::backups::Backups;
use crate::backups::begin::Begun;
use crate::backups::prepare::{PrepareAnswer, PrepareHead};
use crate::core::Core;
use crate::runs::{AttemptRef, Report, Runs};
use crate::store::backups::{AgentReport, Stream as StreamRow};
use crate::store::packs::PackFacts;
use crate::uploads::{MAX_AHEAD, MAX_INDEXES, NewPack, Uploads};

/// Longest list of warnings that is kept of a backup.
const MAX_WARNINGS: usize = 1_000;
/// Most streams of a backup that are kept for people; the manifest has them all.
const MAX_STREAMS: usize = 10_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers the calls of agents that write a backup.
#[derive(Debug, Clone)]
pub struct BackupApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// Runs and attempts.
    pub runs: Runs,
    /// Packs on their way.
    pub uploads: Uploads,
    /// Backups and restores.
    pub backups: Backups,
}

#[tonic::async_trait]
impl v1::backup_server::Backup for BackupApi {
    type BeginStream = Answers<v1::BeginReply>;
    type ReadIndexesStream = Answers<v1::ReadIndexesReply>;

    async fn begin(&self, request: Request<v1::BeginRequest>) -> Result<Response<Self::BeginStream>, Status> {
        let (ctx, (attempt, epoch, known_trust)) =
            self.asked(Action::BackupBegin, request, begin_from_wire).await?;
        let begun = self.backups.begin(&ctx, &attempt, epoch, known_trust).await?;
        let (sender, receiver) = mpsc::channel(2);
        let backups = self.backups.clone();
        let mut head = Some(head_to_wire(&begun, self.core.repository.to_vec(), self.core.clock.now().0));
        tokio::spawn(async move {
            let mut after = None;
            loop {
                let reply = match backups.referable(&begun, after).await {
                    // The head goes out even where there is no pack.
                    Ok(page) if page.is_empty() && head.is_none() => return,
                    Ok(page) => {
                        after = page.last().map(|(ordinal, _)| *ordinal);
                        let packs = page.iter().map(|(_, facts)| pack_to_wire(facts)).collect();
                        Ok(v1::BeginReply { head: head.take(), packs })
                    }
                    Err(error) => Err(error.into()),
                };
                let last = reply.as_ref().map_or(true, |reply: &v1::BeginReply| reply.packs.is_empty());
                if sender.send(reply).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn authorize_pack(
        &self,
        request: Request<v1::AuthorizePackRequest>,
    ) -> Result<Response<v1::SignedRequest>, Status> {
        let (ctx, (attempt, pack)) = self.asked(Action::PackAuthorize, request, pack_from_wire).await?;
        let signed = self.uploads.authorize(&ctx, &attempt, pack).await?;
        Ok(Response::new(signed_request_to_wire(signed)))
    }

    async fn confirm_pack(
        &self,
        request: Request<v1::ConfirmPackRequest>,
    ) -> Result<Response<v1::ConfirmPackReply>, Status> {
        let (ctx, (attempt, backup, sha256)) =
            self.asked(Action::PackConfirm, request, confirm_from_wire).await?;
        self.uploads.confirm(&ctx, &attempt, backup, sha256).await?;
        Ok(Response::new(v1::ConfirmPackReply {}))
    }

    async fn read_indexes(
        &self,
        request: Request<v1::ReadIndexesRequest>,
    ) -> Result<Response<Self::ReadIndexesStream>, Status> {
        let (ctx, (attempt, hashes)) = self.asked(Action::IndexRead, request, indexes_from_wire).await?;
        let (series, found) = self.uploads.indexes(&ctx, &attempt, &hashes).await?;
        let (sender, receiver) = mpsc::channel(2);
        let uploads = self.uploads.clone();
        tokio::spawn(async move {
            for (hash, facts) in hashes.into_iter().zip(found) {
                let tail = match facts {
                    Some(facts) => uploads.read_index(series, &facts).await,
                    None => Ok(None),
                };
                let reply = tail.map_err(Status::from).map(|tail| v1::ReadIndexesReply {
                    sha256: hash.to_vec(),
                    unreadable: tail.is_none(),
                    tail: tail.map(|bytes| bytes.to_vec()).unwrap_or_default(),
                });
                let failed = reply.is_err();
                if sender.send(reply).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn prepare(
        &self,
        request: Request<Streaming<v1::PrepareRequest>>,
    ) -> Result<Response<v1::PrepareReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = collect(request.into_inner()).await;
        let (attempt, head, public) = self.gate.read(&ctx, Action::BackupPrepare, asked).await?;
        let reply = match self.backups.prepare(&ctx, &attempt, head, public).await? {
            PrepareAnswer::Put(put) => {
                v1::PrepareReply { put: Some(signed_request_to_wire(put)), already_committed: false }
            }
            PrepareAnswer::AlreadyCommitted => v1::PrepareReply { put: None, already_committed: true },
        };
        Ok(Response::new(reply))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let (ctx, (attempt, backup)) = self.asked(Action::BackupCommit, request, commit_from_wire).await?;
        let committed = self.backups.commit(&ctx, &attempt, backup).await?;
        Ok(Response::new(v1::CommitReply { backup_id: backup.to_vec(), partial: committed.partial }))
    }

    async fn fail(&self, request: Request<v1::FailRequest>) -> Result<Response<v1::FailReply>, Status> {
        let (ctx, (attempt, report, cancelled)) =
            self.asked(Action::AttemptFail, request, report_from_wire).await?;
        self.runs.fail(&ctx, &attempt, report, cancelled).await?;
        Ok(Response::new(v1::FailReply {}))
    }
}

impl BackupApi {
    /// Who asks for `action`, and for what. Every call that is one message comes in by here, so that what cannot be read is
    /// refused and audited like everything else.
    async fn asked<R, T>(
        &self,
        action: Action,
        request: Request<R>,
        parse: fn(R) -> Result<T, Status>,
    ) -> Result<(OpContext, T), Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = self.gate.read(&ctx, action, parse(request.into_inner())).await?;
        Ok((ctx, asked))
    }
}

#[allow(clippy::result_large_err)]
fn begin_from_wire(asked: v1::BeginRequest) -> Result<(AttemptRef, EpochId, u64), Status> {
    Ok((attempt_ref(asked.attempt)?, bytes("epoch_id", &asked.epoch_id)?, asked.known_trust_version))
}

#[allow(clippy::result_large_err)]
fn pack_from_wire(asked: v1::AuthorizePackRequest) -> Result<(AttemptRef, NewPack), Status> {
    let meta = PackMeta {
        sha256: bytes("sha256", &asked.sha256)?,
        size: asked.size,
        meta_sha256: bytes("meta_sha256", &asked.meta_sha256)?,
        index_len: asked.index_len,
        directory_len: asked.directory_len,
        header_len: asked.header_len,
    };
    let facts = PackFacts { meta, origin: bytes("backup_id", &asked.backup_id)? };
    Ok((
        attempt_ref(asked.attempt)?,
        NewPack { pack: bytes("pack_id", &asked.pack_id)?, facts, raw_len: asked.raw_bytes },
    ))
}

#[allow(clippy::result_large_err)]
fn confirm_from_wire(asked: v1::ConfirmPackRequest) -> Result<(AttemptRef, BackupId, Sha256), Status> {
    let backup = bytes("backup_id", &asked.backup_id)?;
    Ok((attempt_ref(asked.attempt)?, backup, bytes("sha256", &asked.sha256)?))
}

#[allow(clippy::result_large_err)]
fn indexes_from_wire(asked: v1::ReadIndexesRequest) -> Result<(AttemptRef, Vec<Sha256>), Status> {
    if asked.sha256.len() > MAX_INDEXES {
        return Err(bad_field("sha256", format!("at most {MAX_INDEXES} in one call")));
    }
    Ok((attempt_ref(asked.attempt)?, all_bytes("sha256", &asked.sha256)?))
}

#[allow(clippy::result_large_err)]
fn commit_from_wire(asked: v1::CommitRequest) -> Result<(AttemptRef, BackupId), Status> {
    Ok((attempt_ref(asked.attempt)?, bytes("backup_id", &asked.backup_id)?))
}

#[allow(clippy::result_large_err)]
fn report_from_wire(asked: v1::FailRequest) -> Result<(AttemptRef, Report, bool), Status> {
    let report = report(asked.error, asked.stderr, asked.retryable);
    Ok((attempt_ref(asked.attempt)?, report, asked.cancelled))
}

/// The head of Prepare, and the public part of the manifest from its pieces.
async fn collect(
    mut parts: Streaming<v1::PrepareRequest>,
) -> Result<(AttemptRef, PrepareHead, Bytes), Status> {
    let first = parts.next().await.transpose()?.and_then(|message| message.part);
    let Some(v1::prepare_request::Part::Head(mut asked)) = first else {
        return Err(Status::invalid_argument("the first message of Prepare is its head"));
    };
    let attempt = attempt_ref(asked.attempt.take())?;
    let head = head_from_wire(asked)?;
    let mut public = BytesMut::new();
    while let Some(message) = parts.next().await.transpose()? {
        let Some(v1::prepare_request::Part::PublicPart(piece)) = message.part else {
            return Err(Status::invalid_argument("Prepare has one head, then pieces of the public part"));
        };
        if public.len() + piece.len() > MAX_PUBLIC {
            return Err(bad_field("public_part", format!("at most {MAX_PUBLIC} bytes in all")));
        }
        public.extend_from_slice(&piece);
    }
    Ok((attempt, head, public.freeze()))
}

#[allow(clippy::result_large_err)]
fn head_from_wire(asked: v1::PrepareHead) -> Result<PrepareHead, Status> {
    let omitted = asked.warnings.len().saturating_sub(MAX_WARNINGS) as u64;
    let stream = |s: v1::StreamInfo| StreamRow {
        name: cut(s.name, MAX_TEXT),
        kind: cut(s.kind, MAX_TEXT),
        raw_bytes: s.raw_bytes,
    };
    Ok(PrepareHead {
        backup: bytes("backup_id", &asked.backup_id)?,
        slots_sha256: bytes("slots_sha256", &asked.slots_sha256)?,
        sealed_sha256: bytes("sealed_sha256", &asked.sealed_sha256)?,
        signature: asked.signature,
        manifest_sha256: bytes("manifest_sha256", &asked.manifest_sha256)?,
        manifest_size: asked.manifest_size,
        public_sha256: bytes("public_sha256", &asked.public_sha256)?,
        new_raw_bytes: asked.new_raw_bytes,
        report: AgentReport {
            warnings: asked.warnings.into_iter().take(MAX_WARNINGS).map(|w| cut(w, MAX_TEXT)).collect(),
            warnings_omitted: asked.warnings_omitted.saturating_add(omitted),
            streams: asked.streams.into_iter().take(MAX_STREAMS).map(stream).collect(),
            tool_version: cut(asked.tool_version, MAX_TEXT),
            server_version: cut(asked.server_version, MAX_TEXT),
        },
    })
}

fn head_to_wire(begun: &Begun, repository_id: Vec<u8>, clock_ms: i64) -> v1::BeginHead {
    let backup = &begun.backup;
    v1::BeginHead {
        backup_id: backup.id.to_vec(),
        session_nonce: backup.session_nonce.to_vec(),
        repository_id,
        sequence: backup.sequence,
        previous_sha256: backup.previous.map(|hash| hash.to_vec()).unwrap_or_default(),
        trust_chain: begun.trust_chain.clone(),
        trust_version: begun.trust.version,
        trust_sha256: begun.trust.sha256.to_vec(),
        previous_raw_bytes: begun.previous_raw_bytes,
        clock_ms,
        max_ahead: MAX_AHEAD,
    }
}

fn pack_to_wire(facts: &PackFacts) -> v1::ReferablePack {
    v1::ReferablePack {
        sha256: facts.meta.sha256.to_vec(),
        size: facts.meta.size,
        origin_backup: facts.origin.to_vec(),
        meta_sha256: facts.meta.meta_sha256.to_vec(),
        index_len: facts.meta.index_len,
        directory_len: facts.meta.directory_len,
        header_len: facts.meta.header_len,
        retiring: false,
    }
}
