//! When a schedule is due: cron expression, time zone, spread. Pure: the time is an argument.
//!
//! What happens when clocks change: a fixed time of day that the clock jumps over (02:30, or midnight in Havana, Cairo and
//! Beirut) is due at the first moment after the gap; one that happens twice is due at the first of the two. So are lists of
//! fixed times (`0 2,14 * * *`). A schedule with a wildcard, a range or a step in its hour or minute (`*/15 * * * *`) goes on
//! through real time: each hour that passes has its runs.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use sealift_common::clock::UnixMillis;
use sealift_common::id::{PolicyId, SeriesId, Sha256};
use serde::{Deserialize, Serialize};

/// Longest cron expression, in bytes.
const MAX_CRON: usize = 128;
/// Longest name of a time zone, in bytes.
const MAX_ZONE: usize = 64;
/// No more instants of an absence are counted than this.
const MAX_COLLAPSED: u32 = 1_000;
/// Answers that a [`Calendar`] remembers.
const MAX_REMEMBERED: usize = 4_096;
/// Where the search starts that tells whether an expression is ever due: any moment will do.
const SOME_MOMENT: UnixMillis = UnixMillis(1_767_225_600_000);

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// Not a cron expression.
    #[error(
        "{text:?} is not a cron expression ({problem}): write minute, hour, day of month, month, day of week, like \"0 2 * * *\""
    )]
    Cron {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An expression for a day that does not exist.
    #[error("the cron expression {0:?} is never due")]
    Never(String),
    /// Not a time zone.
    #[error(
        "{0:?} is not a time zone: write \"site\" for the host's own, or an IANA name like \"Europe/Berlin\""
    )]
    Zone(String),
}

/// A cron expression of five fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    /// One, or one for each of several fixed times of day: croner carries only a single fixed time over a gap.
    parts: Vec<croner::Cron>,
}

/// Most fixed times of day in one expression that are told apart.
const MAX_TIMES: usize = 48;

/// `0 2,14 * * *` as `0 2 * * *` and `0 14 * * *`; anything else as it is.
fn fixed_times(text: &str) -> Vec<String> {
    let whole = vec![text.to_owned()];
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, rest @ ..] = fields.as_slice() else { return whole };
    let list = |field: &str| -> Option<Vec<u8>> { field.split(',').map(|n| n.parse().ok()).collect() };
    match (list(minutes), list(hours)) {
        (Some(minutes), Some(hours)) if minutes.len() * hours.len() <= MAX_TIMES => hours
            .iter()
            .flat_map(|hour| minutes.iter().map(move |minute| (hour, minute)))
            .map(|(hour, minute)| format!("{minute} {hour} {}", rest.join(" ")))
            .collect(),
        _ => whole,
    }
}

