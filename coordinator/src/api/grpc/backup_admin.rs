//! The `BackupAdmin` service: what admins ask about backups, and restores.

use std::pin::Pin;

use futures::Stream;
use sealift_common::clock::UnixMillis;
use sealift_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Gate;
use super::convert::{bad_field, bytes, paging, position_to_wire, signed_request_to_wire, text};
use crate::backups::Backups;
use crate::backups::query::{BackupQuery, BackupView};
use crate::backups::restore::MAX_GETS;
use crate::core::Core;
use crate::retention::packs::GRACE;
use crate::store::backups::{Keeping, Stream as StreamRow};
use crate::verification::{Finding, Level, Progress, Verification};

/// Answers the calls of admins about backups and restores.
#[derive(Debug, Clone)]
pub struct BackupAdminApi {
    /// Who calls.
    pub gate: Gate,
    /// The database.
    pub core: Core,
    /// Backups and restores.
    pub backups: Backups,
    /// Verification.
    pub verification: Verification,
}

#[tonic::async_trait]
impl v1::backup_admin_server::BackupAdmin for BackupAdminApi {
    type VerifyBackupStream = Pin<Box<dyn Stream<Item = Result<v1::VerifyProgress, Status>> + Send>>;

    async fn list_backups(
        &self,
        request: Request<v1::ListBackupsRequest>,
    ) -> Result<Response<v1::ListBackupsReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        let paging = paging(asked.page)?;
        let query = BackupQuery {
            source: asked.source,
            selector: text("selector", &asked.selector)?,
            since: UnixMillis(asked.since_ms),
            expired: asked.deleted,
        };
        let page = self.backups.list(&ctx, &query, &paging).await?;
        let next = position_to_wire(page.next.as_ref());
        let backups = page.rows.into_iter().map(backup_to_wire).collect();
        Ok(Response::new(v1::ListBackupsReply { backups, next }))
    }

    async fn get_backup(
        &self,
        request: Request<v1::GetBackupRequest>,
    ) -> Result<Response<v1::BackupInfo>, Status> {
        let ctx = self.gate.context(&request).await?;
        let view = self.backups.show(&ctx, &request.into_inner().backup).await?;
        Ok(Response::new(backup_to_wire(view)))
    }

    async fn verify_backup(
        &self,
        request: Request<v1::VerifyBackupRequest>,
    ) -> Result<Response<Self::VerifyBackupStream>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        let level = match asked.level.as_str() {
            "presence" => Level::Presence,
            "" | "hash" => Level::Hash,
            _ => return Err(bad_field("level", "the coordinator verifies presence or hash")),
        };
        let (sender, receiver) = mpsc::channel(4);
        let (results, errors) = mpsc::channel(1);
        let verification = self.verification.clone();
        tokio::spawn(async move {
            if let Err(error) = verification.verify(&ctx, &asked.backup, level, &sender).await {
                let _ = results.send(Err(error.into())).await;
            }
        });
        let progress = ReceiverStream::new(receiver).map(|progress| Ok(progress_to_wire(progress)));
        Ok(Response::new(Box::pin(progress.chain(ReceiverStream::new(errors)))))
    }

    async fn open_restore(
        &self,
        request: Request<v1::OpenRestoreRequest>,
    ) -> Result<Response<v1::OpenRestoreReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let opened = self.backups.open_restore(&ctx, &request.into_inner().backup).await?;
        let (witness_sha256, witness_sequence) =
            opened.witness.map(|(sha256, sequence)| (sha256.to_vec(), sequence)).unwrap_or_default();
        Ok(Response::new(v1::OpenRestoreReply {
            backup: Some(backup_to_wire(opened.view)),
            repository_id: self.core.repository.to_vec(),
            lease_id: opened.lease.to_vec(),
            trust_chain: opened.trust_chain,
            manifest_object: opened.manifest.to_string(),
            slot_objects: opened.slots.iter().map(ToString::to_string).collect(),
            agent_key_objects: opened.agent_keys.iter().map(ToString::to_string).collect(),
            witness_sha256,
            witness_sequence,
        }))
    }

    async fn sign_gets(
        &self,
        request: Request<v1::SignGetsRequest>,
    ) -> Result<Response<v1::SignGetsReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        if asked.objects.len() > MAX_GETS {
            return Err(bad_field("objects", format!("at most {MAX_GETS} in one call")));
        }
        let lease = bytes("lease_id", &asked.lease_id)?;
        let signed = self.backups.sign_gets(&ctx, lease, &asked.objects).await?;
        let requests = signed.into_iter().map(signed_request_to_wire).collect();
        Ok(Response::new(v1::SignGetsReply { requests }))
    }

    async fn close_restore(
        &self,
        request: Request<v1::CloseRestoreRequest>,
    ) -> Result<Response<v1::CloseRestoreReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let asked = request.into_inner();
        self.backups.close_restore(&ctx, bytes("lease_id", &asked.lease_id)?, &asked.outcome).await?;
        Ok(Response::new(v1::CloseRestoreReply {}))
    }
}

