//! What a policy says about keeping backups: how many of which slots. The `[retention]` table of a policy is this type.
//!
//! Rules only ever add: a backup stays if any rule wants it. What no rule can take away (holds, the last good backup, …) is
//! in [`super::plan`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// More than this of one kind is a slip of the keyboard.
pub const MAX_KEPT: u32 = 10_000;

/// How many backups of a series stay. Slots are by UTC and by when the coordinator received a backup, never by what a host
/// says about the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionRules {
    /// The newest so many.
    #[serde(skip_serializing_if = "is_zero")]
    pub last: u32,
    /// The newest of each of so many hours that have one.
    #[serde(skip_serializing_if = "is_zero")]
    pub hourly: u32,
    /// … of so many days.
    #[serde(skip_serializing_if = "is_zero")]
    pub daily: u32,
    /// … of so many weeks, which begin on Monday.
    #[serde(skip_serializing_if = "is_zero")]
    pub weekly: u32,
    /// … of so many months.
    #[serde(skip_serializing_if = "is_zero")]
    pub monthly: u32,
    /// … of so many years.
    #[serde(skip_serializing_if = "is_zero")]
    pub yearly: u32,
    /// Never fewer good ones than this, and of as many different days, whatever the other rules say.
    #[serde(skip_serializing_if = "is_zero")]
    pub minimum: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A number that no rule can mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("retention: {field} = {value} is too many; use at most {MAX_KEPT}")]
pub struct TooMany {
    /// Which rule.
    pub field: &'static str,
    /// What it says.
    pub value: u32,
}

impl RetentionRules {
    /// The rules by name, in the order people write them.
    pub fn fields(&self) -> [(&'static str, u32); 7] {
        [
            ("last", self.last),
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
            ("minimum", self.minimum),
        ]
    }

    /// Whether the numbers can be meant.
    ///
    /// # Errors
    /// [`TooMany`] names the first that cannot.
    pub fn check(&self) -> Result<(), TooMany> {
        match self.fields().into_iter().find(|(_, value)| *value > MAX_KEPT) {
            Some((field, value)) => Err(TooMany { field, value }),
            None => Ok(()),
        }
    }

    /// Whether nothing is said: then everything stays.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether some backup that stays under `before` might go under these rules: what a policy lets take effect only after
    /// a while.
    pub fn shortens(&self, before: &Self) -> bool {
        if self.is_empty() {
            return false;
        }
        before.is_empty()
            || self.fields().into_iter().zip(before.fields()).any(|((_, now), (_, was))| now < was)
    }
}

impl fmt::Display for RetentionRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("everything");
        }
        let said = self.fields().into_iter().filter(|(_, value)| *value > 0);
        let said: Vec<String> = said.map(|(field, value)| format!("{field} {value}")).collect();
        f.write_str(&said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_policies_write_them() {
        let rules: RetentionRules = toml::from_str("last = 3\ndaily = 7\nweekly = 4\nmonthly = 12").unwrap();
        assert_eq!(rules, RetentionRules { last: 3, daily: 7, weekly: 4, monthly: 12, ..Default::default() });
        assert_eq!(rules.to_string(), "last 3, daily 7, weekly 4, monthly 12");
        assert_eq!(toml::from_str::<RetentionRules>(&toml::to_string(&rules).unwrap()).unwrap(), rules);
        assert!(toml::from_str::<RetentionRules>("dayly = 7").is_err(), "unknown keys are refused");
        assert!(toml::from_str::<RetentionRules>("daily = -1").is_err());
        assert_eq!(RetentionRules::default().to_string(), "everything");
    }

    #[test]
    fn slips_are_found() {
        assert_eq!(RetentionRules { daily: 7, ..Default::default() }.check(), Ok(()));
        let slip = RetentionRules { weekly: 40_000, ..Default::default() };
        assert_eq!(slip.check(), Err(TooMany { field: "weekly", value: 40_000 }));
    }

    #[test]
    fn fewer_of_anything_is_shorter() {
        let week = RetentionRules { daily: 7, minimum: 2, ..Default::default() };
        let longer = RetentionRules { daily: 8, minimum: 2, ..Default::default() };
        let other = RetentionRules { daily: 30, ..Default::default() };
        let all = RetentionRules::default();
        assert!(!week.shortens(&week) && !longer.shortens(&week) && week.shortens(&longer));
        assert!(other.shortens(&week), "a smaller minimum is shorter, whatever else grew");
        assert!(week.shortens(&all), "everything stayed before");
        assert!(!all.shortens(&week));
    }
}