impl FromStr for Cron {
    type Err = InvalidSchedule;
    fn from_str(text: &str) -> Result<Self, InvalidSchedule> {
        let shown = || text.chars().take(MAX_CRON).collect::<String>();
        let bad = |problem: String| InvalidSchedule::Cron { text: shown(), problem };
        if text.len() > MAX_CRON {
            return Err(bad(format!("longer than {MAX_CRON} characters")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        parser.parse(text).map_err(|error| bad(error.to_string()))?;
        let parts = fixed_times(text).iter().map(|part| parser.parse(part)).collect::<Result<_, _>>();
        let parsed =
            Self { text: text.trim().to_owned(), parts: parts.map_err(|error| bad(error.to_string()))? };
        match parsed.after(&TimeZone::UTC, SOME_MOMENT) {
            Some(_) => Ok(parsed),
            None => Err(InvalidSchedule::Never(shown())),
        }
    }
}

impl TryFrom<String> for Cron {
    type Error = InvalidSchedule;
    fn try_from(text: String) -> Result<Self, InvalidSchedule> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The moment in that zone, whole seconds; `None` beyond the calendar.
fn zoned(moment: UnixMillis, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_second(moment.0.div_euclid(1_000)).ok()?.to_zoned(zone.clone()))
}

impl Cron {
    /// The first instant after `moment`.
    pub fn after(&self, zone: &TimeZone, moment: UnixMillis) -> Option<UnixMillis> {
        let moment = zoned(moment, zone)?;
        let found = self.parts.iter().filter_map(|cron| cron.find_next_occurrence(&moment, false).ok());
        found.map(|next| UnixMillis(next.timestamp().as_millisecond())).min()
    }

    /// The newest instant at or before `moment`.
    pub fn latest(&self, zone: &TimeZone, moment: UnixMillis) -> Option<UnixMillis> {
        let moment = zoned(moment, zone)?;
        let found = self.parts.iter().filter_map(|cron| cron.find_previous_occurrence(&moment, true).ok());
        found.map(|latest| UnixMillis(latest.timestamp().as_millisecond())).max()
    }

    /// Whether `instant` is one of this schedule's.
    pub fn is_due_at(&self, zone: &TimeZone, instant: UnixMillis) -> bool {
        self.after(zone, instant.minus(Duration::from_secs(1))) == Some(instant)
    }
}

/// In which zone a schedule's times are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Zone {
    /// Each host's own.
    #[default]
    Site,
    /// This one.
    Named(TimeZone),
}

impl Zone {
    /// The zone in which the schedule of a host is meant, where the host says that it lives in `site`. UTC where what it
    /// says is no zone that is known here.
    pub fn of_host(&self, site: &str) -> TimeZone {
        match self {
            Self::Named(zone) => zone.clone(),
            Self::Site => named(site).unwrap_or(TimeZone::UTC),
        }
    }
}

fn named(name: &str) -> Option<TimeZone> {
    if name.is_empty() || name.len() > MAX_ZONE { None } else { TimeZone::get(name).ok() }
}

impl TryFrom<String> for Zone {
    type Error = InvalidSchedule;
    fn try_from(text: String) -> Result<Self, InvalidSchedule> {
        if text == "site" {
            return Ok(Self::Site);
        }
        let zone =
            named(&text).ok_or_else(|| InvalidSchedule::Zone(text.chars().take(MAX_ZONE).collect()))?;
        Ok(Self::Named(zone))
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.to_string()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("site"),
            Self::Named(zone) => f.write_str(zone.iana_name().unwrap_or("UTC")),
        }
    }
}

/// How long after the due instant this source starts under this policy: the same every time, whatever either is called,
/// and evenly spread over the fleet.
pub fn offset(policy: PolicyId, source: SeriesId, spread: Duration) -> Duration {
    let mut both = [0u8; 32];
    both[..16].copy_from_slice(policy.as_bytes());
    both[16..].copy_from_slice(source.as_bytes());
    let hash = Sha256::of(&both);
    let mut fraction = [0u8; 8];
    fraction.copy_from_slice(&hash.as_bytes()[..8]);
    let spread_ms = spread.as_millis().min(u128::from(u64::MAX));
    let offset_ms = (u128::from(u64::from_be_bytes(fraction)) * spread_ms) >> 64;
    Duration::from_millis(u64::try_from(offset_ms).unwrap_or(0))
}

/// What of a schedule has come due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The newest instant.
    pub instant: UnixMillis,
    /// How many came before it and were not dealt with either.
    pub collapsed: u32,
    /// The instant after it.
    pub next: UnixMillis,
}

/// Instants of schedules, remembered: at two in the morning thousands of hosts ask the same question.
#[derive(Debug, Default)]
pub struct Calendar {
    due: HashMap<(String, TimeZoneKey, UnixMillis), (UnixMillis, Due)>,
}

type TimeZoneKey = String;

impl Calendar {
    /// What has come due by `now` of a schedule whose instants before `next` are dealt with.
    pub fn due(&mut self, cron: &Cron, zone: &TimeZone, next: UnixMillis, now: UnixMillis) -> Option<Due> {
        if now < next {
            return None;
        }
        let name = zone.iana_name().unwrap_or_default().to_owned();
        let key = (cron.text.clone(), name, next);
        // Good until the next instant comes.
        if let Some((asked, due)) = self.due.get(&key)
            && *asked <= now
            && now < due.next
        {
            return Some(*due);
        }
        let due = newest(cron, zone, next, now)?;
        if self.due.len() >= MAX_REMEMBERED {
            self.due.clear();
        }
        self.due.insert(key, (now, due));
        Some(due)
    }
}

fn newest(cron: &Cron, zone: &TimeZone, next: UnixMillis, now: UnixMillis) -> Option<Due> {
    let latest = cron.latest(zone, now)?.max(next);
    let (mut collapsed, mut at) = (0, next);
    while at < latest && collapsed < MAX_COLLAPSED {
        collapsed += 1;
        at = cron.after(zone, at)?;
    }
    Some(Due { instant: latest, collapsed, next: cron.after(zone, latest)? })
}

#[cfg(test)]
#[path = "next_run_tests.rs"]
mod tests;
