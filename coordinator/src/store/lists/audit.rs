//! The audit, oldest first.

use sealift_common::clock::UnixMillis;

use crate::store::audit::{EventRow, decode};
use crate::store::select::Select;
use crate::store::{StoreError, Tx};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct EventList {
    /// Only events at or after this moment.
    pub since: UnixMillis,
    /// Only this actor's; empty for everybody's.
    pub actor: String,
    /// Only these actions; empty for all.
    pub actions: Vec<String>,
    /// Only events after this one: its time, and its place in the order.
    pub after: Option<(UnixMillis, i64)>,
    /// At most so many.
    pub limit: u32,
}

impl EventList {
    /// Events of one action, or of all; each kind in its own order, which an index has.
    fn part(&self, select: Select, action: Option<&str>) -> Select {
        let select = select.push("SELECT * FROM audit_events WHERE 1 = 1");
        let select = match action {
            Some(action) => select.push(" AND action = ").bind(action),
            None => select,
        };
        let select = match (self.actor.as_str(), action) {
            ("", _) => select,
            // The index on actions is asked already.
            (actor, Some(_)) => select.push(" AND actor || '' = ").bind(actor),
            (actor, None) => select.push(" AND actor = ").bind(actor),
        };
        let select = match self.since.0 {
            0 => select,
            since => select.push(" AND time_ms >= ").bind(since),
        };
        let select = match self.after {
            None => select,
            Some((time, place)) => {
                select.push(" AND (time_ms, seq) > (").bind(time.0).push(", ").bind(place).push(")")
            }
        };
        select.push(" ORDER BY time_ms, seq LIMIT ").bind(self.limit)
    }

    /// As it is asked.
    pub fn query(&self) -> Select {
        match self.actions.as_slice() {
            [] => self.part(Select::new(""), None),
            [one] => self.part(Select::new(""), Some(one)),
            several => {
                let mut select = Select::new("");
                for (n, action) in several.iter().enumerate() {
                    let head = if n == 0 { "SELECT * FROM (" } else { " UNION ALL SELECT * FROM (" };
                    select = self.part(select.push(head), Some(action)).push(&format!(") AS part{n}"));
                }
                select.push(" ORDER BY time_ms, seq LIMIT ").bind(self.limit)
            }
        }
    }
}

/// Events in the order of their times.
///
/// # Errors
/// The database's own.
pub async fn list(tx: &mut Tx, list: &EventList) -> Result<Vec<EventRow>, StoreError> {
    list.query().fetch(tx, "list the audit", decode).await
}
