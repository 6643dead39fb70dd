//! Runs, newest first.

use sealift_common::clock::UnixMillis;

use super::history::{self, Narrowed, Of, Table};
use super::{Page, Paging, orders};
use crate::runs::state::RunState;
use crate::store::runs::{RunRow, decode};
use crate::store::select::Select;
use crate::store::{StoreError, Tx};

const TABLE: Table = Table { from: "runs h", columns: "h.*", operation: "list runs" };

orders! {
    /// What runs are sorted by.
    RunOrder, "created" {
        /// When they were asked for, newest first.
        #[default]
        Created = "created": "h.created_ms", true, true;
    }
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct RunList {
    /// Whose runs.
    pub of: Of,
    /// Only runs in this state.
    pub state: Option<RunState>,
    /// Only runs asked for at or after this moment.
    pub since: UnixMillis,
}

impl RunList {
    fn and(&self, select: Select, alone: bool) -> Select {
        let select = match self.state {
            None => select,
            Some(state) if alone => select.push(" AND h.state = ").bind(state.as_str()),
            // The index on states would be a detour: a host's or series' own rows are fewer.
            Some(state) => select.push(" AND h.state || '' = ").bind(state.as_str()),
        };
        if self.since.0 > 0 { select.push(" AND h.created_ms >= ").bind(self.since.0) } else { select }
    }

    /// As it is asked where labels do not matter, or for hosts with these ids.
    pub fn query(&self, agents: Option<&[String]>, paging: &Paging<RunOrder>) -> Select {
        let narrowed = match (&self.of, agents) {
            (Of::Series(series), _) => Narrowed::Series(*series),
            (_, Some(agents)) => Narrowed::Agents(agents),
            (_, None) => Narrowed::All,
        };
        history::query(&TABLE, TABLE.columns, &narrowed, &|select, alone| self.and(select, alone), paging)
    }
}

/// Runs, and where the next page begins.
///
/// # Errors
/// The database's own.
pub async fn list(
    tx: &mut Tx,
    list: &RunList,
    paging: &Paging<RunOrder>,
) -> Result<Page<RunRow>, StoreError> {
    history::list(tx, &TABLE, &list.of, &|select, alone| list.and(select, alone), paging, decode).await
}
