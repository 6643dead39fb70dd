//! What hosts, series and labels take in the bucket: sums over `series_totals`, which follows every pack as it comes and goes.

use sealift_common::selector::Selector;
use sqlx::Row as _;

use super::{Order as _, Page, Paging, orders, position};
use crate::store::select::Select;
use crate::store::{Row, StoreError, Tx, number};

orders! {
    /// What usage is sorted by.
    UsageOrder, "stored, size, backups or name" {
        /// What it takes, most first.
        #[default]
        Stored = "stored": "u.stored_bytes", true, true;
        /// What its backups restore to, most first.
        Size = "size": "u.raw_bytes", true, true;
        /// How many backups, most first.
        Backups = "backups": "u.backups", true, true;
        /// Its name.
        Name = "name": "u.name", false, false;
    }
}

/// What is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// All series of a host.
    Host,
    /// Each series.
    Series,
    /// All series of the hosts that have a label.
    Label,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// `HOST`, `HOST/SOURCE` or `KEY=VALUE`.
    pub name: String,
    /// Id of the host or series; the name of a label.
    pub id: String,
    /// How many hosts that is.
    pub hosts: u32,
    /// How many series.
    pub series: u32,
    /// How many committed backups.
    pub backups: u64,
    /// How many packs.
    pub packs: u64,
    /// What these take.
    pub stored_bytes: u64,
    /// What the backups restore to.
    pub raw_bytes: u64,
}

fn sums(name: &str, id: &str, from: &str) -> String {
    let sum = |column: &str| format!("CAST(COALESCE(SUM(t.{column}), 0) AS BIGINT) AS {column}");
    format!(
        "SELECT {name} AS name, {id} AS id, COUNT(DISTINCT t.agent_id) AS hosts, COUNT(*) AS series, {}, {}, {}, {} FROM {from}",
        sum("backups"),
        sum("packs"),
        sum("stored_bytes"),
        sum("raw_bytes"),
    )
}

/// Usage of hosts with such labels; by label, only of labels with this key unless it is empty.
pub fn query(by: By, selector: &Selector, key: &str, paging: &Paging<UsageOrder>) -> Select {
    let value = paging.order.expression();
    let select = Select::new(&format!("SELECT u.*, {value} AS position_value, u.id AS position_id FROM ("));
    let (sums, group) = match by {
        By::Host => (
            sums("a.name", "a.id", "agents a JOIN series_totals t ON t.agent_id = a.id WHERE 1 = 1"),
            "a.id, a.name",
        ),
        By::Series => (
            sums(
                "a.name || '/' || COALESCE(s.name, e.source)",
                "t.series_id",
                "series_totals t JOIN agents a ON a.id = t.agent_id JOIN series e ON e.id = t.series_id
                    LEFT JOIN sources s ON s.series_id = t.series_id WHERE 1 = 1",
            ),
            "t.series_id, a.name, s.name, e.source",
        ),
        By::Label => (
            sums(
                "l.key || '=' || l.value",
                "l.key || '=' || l.value",
                "agent_labels l JOIN series_totals t ON t.agent_id = l.agent_id WHERE 1 = 1",
            ),
            "l.key, l.value",
        ),
    };
    let select = select.push(&sums).and_selected("t.agent_id", selector);
    let select = match key {
        "" => select,
        key if by == By::Label => select.push(" AND l.key = ").bind(key),
        _ => select,
    };
    let select = select.push(&format!(" GROUP BY {group}) AS u WHERE 1 = 1"));
    paging.ordered(paging.and_after(select, "u.id"), "u.id")
}

fn decode(row: &Row) -> Result<Usage, sqlx::Error> {
    Ok(Usage {
        name: row.try_get("name")?,
        id: row.try_get("id")?,
        hosts: number(row, "hosts")?,
        series: number(row, "series")?,
        backups: number(row, "backups")?,
        packs: number(row, "packs")?,
        stored_bytes: number(row, "stored_bytes")?,
        raw_bytes: number(row, "raw_bytes")?,
    })
}

/// Runs [`query`].
///
/// # Errors
/// The database's own.
pub async fn list(
    tx: &mut Tx,
    by: By,
    selector: &Selector,
    key: &str,
    paging: &Paging<UsageOrder>,
) -> Result<Page<Usage>, StoreError> {
    let order = paging.order;
    let rows = query(by, selector, key, paging)
        .fetch(tx, "sum up what is stored", |row| Ok((position(&row, order)?, decode(&row)?)));
    Ok(paging.page(rows.await?))
}
