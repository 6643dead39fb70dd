//! Runs and backups: a million rows, newest first, of which a page is wanted.
//!
//! Labels are those of hosts. Few hosts: their own indices are asked. Many: the list is walked in its order and what is not
//! theirs is left out, a bounded number of rows at a time; what follows is on the next page.

use std::collections::HashSet;

use sealift_common::id::{AgentId, SeriesId};
use sealift_common::selector::Selector;
use sqlx::Row as _;

use super::{Order, Page, Paging, Position, position};
use crate::store::select::Select;
use crate::store::{Row, StoreError, Tx};

/// Hosts that are asked for one by one.
const FEW: usize = 300;
/// Rows of a walk that are read at a time, and for one page.
const STEP: u32 = 2_000;
const WALK: u32 = 50_000;
/// Ids asked for in one query.
const IDS_PER_QUERY: usize = 500;

/// What a list of history is narrowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// One series.
    Series(SeriesId),
    /// One host.
    Agent(AgentId),
    /// Hosts with such labels; the empty selector for all.
    Labels(Selector),
}

impl Default for Of {
    fn default() -> Self {
        Self::Labels(Selector::default())
    }
}

/// A table of history: rows have `id`, `agent_id` and `series_id`, under the alias `h`.
pub(super) struct Table {
    /// `runs h`.
    pub from: &'static str,
    /// What is read of a row that is listed.
    pub columns: &'static str,
    /// The names of what is done, for errors.
    pub operation: &'static str,
}

/// Which hosts labels mean.
enum Hosts {
    All,
    Few(Vec<String>),
    Many(HashSet<String>),
}

fn hosts_query(selector: &Selector) -> Select {
    Select::new("SELECT a.id FROM agents a WHERE 1 = 1").and_selected("a.id", selector)
}

async fn hosts(tx: &mut Tx, selector: &Selector) -> Result<Hosts, StoreError> {
    if selector.is_empty() {
        return Ok(Hosts::All);
    }
    let ids = hosts_query(selector).fetch(tx, "select agents", |row| row.try_get::<String, _>("id")).await?;
    Ok(if ids.len() <= FEW { Hosts::Few(ids) } else { Hosts::Many(ids.into_iter().collect()) })
}

/// How a list is narrowed in one query.
pub(super) enum Narrowed<'a> {
    All,
    Series(SeriesId),
    Agents(&'a [String]),
}

/// One query over a table: `columns`, narrowed, those for which `and` holds, ordered and cut.
pub(super) fn query<O: Order>(
    table: &Table,
    columns: &str,
    narrowed: &Narrowed<'_>,
    and: &dyn Fn(Select, bool) -> Select,
    paging: &Paging<O>,
) -> Select {
    let value = paging.order.expression();
    let select = Select::new("SELECT ").push(columns);
    let select =
        select.push(&format!(", {value} AS position_value, h.id AS position_id FROM {} WHERE ", table.from));
    let (select, alone) = match narrowed {
        Narrowed::All => (select.push("1 = 1"), true),
        Narrowed::Series(series) => (select.push("h.series_id = ").bind(series.to_string()), false),
        Narrowed::Agents([one]) => (select.push("h.agent_id = ").bind(one.as_str()), false),
        Narrowed::Agents(some) => {
            let ids = some.iter().map(String::as_str);
            (select.push("h.agent_id IN (").bind_all(ids).push(")"), false)
        }
    };
    paging.ordered(paging.and_after(and(select, alone), "h.id"), "h.id")
}

/// A page of a table. `and` appends what else must hold; it is told whether nothing else narrows the list.
pub(super) async fn list<O: Order, T: Send + Unpin>(
    tx: &mut Tx,
    table: &Table,
    of: &Of,
    and: &(dyn Fn(Select, bool) -> Select + Sync),
    paging: &Paging<O>,
    decode: fn(Row) -> Result<T, sqlx::Error>,
) -> Result<Page<T>, StoreError> {
    let hosts = match of {
        Of::Series(_) => Hosts::All,
        Of::Agent(agent) => Hosts::Few(vec![agent.to_string()]),
        Of::Labels(selector) => hosts(tx, selector).await?,
    };
    let narrowed = match (of, &hosts) {
        (Of::Series(series), _) => Narrowed::Series(*series),
        (_, Hosts::Few(agents)) if agents.is_empty() => return Ok(Page { rows: Vec::new(), next: None }),
        (_, Hosts::Few(agents)) => Narrowed::Agents(agents),
        (_, Hosts::Many(agents)) => return walk(tx, table, agents, and, paging, decode).await,
        (_, Hosts::All) => Narrowed::All,
    };
    let order = paging.order;
    let rows = query(table, table.columns, &narrowed, and, paging)
        .fetch(tx, table.operation, |row| Ok((position(&row, order)?, decode(row)?)));
    Ok(paging.page(rows.await?))
}

async fn walk<O: Order, T: Send + Unpin>(
    tx: &mut Tx,
    table: &Table,
    agents: &HashSet<String>,
    and: &(dyn Fn(Select, bool) -> Select + Sync),
    paging: &Paging<O>,
    decode: fn(Row) -> Result<T, sqlx::Error>,
) -> Result<Page<T>, StoreError> {
    let (wanted, order) = (paging.limit as usize, paging.order);
    let mut step = Paging { order, reverse: paging.reverse, after: paging.after.clone(), limit: STEP };
    let (mut found, mut walked) = (Vec::new(), 0);
    let next = loop {
        let rows = query(table, "h.agent_id", &Narrowed::All, and, &step).fetch(tx, table.operation, |row| {
            Ok((position(&row, order)?, row.try_get::<String, _>("agent_id")?))
        });
        let rows = rows.await?;
        walked += STEP;
        let (full, last) = (rows.len() == STEP as usize, rows.last().map(|(place, _)| place.clone()));
        found.extend(rows.into_iter().filter(|(_, agent)| agents.contains(agent)).map(|(place, _)| place));
        if found.len() >= wanted {
            found.truncate(wanted);
            break found.last().cloned();
        }
        if !full {
            break None;
        }
        step.after = last.clone();
        if walked >= WALK {
            break last;
        }
    };
    Ok(Page { rows: whole(tx, table, &found, decode).await?, next })
}

/// The rows at these places, in this order.
async fn whole<T: Send + Unpin>(
    tx: &mut Tx,
    table: &Table,
    places: &[Position],
    decode: fn(Row) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, StoreError> {
    let mut by_id = std::collections::HashMap::new();
    for some in places.chunks(IDS_PER_QUERY) {
        let ids = some.iter().map(|place| place.id.as_str());
        let query = Select::new("SELECT ").push(table.columns).push(" FROM ").push(table.from);
        let query = query.push(" WHERE h.id IN (").bind_all(ids).push(")");
        let rows =
            query.fetch(tx, table.operation, |row| Ok((row.try_get::<String, _>("id")?, decode(row)?)));
        by_id.extend(rows.await?);
    }
    Ok(places.iter().filter_map(|place| by_id.remove(&place.id)).collect())
}
