//! Hosts, by name or by what they need.

use sealift_common::selector::Selector;

use super::{Order as _, Page, Paging, orders, position};
use crate::store::agents::{AgentRow, decode};
use crate::store::select::Select;
use crate::store::{StoreError, Tx, number};

orders! {
    /// What hosts are sorted by. All but the name reads every host: there are thousands of them, not millions.
    AgentOrder, "name, last-seen, enrolled or stored" {
        /// Their name.
        #[default]
        Name = "name": "a.name", false, false;
        /// When they were last heard of; the longest silent come last.
        LastSeen = "last-seen": "a.last_seen_ms", true, true;
        /// When they enrolled, newest first.
        Enrolled = "enrolled": "a.enrolled_ms", true, true;
        /// What their backups take in the bucket, most first.
        Stored = "stored": "a.stored_bytes", true, true;
    }
}

/// A host in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedAgent {
    /// The host.
    pub agent: AgentRow,
    /// What its backups take in the bucket.
    pub stored_bytes: u64,
    /// How many there are.
    pub backups: u64,
}

/// Hosts with such labels.
pub fn query(selector: &Selector, paging: &Paging<AgentOrder>) -> Select {
    let select = Select::new("SELECT a.*, a.id AS position_id, ")
        .push(paging.order.expression())
        .push(
            " AS position_value FROM (SELECT a.*,
                (SELECT CAST(COALESCE(SUM(t.stored_bytes), 0) AS BIGINT) FROM series_totals t
                    WHERE t.agent_id = a.id) AS stored_bytes,
                (SELECT CAST(COALESCE(SUM(t.backups), 0) AS BIGINT) FROM series_totals t
                    WHERE t.agent_id = a.id) AS backups
              FROM agents a) AS a WHERE 1 = 1",
        )
        .and_selected("a.id", selector);
    paging.ordered(paging.and_after(select, "a.id"), "a.id")
}

/// Runs [`query`].
///
/// # Errors
/// The database's own.
pub async fn list(
    tx: &mut Tx,
    selector: &Selector,
    paging: &Paging<AgentOrder>,
) -> Result<Page<ListedAgent>, StoreError> {
    let rows = query(selector, paging).fetch(tx, "list agents", |row| {
        let (stored_bytes, backups) = (number(&row, "stored_bytes")?, number(&row, "backups")?);
        Ok((position(&row, paging.order)?, ListedAgent { stored_bytes, backups, agent: decode(row)? }))
    });
    Ok(paging.page(rows.await?))
}
