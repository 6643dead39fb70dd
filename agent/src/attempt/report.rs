//! Tells the coordinator how an attempt ended, however long that takes.

use std::time::Duration;

use sealift_proto::v1;
use sealift_proto::v1::backup_client::BackupClient;

use crate::agent::Agent;
use crate::session::backoff::Backoff;
use crate::session::error::CallError;
use crate::state::journal::{AttemptRef, Failure};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What came of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The coordinator knows.
    Known,
    /// It did not take it, or the agent stops: the journal keeps it, and the next Hello says it again.
    Kept,
}

/// Reports a failure, however long that takes.
pub async fn deliver(agent: &Agent, attempt: AttemptRef, failure: &Failure) -> Delivery {
    let mut link = agent.link.clone();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, agent.random.clone());
    loop {
        let Some(connection) = link.connected().await else { return Delivery::Kept };
        let mut request = tonic::Request::new(v1::FailRequest {
            attempt: Some(attempt.to_wire()),
            error: failure.error.clone(),
            stderr: failure.stderr.clone(),
            retryable: failure.retryable,
            cancelled: failure.cancelled,
        });
        request.set_timeout(CALL_TIMEOUT);
        match BackupClient::new(connection.channel).fail(request).await.map_err(CallError::from) {
            Ok(_) => return Delivery::Known,
            Err(error @ CallError::Away(_)) => {
                tracing::warn!(%error, "cannot report the failure yet");
                tokio::time::sleep(backoff.next_wait()).await;
            }
            Err(error @ CallError::Fenced(_)) => {
                tracing::info!(%error, "the coordinator has ended this attempt itself");
                return Delivery::Known;
            }
            Err(error @ CallError::Refused(_)) => {
                tracing::warn!(%error, "the coordinator does not take this attempt's report: the next session repeats it");
                return Delivery::Kept;
            }
        }
    }
}
