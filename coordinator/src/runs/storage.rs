//! While the bucket cannot be written, nothing new is started: a dump that has nowhere to go only costs its host. One event
//! when that begins, one when it ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::service::Runs;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::objects::ObjectStore;
use crate::store::StoreError;

/// How often to look at what the newest probe found.
pub const INTERVAL: Duration = Duration::from_secs(1);

impl Runs {
    /// Whether runs may be started as far as the bucket is concerned.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Holds runs while the newest probe of `objects` says that it cannot be written.
    ///
    /// # Errors
    /// The database's own: then nothing has changed.
    pub async fn look_at_storage(&self, objects: &ObjectStore) -> Result<(), StoreError> {
        let report = objects.report();
        // Before the first probe nothing is known, and nothing is held.
        let held = report.probed.is_some() && !report.usable;
        if held == self.is_held() {
            return Ok(());
        }
        let (action, said) = if held {
            let error = report.error.clone().unwrap_or_default();
            tracing::warn!(error, "the object store cannot be used: no backup is started until it can");
            (Action::DispatchPause, Details::none().with("error", error))
        } else {
            tracing::info!("the object store can be used again: backups are started");
            (Action::DispatchResume, Details::none())
        };
        let said = said
            .with("before", !held)
            .with("after", held)
            .with("coordinator", self.core.coordinator.to_string());
        OpContext::coordinator(&self.core).record_alone(action, &"dispatch", Outcome::Done, said).await?;
        self.held.store(held, Ordering::Relaxed);
        self.wake();
        Ok(())
    }
}
