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
        Stored = "stored": "a.sorted_bytes", true, true;
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

/// Hosts with such labels. What their backups take is summed up for the hosts of the page alone, unless they are sorted by it.
pub fn query(selector: &Selector, paging: &Paging<AgentOrder>) -> Select {
    let hosts = match paging.order {
        AgentOrder::Stored => {
            "(SELECT a.*, COALESCE(t.stored_bytes, 0) AS sorted_bytes FROM agents a
                LEFT JOIN (SELECT agent_id, CAST(SUM(stored_bytes) AS BIGINT) AS stored_bytes
                           FROM series_totals GROUP BY agent_id) AS t ON t.agent_id = a.id)"
        }
        AgentOrder::Name | AgentOrder::LastSeen | AgentOrder::Enrolled => "agents",
    };
    let select = Select::new(
        "SELECT a.*,
            (SELECT CAST(COALESCE(SUM(t.stored_bytes), 0) AS BIGINT) FROM series_totals t
                WHERE t.agent_id = a.id) AS stored_bytes,
            (SELECT CAST(COALESCE(SUM(t.backups), 0) AS BIGINT) FROM series_totals t
                WHERE t.agent_id = a.id) AS backups
         FROM (SELECT a.*, a.id AS position_id, ",
    )
    .push(paging.order.expression())
    .push(" AS position_value FROM ")
    .push(hosts)
    .push(" AS a WHERE 1 = 1")
    .and_selected("a.id", selector);
    let page = paging.ordered(paging.and_after(select, "a.id"), "a.id");
    let direction = paging.direction();
    page.push(&format!(") AS a ORDER BY a.position_value {direction}, a.position_id {direction}"))
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
