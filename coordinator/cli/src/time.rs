//! Times as people write and read them: durations, "since", moments; relative in tables, RFC 3339 in JSON.

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use sealift_common::clock::UnixMillis;

/// A duration as given on the command line: `90s`, `15m`, `24h`, `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write it like 90s, 15m, 24h or 7d");
    let span: Span = text.parse().map_err(|_| bad())?;
    let signed: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    Duration::try_from(signed).map_err(|_| bad())
}

/// A moment as given on the command line: RFC 3339, or a date, or a date and a time in this machine's zone.
pub fn parse_moment(text: &str) -> Result<UnixMillis, String> {
    parse_moment_in(text, TimeZone::system())
}

fn parse_moment_in(text: &str, zone: TimeZone) -> Result<UnixMillis, String> {
    let bad = || {
        format!("{text:?} is not a time: write it like 2026-11-22T14:30:00Z, 2026-11-22T14:30 or 2026-11-22")
    };
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(UnixMillis(moment.as_millisecond()));
    }
    let local = text
        .parse::<DateTime>()
        .or_else(|_| text.parse::<Date>().map(|date| date.at(23, 59, 59, 999_000_000)))
        .map_err(|_| bad())?;
    // `DateTime` also parses a bare date, as its midnight; "at 22 November" means at the end of that day.
    let local = if text.trim().len() == 10 { local.date().at(23, 59, 59, 999_000_000) } else { local };
    let moment = local.to_zoned(zone).map_err(|_| bad())?;
    Ok(UnixMillis(moment.timestamp().as_millisecond()))
}

/// The start of what `--since` names: a duration back from now, or a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(UnixMillis),
}

impl Since {
    /// The moment meant, in Unix milliseconds.
    pub fn from(self, now: UnixMillis) -> i64 {
        match self {
            Self::Ago(duration) => now.minus(duration).0,
            Self::At(moment) => moment.0,
        }
    }
}

/// Parses `--since`.
pub fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(duration) = parse_duration(text) {
        return Ok(Since::Ago(duration));
    }
    if let Ok(date) = text.parse::<Date>()
        && text.trim().len() == 10
        && let Ok(zoned) = date.to_zoned(TimeZone::system())
    {
        return Ok(Since::At(UnixMillis(zoned.timestamp().as_millisecond())));
    }
    parse_moment(text).map(Since::At).map_err(|_| {
        format!("{text:?} is neither a duration (24h, 7d) nor a time (2026-11-22T14:30:00Z, 2026-11-22)")
    })
}

/// RFC 3339 for JSON; `None` for 0, which the wire uses for "never".
pub fn rfc3339(ms: i64) -> Option<String> {
    (ms != 0).then(|| UnixMillis(ms).rfc3339())
}

/// A moment for people: how long ago, or how far ahead; `-` for never.
pub fn relative(ms: i64, now: UnixMillis) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    let moment = UnixMillis(ms);
    if moment > now {
        format!("in {}", rough(moment.since(now)))
    } else {
        format!("{} ago", rough(now.since(moment)))
    }
}

/// A duration for people, in its largest unit or two: `45s`, `3m 20s`, `5h 2m`, `12d`.
pub fn rough(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0 if duration.as_millis() > 0 => format!("{}ms", duration.as_millis()),
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        86_400..864_000 => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

/// How long something took, in milliseconds; empty where that is not known yet.
pub fn took(duration_ms: u64) -> String {
    if duration_ms > 0 { rough(Duration::from_millis(duration_ms)) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("1h 30m", 5_400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "7", "-1h", "soon", "1 month"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_date_means_its_end_and_a_zone_is_honoured() {
        let utc = |text| parse_moment_in(text, TimeZone::UTC).unwrap().rfc3339();
        assert_eq!(utc("2026-11-22"), "2026-11-22T23:59:59.999Z");
        assert_eq!(utc("2026-11-22T14:30"), "2026-11-22T14:30:00.000Z");
        assert_eq!(utc("2026-11-22T14:30:00+02:00"), "2026-11-22T12:30:00.000Z");
        assert!(parse_moment("yesterdayish").is_err());
    }

    #[test]
    fn relative_times_look_both_ways() {
        let now = UnixMillis(1_000_000_000);
        assert_eq!(relative(0, now), "-");
        assert_eq!(relative(now.minus(Duration::from_secs(200)).0, now), "3m 20s ago");
        assert_eq!(relative(now.plus(Duration::from_secs(7_320)).0, now), "in 2h 2m");
    }
}
