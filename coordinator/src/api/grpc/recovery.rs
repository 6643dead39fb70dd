//! The coordinator's own backup and recovery, for admins.

use sealift_common::id::Sha256;
use sealift_proto::v1;
use sealift_proto::v1::recovery_admin_server::RecoveryAdmin;
use tonic::{Request, Response, Status};

use super::Gate;
use crate::recovery::{RecoveryService, Report};

/// Backup and recovery.
#[derive(Debug, Clone)]
pub struct RecoveryApi {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub recovery: RecoveryService,
}

impl From<Report> for v1::RecoverDatabaseReply {
    fn from(report: Report) -> Self {
        Self {
            trust_versions_added: report.trust_versions_added,
            agents_added: report.agents_added,
            series: report.series,
            series_added: report.series_added,
            backups: report.backups,
            backups_added: report.backups_added,
            backups_gone: report.backups_gone,
            packs_added: report.packs_added,
            packs_lost: report.packs_lost,
            attempts_ended: report.attempts_ended,
            left_alone: report.left_alone,
            generation: report.generation,
        }
    }
}

#[tonic::async_trait]
impl RecoveryAdmin for RecoveryApi {
    async fn store_own_backup(
        &self,
        request: Request<v1::StoreOwnBackupRequest>,
    ) -> Result<Response<v1::StoreOwnBackupReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        let made = self.recovery.own().store(&ctx).await?;
        Ok(Response::new(v1::StoreOwnBackupReply {
            object: made.name.to_string(),
            sequence: made.sequence,
            rows: made.rows,
            stored_bytes: made.stored_bytes,
            recipients: made.recipients.iter().map(Sha256::to_vec).collect(),
        }))
    }

    async fn recover_database(
        &self,
        request: Request<v1::RecoverDatabaseRequest>,
    ) -> Result<Response<v1::RecoverDatabaseReply>, Status> {
        let ctx = self.gate.context(&request).await?;
        Ok(Response::new(self.recovery.recover(&ctx).await?.into()))
    }
}
