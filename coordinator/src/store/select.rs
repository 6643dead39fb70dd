//! Queries that are put together from pieces: lists that are narrowed and ordered in many ways.
//!
//! `WHERE ($1 = '' OR agent_id = $1)` would be one text for all of them, and no database finds an index for it.

use sealift_common::selector::{Selector, Term};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Dialect, Row, StoreError, Tx, failed};

/// A value for a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Argument {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A query in the making. What is pushed is this program's own text, what is bound goes as a parameter.
#[derive(Debug, Clone)]
pub struct Select {
    sql: String,
    arguments: Vec<Argument>,
    /// Whether the text is one of few, so that its plan is worth keeping.
    cached: bool,
}

impl Select {
    /// Begins with `sql`.
    pub fn new(sql: &str) -> Self {
        Self { sql: sql.to_owned(), arguments: Vec::new(), cached: true }
    }

    /// Appends text.
    #[must_use]
    pub fn push(mut self, sql: &str) -> Self {
        self.sql.push_str(sql);
        self
    }

    /// Appends a parameter.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Argument>) -> Self {
        self.arguments.push(value.into());
        self.sql.push_str(&format!("${}", self.arguments.len()));
        self
    }

    /// Appends parameters, separated by commas: for `IN (…)`.
    #[must_use]
    pub fn bind_all<T: Into<Argument>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.cached = false;
        for (n, value) in values.into_iter().enumerate() {
            self = self.push(if n == 0 { "" } else { ", " }).bind(value);
        }
        self
    }

    /// Appends a condition: the agent whose id is `agent` has such labels.
    #[must_use]
    pub fn and_selected(mut self, agent: &str, selector: &Selector) -> Self {
        for term in selector.terms() {
            let (key, values, holds) = match term {
                Term::In(key, values) => (key, values.as_slice(), "IN"),
                Term::NotIn(key, values) => (key, values.as_slice(), "NOT IN"),
                Term::Present(key) => (key, [].as_slice(), "IN"),
                Term::Absent(key) => (key, [].as_slice(), "NOT IN"),
            };
            let head = format!(" AND {agent} {holds} (SELECT l.agent_id FROM agent_labels l WHERE l.key = ");
            self = self.push(&head).bind(key.as_str());
            if !values.is_empty() {
                self = self.push(" AND l.value IN (").bind_all(values.iter().map(String::as_str)).push(")");
            }
            self = self.push(")");
        }
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// The database's own.
    pub async fn fetch<T: Send + Unpin>(
        self,
        tx: &mut Tx,
        operation: &'static str,
        decode: impl FnMut(Row) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Vec<T>, StoreError> {
        let cached = self.cached;
        let query = sqlx::query(AssertSqlSafe(self.sql)).persistent(cached);
        let query = self.arguments.into_iter().fold(query, |query, argument| match argument {
            Argument::Number(number) => query.bind(number),
            Argument::Text(text) => query.bind(text),
        });
        query.try_map(decode).fetch_all(tx).await.map_err(failed(operation))
    }

    /// How the database would run it, line by line: for tests that look for scans.
    ///
    /// # Errors
    /// The database's own.
    pub async fn plan(&self, tx: &mut Tx) -> Result<Vec<String>, StoreError> {
        let (explain, column) = match Dialect::of(tx) {
            Dialect::Sqlite => ("EXPLAIN QUERY PLAN ", "detail"),
            Dialect::Postgres => ("EXPLAIN ", "QUERY PLAN"),
        };
        let mut explained = self.clone();
        explained.sql.insert_str(0, explain);
        explained.cached = false;
        explained.fetch(tx, "explain a query", |row| row.try_get::<String, _>(column)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_and_selectors_become_conditions() {
        let selector: Selector = "role=pos,region notin (eu,uk),!legacy,till".parse().unwrap();
        let select =
            Select::new("SELECT 1 FROM agents a WHERE a.name > ").bind("x").and_selected("a.id", &selector);
        let labelled = "(SELECT l.agent_id FROM agent_labels l WHERE l.key = ";
        let expected = format!(
            "SELECT 1 FROM agents a WHERE a.name > $1 AND a.id IN {labelled}$2 AND l.value IN ($3)) \
             AND a.id NOT IN {labelled}$4 AND l.value IN ($5, $6)) AND a.id NOT IN {labelled}$7) AND a.id IN {labelled}$8)"
        );
        assert_eq!(select.sql, expected);
        let texts = ["x", "role", "pos", "region", "eu", "uk", "legacy", "till"];
        assert_eq!(select.arguments, texts.map(Argument::from));
    }
}
