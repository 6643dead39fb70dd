//! The leader goes through all series, round after round: presence at least daily, rules and collection some times a day.

use std::time::Duration;

use super::collect::Round;
use super::{Retention, RetentionError};
use crate::audit::OpContext;
use crate::store::retention;

/// Between two looks at what is due.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// A series whose listing is older is listed: at least daily, with time to spare for a large fleet.
const LISTED_EVERY: Duration = Duration::from_secs(20 * 3_600);
/// A series is collected so often.
const COLLECTED_EVERY: Duration = Duration::from_secs(6 * 3_600);
/// Series of one kind looked at in one round.
const BATCH: u32 = 100;

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Series that were listed.
    pub listed: usize,
    /// Objects found missing or damaged.
    pub lost: usize,
    /// Series that were collected.
    pub collected: usize,
    /// Backups that expired.
    pub expired: usize,
    /// Manifests and packs deleted.
    pub deleted: usize,
    /// Series that could not be looked at; they come again.
    pub failed: usize,
}

impl Retention {
    /// One round, logged where it did something. Only the leader's.
    ///
    /// # Errors
    /// As [`Retention::reconcile_once`].
    pub async fn reconcile(&self) -> Result<(), RetentionError> {
        let done = self.reconcile_once().await?;
        if done.expired + done.deleted + done.lost > 0 {
            tracing::info!(?done, "retention");
        }
        Ok(())
    }

    /// Looks at what is due, a bounded number of series. One that fails does not keep the others from being looked at.
    ///
    /// # Errors
    /// The database's own, where it cannot say what is due.
    pub async fn reconcile_once(&self) -> Result<Reconciled, RetentionError> {
        let now = self.core.clock.now();
        let (to_list, to_collect) = {
            let mut reader = self.core.store.reader().await?;
            let to_list = retention::due_for_listing(&mut reader, now.minus(LISTED_EVERY), BATCH).await?;
            let before = now.minus(COLLECTED_EVERY);
            (to_list, retention::due_for_collection(&mut reader, before, BATCH).await?)
        };
        let ctx = OpContext::coordinator(&self.core);
        let mut done = Reconciled::default();
        for series in to_list {
            match self.backups.check_listing(&ctx, series).await {
                Ok(lost) => {
                    done.listed += 1;
                    done.lost += lost.len();
                }
                Err(error) => {
                    done.failed += 1;
                    tracing::warn!(error = &error as &dyn std::error::Error, %series, "cannot list a series");
                }
            }
        }
        let mut round = Round::default();
        for series in to_collect {
            match self.collect(series, &mut round).await {
                Ok(collected) => {
                    done.collected += usize::from(!collected.busy);
                    done.expired += collected.expired;
                    done.deleted += collected.manifests + collected.packs;
                }
                Err(error) => {
                    done.failed += 1;
                    tracing::warn!(error = &error as &dyn std::error::Error, %series, "cannot collect a series");
                }
            }
        }
        Ok(done)
    }
}
