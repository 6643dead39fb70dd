//! The services, each put together from its parts.

use std::time::Duration;

use sealift_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::Coordinator;
use crate::api::grpc::agents::AgentApi;
use crate::api::grpc::backup::BackupApi;
use crate::api::grpc::backup_admin::BackupAdminApi;
use crate::api::grpc::enrollment::EnrollmentApi;
use crate::api::grpc::fleet::FleetApi;
use crate::api::grpc::hosts::HostApi;
use crate::api::grpc::policies::PolicyApi;
use crate::api::grpc::recovery::RecoveryApi;
use crate::api::grpc::retention::RetentionApi;
use crate::api::grpc::runs::RunApi;
use crate::api::grpc::series::SeriesApi;
use crate::api::grpc::session::{SessionApi, SessionParts};
use crate::api::grpc::storage::StorageApi;
use crate::api::grpc::tokens::TokenApi;
use crate::api::grpc::trust::TrustApi;
use crate::api::grpc::{Gate, MAX_REQUEST, span};
use crate::api::limits::Limits;
use crate::series::SeriesService;
use crate::uploads::Uploads;
use crate::verification::Verification;

/// Largest trust policy that is read.
const MAX_TRUST: usize = 20 * 1024 * 1024;
/// Largest enrolment that is read.
const MAX_ENROLMENT: usize = 64 * 1024;

impl Coordinator {
    pub(super) fn router(&self, limits: Limits, stop: CancellationToken) -> Router {
        let gate = Gate::new(self.core.clone(), self.identities.clone(), limits);
        let checks = self.checks.clone();
        let (core, identities, sessions) = (&self.core, &self.identities, &self.sessions);
        let enrolment = EnrollmentApi {
            gate: gate.clone(),
            identities: identities.clone(),
            relay: sessions.relay().clone(),
        };
        let session = SessionApi::from(SessionParts {
            gate: gate.clone(),
            sessions: sessions.clone(),
            identities: identities.clone(),
            checks: checks.clone(),
        });
        let tokens = TokenApi { gate: gate.clone(), identities: identities.clone() };
        let agents = AgentApi {
            gate: gate.clone(),
            core: core.clone(),
            identities: identities.clone(),
            sessions: sessions.clone(),
            checks,
            policies: self.policies.clone(),
        };
        let hosts = HostApi { agents: agents.clone() };
        let series =
            SeriesApi { gate: gate.clone(), core: core.clone(), series: SeriesService::new(core.clone()) };
        let trust = TrustApi { gate: gate.clone(), identities: identities.clone() };
        let runs = RunApi { gate: gate.clone(), core: core.clone(), runs: self.runs.clone(), stop };
        let backup = BackupApi {
            gate: gate.clone(),
            core: core.clone(),
            runs: self.runs.clone(),
            uploads: Uploads::new(core.clone(), self.objects.clone()),
            backups: self.backups.clone(),
        };
        let backup_admin = BackupAdminApi {
            gate: gate.clone(),
            core: core.clone(),
            backups: self.backups.clone(),
            verification: Verification::new(core.clone(), self.objects.clone(), self.backups.clone()),
        };
        let retention = RetentionApi { gate: gate.clone(), retention: self.retention.clone() };
        let policies = PolicyApi {
            gate: gate.clone(),
            policies: self.policies.clone(),
            scheduler: self.scheduler.clone(),
        };
        let recovery = RecoveryApi { gate: gate.clone(), recovery: self.recovery() };
        let storage = StorageApi { gate: gate.clone(), core: core.clone() };
        let fleet = FleetApi {
            gate,
            core: core.clone(),
            identities: identities.clone(),
            objects: self.objects.clone(),
            sessions: sessions.clone(),
            runs: self.runs.clone(),
        };
        let (_, health) = tonic_health::server::health_reporter();
        Server::builder()
            .trace_fn(span)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(1_024)
            .add_service(health)
            .add_service(
                v1::enrollment_server::EnrollmentServer::new(enrolment.clone())
                    .max_decoding_message_size(MAX_ENROLMENT),
            )
            .add_service(
                v1::certificates_server::CertificatesServer::new(enrolment)
                    .max_decoding_message_size(MAX_ENROLMENT),
            )
            .add_service(
                v1::session_server::SessionServer::new(session).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::token_admin_server::TokenAdminServer::new(tokens).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::agent_admin_server::AgentAdminServer::new(agents).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::host_admin_server::HostAdminServer::new(hosts).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::series_admin_server::SeriesAdminServer::new(series)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::trust_admin_server::TrustAdminServer::new(trust).max_decoding_message_size(MAX_TRUST),
            )
            .add_service(
                v1::run_admin_server::RunAdminServer::new(runs).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::policy_admin_server::PolicyAdminServer::new(policies)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::fleet_admin_server::FleetAdminServer::new(fleet).max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::retention_admin_server::RetentionAdminServer::new(retention)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::recovery_admin_server::RecoveryAdminServer::new(recovery)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(
                v1::storage_admin_server::StorageAdminServer::new(storage)
                    .max_decoding_message_size(MAX_REQUEST),
            )
            .add_service(v1::backup_server::BackupServer::new(backup).max_decoding_message_size(MAX_REQUEST))
            .add_service(
                v1::backup_admin_server::BackupAdminServer::new(backup_admin)
                    .max_decoding_message_size(MAX_REQUEST),
            )
    }
}
