//! Rules are applied: what no rule keeps expires, and can be undeleted for three days.

use futures::FutureExt as _;
use sealift_common::id::SeriesId;

use super::applies::term_of;
use super::packs::GRACE;
use super::plan::Fate;
use super::states::BackupState;
use super::{Retention, RetentionError, candidates};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::store::Tx;
use crate::store::retention::{self, Note};

/// Backups that expire in one transaction; the next round goes on.
const BATCH: usize = 500;

impl Retention {
    /// Lets go what the rules of a series do not keep: how many backups expired.
    ///
    /// # Errors
    /// The database's own.
    pub async fn expire(&self, ctx: &OpContext, series: SeriesId) -> Result<usize, RetentionError> {
        self.core
            .store
            .run_tx("apply the rules of retention", move |tx, _| {
                async move {
                    // From here on nobody deletes, holds or undeletes in this series.
                    self.enter(tx, series).await?;
                    self.expire_planned(tx, ctx, series).await
                }
                .boxed()
            })
            .await
    }

    async fn expire_planned(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        series: SeriesId,
    ) -> Result<usize, RetentionError> {
        let now = self.core.clock.now();
        let term = term_of(tx, series, now).await?;
        if term.keeps_all() {
            return Ok(0);
        }
        let backups = retention::backups(tx, series, now).await?;
        let mut expired = 0;
        for verdict in term.plan(&candidates(&backups), now).into_iter().rev() {
            let Fate::Expire(why) = &verdict.fate else { continue };
            if expired == BATCH {
                break;
            }
            let note = Note { at: now, by: ctx.actor().to_string(), reason: why.to_string() };
            let (from, to) = (BackupState::Committed, BackupState::Expired);
            if !retention::move_backup(tx, verdict.backup, from, to, Some(&note)).await? {
                continue;
            }
            expired += 1;
            let said = Details::none()
                .with("series", series.to_string())
                .with("before", from.as_str())
                .with("after", to.as_str())
                .with("why", why.to_string())
                .with("rules", term.to_string())
                .with("undelete_until", now.plus(GRACE).rfc3339());
            ctx.record(tx, Action::BackupExpire, &format!("backup:{}", verdict.backup), Outcome::Done, said)
                .await?;
        }
        Ok(expired)
    }
}
