//! What admins page through: hosts, sources, runs, backups, what they take in the bucket, and the audit.
//!
//! Every list is narrowed, ordered and cut by the database, from an index or from `series_totals`; none reads the history to
//! its end. Each file has a `query` of pure text and a function that runs it; `tests/store/plans.rs` asks both databases how
//! they would run each of them. To add an order: a variant of the list's `…Order`, its expression, an index if it is over
//! history, and a line in that test.

pub mod agents;
pub mod audit;
pub mod backups;
pub mod history;
pub mod runs;
pub mod sources;
pub mod usage;

use std::fmt;
use std::str::FromStr;

use super::select::{Argument, Select};

/// An order, or a place in a list, that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPage {
    /// There is no such order.
    #[error("cannot sort by {wanted:?}: sort by {known}")]
    Order {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: &'static str,
    },
    /// A place that this list never gave.
    #[error("{0:?} is not a place in this list: take it from the answer before")]
    Position(String),
}

/// A place in a list: what is sorted by, and the id of the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// What is sorted by: a number, or a text without '~'.
    value: Argument,
    /// The row.
    id: String,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Argument::Number(number) => write!(f, "{number}~{}", self.id),
            Argument::Text(text) => write!(f, "{text}~{}", self.id),
        }
    }
}

/// Which part of a list is wanted, in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paging<O> {
    /// Sorted by this.
    pub order: O,
    /// The other way round.
    pub reverse: bool,
    /// What follows this place; `None` for the beginning.
    pub after: Option<Position>,
    /// At most so many.
    pub limit: u32,
}

impl<O: Default> Paging<O> {
    /// The first rows, in the list's own order.
    pub fn first(limit: u32) -> Self {
        Self { order: O::default(), reverse: false, after: None, limit }
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<Position>,
}

/// What a list can be sorted by.
pub trait Order: Copy + Send + Sync {
    /// Column or expression; in a query that names what it is sorted by so.
    fn expression(self) -> &'static str;
    /// Whether the greatest comes first: what people want of times and sizes.
    fn is_descending(self) -> bool;
    /// Whether it is a number.
    fn is_number(self) -> bool;
}

/// Declares a list's orders, with the names that admins give them.
macro_rules! orders {
    ($(#[$doc:meta])* $name:ident, $known:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal: $expression:literal, $descending:literal, $number:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them, for tests.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
        }

        impl std::str::FromStr for $name {
            type Err = super::InvalidPage;
            fn from_str(text: &str) -> Result<Self, super::InvalidPage> {
                match text {
                    "" => Ok(Self::default()),
                    $($text => Ok(Self::$variant),)*
                    other => Err(super::InvalidPage::Order { wanted: other.chars().take(40).collect(), known: $known }),
                }
            }
        }

        impl super::Order for $name {
            fn expression(self) -> &'static str {
                match self { $(Self::$variant => $expression,)* }
            }
            fn is_descending(self) -> bool {
                match self { $(Self::$variant => $descending,)* }
            }
            fn is_number(self) -> bool {
                match self { $(Self::$variant => $number,)* }
            }
        }
    };
}
pub(in crate::store) use orders;

impl<O: Order + Default + FromStr<Err = InvalidPage>> Paging<O> {
    /// What an admin asked for: the name of an order, and the [`Position`] that an answer gave.
    ///
    /// # Errors
    /// [`InvalidPage`].
    pub fn parse(order: &str, reverse: bool, after: &str, limit: u32) -> Result<Self, InvalidPage> {
        let order: O = order.parse()?;
        let bad = || InvalidPage::Position(after.chars().take(120).collect());
        let place = |(value, id): (&str, &str)| {
            let value = if order.is_number() {
                value.parse::<i64>().map_err(|_| bad())?.into()
            } else {
                value.into()
            };
            Ok(Position { value, id: id.to_owned() })
        };
        let after = match after {
            "" => None,
            text => Some(place(text.split_once('~').ok_or_else(bad)?)?),
        };
        Ok(Self { order, reverse, after, limit })
    }
}

impl<O: Order> Paging<O> {
    fn is_descending(&self) -> bool {
        self.order.is_descending() != self.reverse
    }

    /// Appends the condition that a row with this id column comes after the place asked for.
    fn and_after(&self, select: Select, id: &str) -> Select {
        let Some(Position { value, id: seen }) = self.after.clone() else { return select };
        let comparison = if self.is_descending() { "<" } else { ">" };
        let expression = self.order.expression();
        // Of a pair, both databases make a range of the index on it.
        let select = select.push(&format!(" AND ({expression}, {id}) {comparison} ("));
        select.bind(value).push(", ").bind(seen).push(")")
    }

    fn direction(&self) -> &'static str {
        if self.is_descending() { "DESC" } else { "ASC" }
    }

    /// Appends order and limit.
    fn ordered(&self, select: Select, id: &str) -> Select {
        let direction = self.direction();
        let expression = self.order.expression();
        select.push(&format!(" ORDER BY {expression} {direction}, {id} {direction} LIMIT ")).bind(self.limit)
    }

    /// The page that these rows are, each with its place.
    fn page<T>(&self, rows: Vec<(Position, T)>) -> Page<T> {
        let full = rows.len() as u64 >= u64::from(self.limit);
        let next = rows.last().filter(|_| full).map(|(position, _)| position.clone());
        Page { rows: rows.into_iter().map(|(_, row)| row).collect(), next }
    }
}

/// Reads the place of a row from its columns `position_value` and `position_id`.
fn position(row: &super::Row, order: impl Order) -> Result<Position, sqlx::Error> {
    use sqlx::Row as _;
    let value = match order.is_number() {
        true => Argument::Number(row.try_get("position_value")?),
        false => Argument::Text(row.try_get("position_value")?),
    };
    Ok(Position { value, id: row.try_get("position_id")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_round_trip() {
        let text = "12~abc";
        let paging = Paging::<backups::BackupOrder>::parse("size", false, text, 1).unwrap();
        assert_eq!(paging.after.unwrap().to_string(), text);
        for bad in ["x~1", "12"] {
            assert!(Paging::<backups::BackupOrder>::parse("size", false, bad, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn orders_have_names() {
        assert_eq!("".parse::<agents::AgentOrder>().unwrap(), agents::AgentOrder::Name);
        let error = "colour".parse::<agents::AgentOrder>().unwrap_err().to_string();
        assert!(error.contains("last-seen"), "{error}");
    }
}
