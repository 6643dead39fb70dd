//! What hosts can back up, by name or by what it needs.

use std::collections::HashMap;

use sealift_common::id::{AgentId, SeriesId};
use sealift_common::selector::Selector;
use sqlx::Row as _;

use super::{Order as _, Page, Paging, orders, position};
use crate::store::select::Select;
use crate::store::sources::{SourceRow, decode};
use crate::store::{Row, StoreError, Tx, backups, number, runs, text};

/// Ids asked for in one query.
const IDS_PER_QUERY: usize = 500;

orders! {
    /// What sources are sorted by. All but the name reads every source: there are thousands of them, not millions.
    SourceOrder, "name, last-backup or stored" {
        /// Their host's name, then their own.
        #[default]
        Name = "name": "a.name", false, false;
        /// When their last good backup was begun: those without one come first.
        LastBackup = "last-backup": "COALESCE(t.good_backup_ms, 0)", false, true;
        /// What their backups take in the bucket, most first.
        Stored = "stored": "COALESCE(t.stored_bytes, 0)", true, true;
    }
}

/// A source in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSource {
    /// The source.
    pub source: SourceRow,
    /// Name of its host.
    pub agent: String,
    /// What its backups take in the bucket.
    pub stored_bytes: u64,
    /// How many there are.
    pub backups: u64,
}

const COLUMNS: &str = "SELECT s.*, a.name AS agent_name, COALESCE(t.stored_bytes, 0) AS stored_bytes,
    COALESCE(t.backups, 0) AS backups";
const FROM: &str = " FROM agents a JOIN sources s ON s.agent_id = a.id
    LEFT JOIN series_totals t ON t.series_id = s.series_id WHERE 1 = 1";

fn listed(row: Row) -> Result<ListedSource, sqlx::Error> {
    Ok(ListedSource {
        agent: row.try_get("agent_name")?,
        stored_bytes: number(&row, "stored_bytes")?,
        backups: number(&row, "backups")?,
        source: decode(row)?,
    })
}

/// Sources of hosts with such labels. Among those of one host the name decides. In other orders the page is found first, then
/// its rows: all sources are sorted, and whole rows would be much to sort.
pub fn query(selector: &Selector, paging: &Paging<SourceOrder>) -> Select {
    let value = paging.order.expression();
    if paging.order == SourceOrder::Name {
        let select = Select::new(COLUMNS)
            .push(&format!(", {value} AS position_value, s.name AS position_id"))
            .push(FROM)
            .and_selected("a.id", selector);
        return paging.ordered(paging.and_after(select, "s.name"), "s.name");
    }
    let select = Select::new(COLUMNS)
        .push(", page.position_value, page.position_id FROM (SELECT s.series_id AS position_id, ")
        .push(value)
        .push(" AS position_value FROM sources s LEFT JOIN series_totals t ON t.series_id = s.series_id WHERE 1 = 1")
        .and_selected("s.agent_id", selector);
    let page = paging.ordered(paging.and_after(select, "s.series_id"), "s.series_id");
    let direction = paging.direction();
    page.push(") AS page JOIN sources s ON s.series_id = page.position_id JOIN agents a ON a.id = s.agent_id")
        .push(" LEFT JOIN series_totals t ON t.series_id = s.series_id")
        .push(&format!(" ORDER BY page.position_value {direction}, page.position_id {direction}"))
}

/// Runs [`query`].
///
/// # Errors
/// The database's own.
pub async fn list(
    tx: &mut Tx,
    selector: &Selector,
    paging: &Paging<SourceOrder>,
) -> Result<Page<ListedSource>, StoreError> {
    let rows = query(selector, paging)
        .fetch(tx, "list sources", |row| Ok((position(&row, paging.order)?, listed(row)?)));
    Ok(paging.page(rows.await?))
}

/// All sources of these hosts, by host.
pub fn of_agents_query(agents: &[AgentId]) -> Select {
    let ids = agents.iter().map(ToString::to_string);
    Select::new(COLUMNS).push(FROM).push(" AND a.id IN (").bind_all(ids).push(") ORDER BY a.name, s.name")
}

