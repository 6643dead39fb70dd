//! A policy as its author writes it (docs/cli.md): TOML, strict, every value parsed into the type that the rest uses.
//!
//! To add a key: a field here with its bounds in [`Policy::check`], a line in docs/cli.md, and whoever acts on it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sealift_common::name::Name;
use sealift_common::quantity::{ByteSize, Span};
use sealift_common::selector::{Selector, SourcePattern};
use serde::{Deserialize, Serialize};

use crate::retention::rules::RetentionRules;
use crate::scheduler::next_run::{Cron, Zone};

/// Largest policy, in bytes.
pub const MAX_DOCUMENT: usize = 64 * 1024;
/// Most source patterns.
const MAX_PATTERNS: usize = 100;
/// How many attempts a run has where the policy does not say.
pub const DEFAULT_ATTEMPTS: u32 = 3;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// A policy that cannot be used; says where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Not TOML, a key that nobody knows, or a value of the wrong kind.
    #[error("the policy, line {line}, column {column}: {problem}")]
    Text {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A value that cannot be meant.
    #[error("the policy, {key}: {problem}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Too much of it.
    #[error("the policy is larger than {} KiB", MAX_DOCUMENT / 1024)]
    TooLarge,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What people call it.
    pub name: Name,
    /// Wins over policies with less of it.
    #[serde(default)]
    pub priority: i32,
    /// Which sources it is for.
    #[serde(default)]
    pub select: Select,
    /// When; without it, backups are made on request only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// What stays.
    #[serde(default)]
    pub retention: RetentionRules,
    /// How much may be used.
    #[serde(default)]
    pub limits: Limits,
    /// How often what is stored is looked at again.
    #[serde(default)]
    pub verify: Verify,
    /// What is promised.
    #[serde(default)]
    pub alert: Alert,
}

/// `[select]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Labels of hosts; empty: all hosts.
    pub labels: Selector,
    /// Sources of these hosts; empty: all sources.
    pub sources: Vec<SourcePattern>,
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// When it is due.
    pub cron: Cron,
    /// In which zone.
    #[serde(default)]
    pub timezone: Zone,
    /// Starts are spread over this time after the due instant.
    #[serde(default = "no_time")]
    pub spread: Span,
    /// A run that has not started so long after the due instant is missed; without it, when the next is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// What happens after a missed run, once the host is back.
    #[serde(default)]
    pub catch_up: CatchUp,
}

const fn no_time() -> Span {
    Span(Duration::ZERO)
}

/// Whether a missed run is made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CatchUp {
    /// By one run.
    #[default]
    Always,
    /// No: the next one will do.
    Never,
    /// Where the newest good backup is older than this.
    IfOlderThan(Span),
}

impl TryFrom<String> for CatchUp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => match other.strip_prefix("if-older-than ") {
                Some(span) => Span::try_from(span.trim().to_owned()).map(Self::IfOlderThan),
                None => Err(format!("{text:?}: write \"always\", \"never\" or \"if-older-than 20h\"")),
            },
        }
    }
}

impl From<CatchUp> for String {
    fn from(catch_up: CatchUp) -> Self {
        catch_up.to_string()
    }
}

impl fmt::Display for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Never => f.write_str("never"),
            Self::IfOlderThan(span) => write!(f, "if-older-than {span}"),
        }
    }
}

/// What happens to a run that is under way when its window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtWindowEnd {
    /// It is finished.
    #[default]
    Continue,
    /// It ends; what it stored is used by the next one.
    Stop,
}

/// `[limits]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Of each run, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteSize>,
    /// Runs at the same time in one site: hosts with the same label `store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_per_site: Option<u32>,
    /// Runs at the same time under this policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// How often a run is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// A source without progress for so long is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stall_timeout: Option<Span>,
    /// An attempt that takes longer is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Span>,
    /// Zstandard's level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<i32>,
    /// What becomes of a run that is under way then.
    pub at_window_end: AtWindowEnd,
}

/// `[verify]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// Every stored byte is read and hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<VerifyHash>,
    /// A restore is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<Span>,
}

/// `[verify] hash`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyHash {
    /// How often.
    pub every: Span,
    /// How much of it at most, like `"200GiB/day"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<DailyBudget>,
}

/// Bytes a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DailyBudget(pub ByteSize);

impl TryFrom<String> for DailyBudget {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let size =
            text.strip_suffix("/day").ok_or_else(|| format!("{text:?}: write it like \"200GiB/day\""))?;
        ByteSize::parse(size).map(Self)
    }
}

