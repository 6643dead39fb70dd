//! What a running coordinator does of all this when it is asked.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::backup::OwnBackups;
use super::generation::Generations;
use super::import::is_unused;
use super::names::Names;
use super::reconcile::{Reconciler, Report};
use super::{RecoveryError, State};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::sessions::Sessions;

/// Backup and recovery of a coordinator that runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RecoveryService {
    core: Core,
    generations: Generations,
    own: OwnBackups,
    reconciler: Reconciler,
    sessions: Arc<Sessions>,
    busy: Arc<Mutex<()>>,
}

impl RecoveryService {
    /// Of these parts.
    pub fn new(
        core: Core,
        generations: Generations,
        own: OwnBackups,
        reconciler: Reconciler,
        sessions: Arc<Sessions>,
    ) -> Self {
        Self { core, generations, own, reconciler, sessions, busy: Arc::default() }
    }

    /// The coordinator's own backups.
    pub fn own(&self) -> &OwnBackups {
        &self.own
    }

    /// Takes in what the bucket knows, and goes back into service.
    ///
    /// # Errors
    /// [`RecoveryError::InStep`] where there is nothing to recover, [`RecoveryError::Busy`], and others.
    pub async fn recover(&self, ctx: &OpContext) -> Result<Report, RecoveryError> {
        let (action, entity) = (Action::CoordinatorRecover, &"coordinator");
        ctx.authorize(action, entity).await?;
        let _one_at_a_time = self.busy.try_lock().map_err(|_| RecoveryError::Busy)?;
        self.generations.check().await?;
        let State::Recovering { reason } = self.core.standing.state() else {
            return Err(RecoveryError::InStep);
        };
        if is_unused(&self.core.store).await? {
            // Another repository, another CA: this process would have to become another one.
            return Err(RecoveryError::Unused);
        }
        let said = Details::none().with("reason", reason);
        ctx.record_alone(action, entity, Outcome::Intended, said).await?;
        let done = self.reconciler.run(ctx, Names::default()).await;
        match &done {
            Ok(_) => {
                // All of them say again what they have: series are found by it.
                self.sessions.move_all("the coordinator has recovered");
            }
            Err(error) => {
                let said = Details::none().with("error", error.to_string());
                ctx.record_alone(action, entity, Outcome::Failed, said).await?;
            }
        }
        done
    }
}