/// Runs [`of_agents_query`].
///
/// # Errors
/// The database's own.
pub async fn of_agents(
    tx: &mut Tx,
    agents: &[AgentId],
) -> Result<HashMap<AgentId, Vec<ListedSource>>, StoreError> {
    let mut out: HashMap<_, Vec<_>> = HashMap::new();
    for some in agents.chunks(IDS_PER_QUERY) {
        for source in of_agents_query(some).fetch(tx, "list sources", listed).await? {
            out.entry(source.source.agent).or_default().push(source);
        }
    }
    Ok(out)
}

/// The ids of the newest run of each of these series.
pub fn last_runs_query(series: &[SeriesId]) -> Select {
    let ids = series.iter().map(ToString::to_string);
    Select::new(
        "SELECT (SELECT n.id FROM runs n WHERE n.series_id = s.id ORDER BY n.created_ms DESC, n.id DESC LIMIT 1) AS id
         FROM series s WHERE s.id IN (",
    )
    .bind_all(ids)
    .push(")")
}

/// The runs with these ids.
pub fn runs_query(ids: Vec<String>) -> Select {
    Select::new("SELECT * FROM runs WHERE id IN (").bind_all(ids).push(")")
}

/// The newest good backup of each of these series that has one.
pub fn last_backups_query(series: &[SeriesId]) -> Select {
    let ids = series.iter().map(ToString::to_string);
    Select::new("SELECT ")
        .push(backups::COLUMNS)
        .push(
            " FROM backups WHERE id IN (SELECT t.good_backup_id FROM series_totals t WHERE t.series_id IN (",
        )
        .bind_all(ids)
        .push("))")
}

/// The newest run of each of these series that has one. Ids first, then rows: asked for both at once, PostgreSQL reads all runs
/// that there ever were to compare them with.
///
/// # Errors
/// The database's own.
pub async fn last_runs(
    tx: &mut Tx,
    series: &[SeriesId],
) -> Result<HashMap<SeriesId, runs::RunRow>, StoreError> {
    let mut out = HashMap::new();
    for some in series.chunks(IDS_PER_QUERY) {
        let ids = last_runs_query(some)
            .fetch(tx, "find the newest runs", |row| row.try_get::<Option<String>, _>("id"));
        let ids: Vec<String> = ids.await?.into_iter().flatten().collect();
        if !ids.is_empty() {
            let found = runs_query(ids).fetch(tx, "read the newest runs", runs::decode).await?;
            out.extend(found.into_iter().map(|run| (run.series, run)));
        }
    }
    Ok(out)
}

/// The newest good backup of each of these series that has one.
///
/// # Errors
/// The database's own.
pub async fn last_backups(
    tx: &mut Tx,
    series: &[SeriesId],
) -> Result<HashMap<SeriesId, backups::BackupRow>, StoreError> {
    let mut out = HashMap::new();
    for some in series.chunks(IDS_PER_QUERY) {
        let found = last_backups_query(some).fetch(tx, "find the newest backups", backups::decode).await?;
        out.extend(found.into_iter().map(|backup| (backup.series, backup)));
    }
    Ok(out)
}

/// Names of hosts and sources by series: what rows of history are shown with.
///
/// # Errors
/// The database's own.
pub async fn names(
    tx: &mut Tx,
    series: &[SeriesId],
) -> Result<HashMap<SeriesId, (String, String)>, StoreError> {
    let mut out = HashMap::new();
    for some in series.chunks(IDS_PER_QUERY) {
        let query = names_query(some).fetch(tx, "read names", |row| {
            Ok((text(&row, "id")?, (row.try_get("agent_name")?, row.try_get("source_name")?)))
        });
        out.extend(query.await?);
    }
    Ok(out)
}

/// Names of the hosts and sources of these series.
pub fn names_query(series: &[SeriesId]) -> Select {
    Select::new(
        "SELECT e.id, a.name AS agent_name, COALESCE(s.name, e.source) AS source_name FROM series e
            JOIN agents a ON a.id = e.agent_id LEFT JOIN sources s ON s.series_id = e.id WHERE e.id IN (",
    )
    .bind_all(series.iter().map(ToString::to_string))
    .push(")")
}