fn progress_to_wire(progress: Progress) -> v1::VerifyProgress {
    let finding = |f: Finding| v1::VerifyFinding { object: f.object, problem: f.problem };
    v1::VerifyProgress {
        packs_checked: progress.packs_checked,
        packs_total: progress.packs_total,
        bytes_checked: progress.bytes_checked,
        findings: progress.findings.into_iter().map(finding).collect(),
        done: progress.done,
    }
}

fn keeping_to_wire(keeping: &Keeping) -> v1::BackupKeeping {
    let mut wire = v1::BackupKeeping {
        lost_packs: keeping.lost_packs,
        manifest_lost: keeping.manifest_lost,
        verified_ms: keeping.verified.unwrap_or_default().0,
        ..v1::BackupKeeping::default()
    };
    if let Some(held) = &keeping.held {
        wire.held_ms = held.at.0;
        wire.held_by = held.by.clone();
        wire.held_reason = held.reason.clone();
    }
    if let Some(expired) = &keeping.expired {
        wire.expired_ms = expired.at.0;
        wire.expired_by = expired.by.clone();
        wire.expired_reason = expired.reason.clone();
        wire.undelete_until_ms = expired.at.plus(GRACE).0;
    }
    wire
}

/// A backup as admins see it.
pub fn backup_to_wire(view: BackupView) -> v1::BackupInfo {
    let backup = view.backup;
    let committed = backup.committed.unwrap_or_default();
    let mut info = v1::BackupInfo {
        id: backup.id.to_string(),
        agent_id: backup.agent.to_string(),
        agent: view.agent,
        source: view.source,
        kind: backup.kind,
        series_id: backup.series.to_string(),
        sequence: backup.sequence,
        state: match backup.keeping.held {
            Some(_) => "held".to_owned(),
            None => backup.state.to_string(),
        },
        keeping: Some(keeping_to_wire(&backup.keeping)),
        created_ms: backup.created.0,
        committed_ms: committed.0,
        run_id: backup.run.to_string(),
        trust_version: backup.trust_version,
        duration_ms: u64::try_from(committed.since(backup.created).as_millis()).unwrap_or(u64::MAX),
        ..v1::BackupInfo::default()
    };
    if let Some(prepared) = backup.prepared {
        let stream = |s: StreamRow| v1::StreamInfo { name: s.name, kind: s.kind, raw_bytes: s.raw_bytes };
        info.status = if prepared.partial { "partial" } else { "complete" }.to_owned();
        info.raw_bytes = prepared.raw_bytes;
        info.new_raw_bytes = prepared.new_raw_bytes;
        info.new_stored_bytes = prepared.new_stored_bytes;
        info.packs = u32::try_from(prepared.refs.len()).unwrap_or(u32::MAX);
        info.recipients = prepared.recipients;
        info.warnings = prepared.report.warnings;
        info.warnings_omitted = prepared.report.warnings_omitted;
        info.streams = prepared.report.streams.into_iter().map(stream).collect();
        info.manifest_sha256 = prepared.manifest_sha256.to_string();
        info.tool_version = prepared.report.tool_version;
        info.server_version = prepared.report.server_version;
    }
    info
}