impl From<DailyBudget> for String {
    fn from(budget: DailyBudget) -> Self {
        format!("{}/day", budget.0)
    }
}

/// `[alert]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alert {
    /// The promise: the newest good backup is never older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdue_after: Option<Span>,
}

impl FromStr for Policy {
    type Err = InvalidPolicy;
    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        if text.len() > MAX_DOCUMENT {
            return Err(InvalidPolicy::TooLarge);
        }
        let policy: Self = toml::from_str(text).map_err(|error| at(text, &error))?;
        policy.check()?;
        Ok(policy)
    }
}

fn at(text: &str, error: &toml::de::Error) -> InvalidPolicy {
    let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    InvalidPolicy::Text {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        problem: error.message().lines().collect::<Vec<_>>().join(" "),
    }
}

impl Policy {
    /// How often a run is tried.
    pub fn attempts(&self) -> u32 {
        self.limits.attempts.unwrap_or(DEFAULT_ATTEMPTS)
    }

    fn check(&self) -> Result<(), InvalidPolicy> {
        let value = |key, problem: String| Err(InvalidPolicy::Value { key, problem });
        if !(-1_000..=1_000).contains(&self.priority) {
            return value("priority", format!("{} is not between -1000 and 1000", self.priority));
        }
        if self.select.sources.len() > MAX_PATTERNS {
            return value("select.sources", format!("at most {MAX_PATTERNS} patterns"));
        }
        if let Err(slip) = self.retention.check() {
            return value("retention", slip.to_string());
        }
        self.check_schedule()?;
        self.check_limits()?;
        let between = Self::between;
        between("alert.overdue_after", self.alert.overdue_after, MINUTE, 3_650 * DAY)?;
        between("verify.drill", self.verify.drill, DAY, 3_650 * DAY)?;
        between("verify.hash.every", self.verify.hash.as_ref().map(|hash| hash.every), DAY, 3_650 * DAY)
    }

    fn between(
        key: &'static str,
        span: Option<Span>,
        least: Duration,
        most: Duration,
    ) -> Result<(), InvalidPolicy> {
        match span {
            Some(span) if span.0 < least || span.0 > most => Err(InvalidPolicy::Value {
                key,
                problem: format!("{span} is not between {} and {}", Span(least), Span(most)),
            }),
            _ => Ok(()),
        }
    }

    fn check_schedule(&self) -> Result<(), InvalidPolicy> {
        let value = |key, problem: String| Err(InvalidPolicy::Value { key, problem });
        let stop = self.limits.at_window_end == AtWindowEnd::Stop;
        let Some(schedule) = &self.schedule else {
            return if stop {
                value("limits.at_window_end", "\"stop\" needs a [schedule] with a window".into())
            } else {
                Ok(())
            };
        };
        Self::between("schedule.spread", Some(schedule.spread), Duration::ZERO, DAY)?;
        Self::between("schedule.window", schedule.window, MINUTE, 7 * DAY)?;
        match schedule.window {
            None if stop => value("limits.at_window_end", "\"stop\" needs a window in [schedule]".into()),
            Some(window) if window < schedule.spread => value(
                "schedule.spread",
                format!(
                    "{} is longer than the window, {window}: some runs could never start",
                    schedule.spread
                ),
            ),
            _ => Ok(()),
        }
    }

    fn check_limits(&self) -> Result<(), InvalidPolicy> {
        let limits = &self.limits;
        let value = |key, problem: &str| Err(InvalidPolicy::Value { key, problem: problem.to_owned() });
        if limits.bandwidth.is_some_and(|bandwidth| bandwidth.0 < 1_024) {
            return value("limits.bandwidth", "must be at least 1KiB/s; leave it out for no limit");
        }
        for (key, limit) in [
            ("limits.concurrent_per_site", limits.concurrent_per_site),
            ("limits.concurrent", limits.concurrent),
        ] {
            if limit == Some(0) {
                return value(key, "must be at least 1; `sealift pause` stops schedules");
            }
        }
        if limits.attempts.is_some_and(|attempts| !(1..=20).contains(&attempts)) {
            return value("limits.attempts", "must be 1 to 20");
        }
        if limits.compression.is_some_and(|level| !(1..=19).contains(&level)) {
            return value("limits.compression", "must be 1 to 19");
        }
        Self::between("limits.stall_timeout", limits.stall_timeout, MINUTE, DAY)?;
        Self::between("limits.max_duration", limits.max_duration, MINUTE, 30 * DAY)
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
