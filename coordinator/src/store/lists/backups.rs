//! Committed backups, newest first or largest first.

use sealift_common::clock::UnixMillis;

use super::history::{self, Narrowed, Of, Table};
use super::{Page, Paging, orders};
use crate::store::backups::{BackupRow, COLUMNS, decode};
use crate::store::select::Select;
use crate::store::{StoreError, Tx};

const TABLE: Table = Table { from: "backups h", columns: COLUMNS, operation: "list backups" };

orders! {
    /// What backups are sorted by.
    BackupOrder, "made, size or stored" {
        /// When they were committed, newest first.
        #[default]
        Made = "made": "h.committed_ms", true, true;
        /// What they restore to, largest first.
        Size = "size": "h.raw_bytes", true, true;
        /// What was stored for them, most first.
        Stored = "stored": "h.new_stored_bytes", true, true;
    }
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct BackupList {
    /// Whose backups.
    pub of: Of,
    /// Only backups committed at or after this moment.
    pub since: UnixMillis,
    /// Those that were deleted and can be undeleted, instead of those that are there: few.
    pub expired: bool,
}

impl BackupList {
    fn and(&self, select: Select) -> Select {
        let state = if self.expired { " AND h.state = 'expired'" } else { " AND h.state = 'committed'" };
        let select = select.push(state);
        if self.since.0 > 0 { select.push(" AND h.committed_ms >= ").bind(self.since.0) } else { select }
    }

    /// As it is asked where labels do not matter, or for hosts with these ids.
    pub fn query(&self, agents: Option<&[String]>, paging: &Paging<BackupOrder>) -> Select {
        let narrowed = match (&self.of, agents) {
            (Of::Series(series), _) => Narrowed::Series(*series),
            (_, Some(agents)) => Narrowed::Agents(agents),
            (_, None) => Narrowed::All,
        };
        history::query(&TABLE, TABLE.columns, &narrowed, &|select, _| self.and(select), paging)
    }
}

/// Backups, and where the next page begins.
///
/// # Errors
/// The database's own.
pub async fn list(
    tx: &mut Tx,
    list: &BackupList,
    paging: &Paging<BackupOrder>,
) -> Result<Page<BackupRow>, StoreError> {
    history::list(tx, &TABLE, &list.of, &|select, _| list.and(select), paging, decode).await
}
