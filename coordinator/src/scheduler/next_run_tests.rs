use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::date;
use sealift_common::id::Random;

use super::*;
use crate::scheduler::plan::{Circumstances, Decision, decide};

fn cron(text: &str) -> Cron {
    text.parse().unwrap()
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn utc(text: &str) -> UnixMillis {
    UnixMillis(text.parse::<Timestamp>().unwrap().as_millisecond())
}

/// Every instant of `from ≤ t < to`.
fn all(cron: &Cron, zone: &TimeZone, from: UnixMillis, to: UnixMillis) -> Vec<UnixMillis> {
    let mut out = Vec::new();
    let mut at = from.minus(Duration::from_secs(1));
    while let Some(next) = cron.after(zone, at).filter(|next| *next < to) {
        assert!(next > at, "time goes forward");
        out.push(next);
        at = next;
    }
    out
}

fn local(moments: &[UnixMillis], zone: &TimeZone) -> Vec<String> {
    moments.iter().map(|m| zoned(*m, zone).unwrap().strftime("%m-%d %H:%M %:z").to_string()).collect()
}

/// From one local midnight to another.
fn days(zone: &TimeZone, from: (i16, i8, i8), count: i64) -> (UnixMillis, UnixMillis) {
    let start = date(from.0, from.1, from.2).at(0, 0, 0, 0);
    let at = |date: jiff::civil::DateTime| {
        UnixMillis(zone.to_ambiguous_timestamp(date).compatible().unwrap().as_millisecond())
    };
    (at(start), at(start.checked_add(jiff::Span::new().days(count)).unwrap()))
}

#[test]
fn a_time_that_the_clock_jumps_over_is_due_after_the_gap() {
    for (name, at, from, expected) in [
        (
            "Europe/Berlin",
            "30 2 * * *",
            (2026, 3, 28),
            ["03-28 02:30 +01:00", "03-29 03:00 +02:00", "03-30 02:30 +02:00"].as_slice(),
        ),
        (
            "America/New_York",
            "0 2 * * *",
            (2026, 3, 7),
            ["03-07 02:00 -05:00", "03-08 03:00 -04:00", "03-09 02:00 -04:00"].as_slice(),
        ),
        // These three change their clocks at midnight.
        (
            "America/Havana",
            "0 0 * * *",
            (2026, 3, 7),
            ["03-07 00:00 -05:00", "03-08 01:00 -04:00", "03-09 00:00 -04:00"].as_slice(),
        ),
        (
            "Africa/Cairo",
            "0 0 * * *",
            (2026, 4, 23),
            ["04-23 00:00 +02:00", "04-24 01:00 +03:00", "04-25 00:00 +03:00"].as_slice(),
        ),
        (
            "Asia/Beirut",
            "0 0 * * *",
            (2026, 3, 28),
            ["03-28 00:00 +02:00", "03-29 01:00 +03:00", "03-30 00:00 +03:00"].as_slice(),
        ),
        // Several fixed times: each for itself.
        (
            "Europe/Berlin",
            "30 2,14 * * *",
            (2026, 3, 29),
            [
                "03-29 03:00 +02:00",
                "03-29 14:30 +02:00",
                "03-30 02:30 +02:00",
                "03-30 14:30 +02:00",
                "03-31 02:30 +02:00",
                "03-31 14:30 +02:00",
            ]
            .as_slice(),
        ),
        // Half an hour only.
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            (2026, 10, 3),
            &["10-03 02:15 +10:30", "10-04 02:30 +11:00", "10-05 02:15 +11:00"],
        ),
    ] {
        let zone = zone(name);
        let (start, end) = days(&zone, from, 3);
        assert_eq!(local(&all(&cron(at), &zone, start, end), &zone), expected, "{name}");
    }
}

#[test]
fn a_time_that_happens_twice_is_due_once() {
    for (name, at, from, expected) in [
        (
            "Europe/Berlin",
            "30 2 * * *",
            (2026, 10, 24),
            ["10-24 02:30 +02:00", "10-25 02:30 +02:00", "10-26 02:30 +01:00"],
        ),
        (
            "America/Havana",
            "30 0 * * *",
            (2026, 10, 31),
            ["10-31 00:30 -04:00", "11-01 00:30 -04:00", "11-02 00:30 -05:00"],
        ),
        // Midnight itself happens twice: the hour before it does.
        (
            "Africa/Cairo",
            "30 23 * * *",
            (2026, 10, 28),
            ["10-28 23:30 +03:00", "10-29 23:30 +03:00", "10-30 23:30 +02:00"],
        ),
    ] {
        let zone = zone(name);
        let (start, end) = days(&zone, from, 3);
        assert_eq!(local(&all(&cron(at), &zone, start, end), &zone), expected, "{name}");
    }
}

#[test]
fn an_hourly_schedule_goes_through_real_time() {
    let zone = zone("Europe/Berlin");
    for (from, hours) in [((2026, 3, 29), 23), ((2026, 10, 25), 25)] {
        let (start, end) = days(&zone, from, 1);
        let instants = all(&cron("0 * * * *"), &zone, start, end);
        assert_eq!(instants.len(), hours);
        assert!(instants.windows(2).all(|pair| pair[1].since(pair[0]) == Duration::from_secs(3_600)));
    }
    // A gap of half an hour, and the two times of it that do not exist.
    let zone = self::zone("Australia/Lord_Howe");
    let (start, end) = days(&zone, (2026, 10, 4), 1);
    assert_eq!(all(&cron("0,15,30,45 * * * *"), &zone, start, end).len(), 94);
}

#[test]
fn looking_back_finds_what_looking_ahead_found() {
    let moments =
        ["Europe/Berlin", "America/Havana", "Africa/Cairo", "Asia/Kolkata", "UTC", "Australia/Lord_Howe"];
    for (name, at) in
        moments.iter().flat_map(|name| ["30 2 * * *", "0 0 * * *", "5 */3 * * 1-5"].map(|at| (name, at)))
    {
        let (zone, cron) = (zone(name), cron(at));
        let instants = all(&cron, &zone, utc("2026-01-01T00:00:00Z"), utc("2027-01-01T00:00:00Z"));
        for pair in instants.windows(2) {
            assert_eq!(cron.latest(&zone, pair[0]), Some(pair[0]), "{name} {at}: at the instant itself");
            let before_next = pair[1].minus(Duration::from_millis(1));
            assert_eq!(
                cron.latest(&zone, before_next),
                Some(pair[0]),
                "{name} {at}: just before {}",
                pair[1]
            );
            assert!(cron.is_due_at(&zone, pair[0]));
            assert!(!cron.is_due_at(&zone, pair[0].plus(Duration::from_secs(60 * 7))));
        }
    }
}

#[test]
fn days_in_a_year_are_all_met() {
    for name in ["Europe/Berlin", "America/Havana", "Africa/Cairo", "Asia/Beirut", "Pacific/Auckland", "UTC"]
    {
        let zone = zone(name);
        let (start, end) = days(&zone, (2026, 1, 1), 365);
        for at in ["0 0 * * *", "30 2 * * *", "0 3 * * *", "59 23 * * *"] {
            let instants = all(&cron(at), &zone, start, end);
            let dates: BTreeSet<_> = instants.iter().map(|m| zoned(*m, &zone).unwrap().date()).collect();
            assert_eq!((instants.len(), dates.len()), (365, 365), "{name} {at}");
        }
    }
}

#[test]
fn only_five_fields_that_are_ever_due_are_taken() {
    for good in ["0 2 * * *", "*/5 * * * *", "0 0 29 2 *", "0 22 * * MON-FRI", "0 1 L * *", "@daily"] {
        assert!(good.parse::<Cron>().is_ok(), "{good}");
    }
    for bad in ["", "0 2 * *", "0 0 2 * * *", "60 * * * *", "0 0 30 2 *", "often", &"*".repeat(200)] {
        assert!(bad.parse::<Cron>().is_err(), "{bad}");
    }
}

#[test]
fn zones_are_site_or_named_and_unknown_hosts_are_in_utc() {
    let parse = |text: &str| Zone::try_from(text.to_owned());
    let site = parse("site").unwrap();
    assert_eq!(site.of_host("Europe/Berlin"), zone("Europe/Berlin"));
    for unknown in ["", "Europe/Atlantis", "../../etc/passwd", &"x".repeat(500)] {
        assert_eq!(site.of_host(unknown), TimeZone::UTC);
    }
    let named = parse("Europe/Berlin").unwrap();
    assert_eq!(named.of_host("Asia/Tokyo"), zone("Europe/Berlin"));
    assert_eq!(named.to_string(), "Europe/Berlin");
    assert!(parse("Mars/Olympus").is_err());
}

#[test]
fn the_spread_is_stable_and_even() {
    let random = Random::from_seed(1);
    let (policy, spread) = (PolicyId::generate(&random), Duration::from_secs(7_200));
    let sources: Vec<_> = (0..5_000).map(|_| SeriesId::generate(&random)).collect();
    let mut buckets = [0u32; 20];
    for source in &sources {
        let offset = offset(policy, *source, spread);
        assert!(offset < spread);
        assert_eq!(offset, super::offset(policy, *source, spread));
        buckets[(offset.as_millis() * 20 / spread.as_millis()) as usize] += 1;
    }
    assert!(buckets.iter().all(|count| (190..310).contains(count)), "250 expected in each of {buckets:?}");
    // Other policies, other order: nobody is first every night.
    let other = PolicyId::generate(&random);
    let same = sources.iter().filter(|s| {
        let apart = offset(policy, **s, spread).abs_diff(offset(other, **s, spread));
        apart < spread / 20
    });
    assert!(same.count() < 750);
    assert_eq!(offset(policy, sources[0], Duration::ZERO), Duration::ZERO);
}

#[test]
fn an_absence_collapses_into_its_newest_instant() {
    let (cron, zone) = (cron("0 * * * *"), TimeZone::UTC);
    let mut calendar = Calendar::default();
    let next = utc("2026-05-01T00:00:00Z");
    assert_eq!(calendar.due(&cron, &zone, next, utc("2026-04-30T23:59:59.999Z")), None);
    let due = calendar.due(&cron, &zone, next, utc("2026-05-03T10:20:00Z")).unwrap();
    assert_eq!((due.instant, due.collapsed), (utc("2026-05-03T10:00:00Z"), 58));
    assert_eq!(due.next, utc("2026-05-03T11:00:00Z"));
    // What is remembered is not believed once more has come due.
    let later = calendar.due(&cron, &zone, next, utc("2026-05-03T11:00:00Z")).unwrap();
    assert_eq!((later.instant, later.collapsed), (utc("2026-05-03T11:00:00Z"), 59));
    let ages = calendar.due(&cron, &zone, utc("2020-01-01T00:00:00Z"), utc("2026-05-03T10:20:00Z")).unwrap();
    assert_eq!(
        (ages.instant, ages.collapsed),
        (utc("2026-05-03T10:00:00Z"), MAX_COLLAPSED),
        "counting is bounded"
    );
}

/// A host of the simulation.
struct Host {
    source: SeriesId,
    zone: TimeZone,
    next: UnixMillis,
    planned: u32,
    last: UnixMillis,
}

/// A year, minute by minute, of 500 hosts in zones with every kind of clock change.
fn simulate(cron: &Cron, spread: Duration) -> BTreeMap<String, Vec<u32>> {
    let zones = [
        "Europe/Berlin",
        "America/Havana",
        "Africa/Cairo",
        "Asia/Beirut",
        "Asia/Kolkata",
        "Australia/Lord_Howe",
        "UTC",
    ];
    let random = Random::from_seed(7);
    let policy = PolicyId::generate(&random);
    let (start, end) = (utc("2026-01-01T00:00:00Z"), utc("2027-01-01T00:00:00Z"));
    let mut hosts: Vec<Host> = (0..500)
        .map(|n| {
            let zone = zone(zones[n % zones.len()]);
            let next = cron.after(&zone, start.minus(Duration::from_secs(1))).unwrap();
            Host { source: SeriesId::generate(&random), zone, next, planned: 0, last: UnixMillis(0) }
        })
        .collect();
    let offsets: Vec<_> = hosts.iter().map(|host| offset(policy, host.source, spread)).collect();
    let (mut calendar, mut now) = (Calendar::default(), start);
    let circumstances = Circumstances { trusted: true, ..Circumstances::default() };
    let mut by_minute = BTreeMap::<i64, u32>::new();
    while now < end {
        for (host, offset) in hosts.iter_mut().zip(&offsets).filter(|(host, _)| host.next <= now) {
            let due = calendar.due(cron, &host.zone, host.next, now).unwrap();
            assert_eq!(
                (due.instant, due.collapsed),
                (host.next, 0),
                "nothing is late in a leader that looks every minute"
            );
            match decide(&due, *offset, None, now, &circumstances) {
                Decision::Plan(planned) => {
                    assert!(
                        planned.start >= planned.instant && planned.start < planned.instant.plus(spread),
                        "never early"
                    );
                    assert!(planned.instant > host.last, "each once");
                    host.last = planned.instant;
                    host.planned += 1;
                    *by_minute.entry(planned.start.0.rem_euclid(86_400_000) / 60_000).or_default() += 1;
                }
                other => panic!("{other:?}"),
            }
            host.next = due.next;
        }
        // Nothing happens before the next minute in which something is due.
        let next = hosts.iter().map(|host| host.next).min().unwrap();
        now = now.plus(Duration::from_secs(60)).max(UnixMillis(next.0 / 60_000 * 60_000));
    }
    // Starts of an hourly schedule that are spread over the whole hour are one even stream.
    if spread == Duration::from_secs(3_600) {
        let (least, most) = (by_minute.values().min().unwrap(), by_minute.values().max().unwrap());
        assert!(*most < *least * 4, "between {least} and {most} starts a minute");
    }
    let mut counts = BTreeMap::<String, Vec<u32>>::new();
    for host in &hosts {
        counts.entry(host.zone.iana_name().unwrap_or("UTC").to_owned()).or_default().push(host.planned);
    }
    counts
}

#[test]
fn a_year_of_hourly_schedules_for_500_hosts() {
    for (zone, counts) in simulate(&cron("0 * * * *"), Duration::from_secs(3_600)) {
        // Lord Howe changes by half an hour: twice an hour and a half lie between two full hours of its clocks.
        let expected = if zone == "Australia/Lord_Howe" { 365 * 24 - 1 } else { 365 * 24 };
        assert!(counts.iter().all(|count| *count == expected), "{zone}: {counts:?}");
    }
}

#[test]
fn a_year_of_nights_for_500_hosts() {
    for (zone, counts) in simulate(&cron("0 0 * * *"), Duration::from_secs(7_200)) {
        assert!(counts.iter().all(|count| *count == 365), "{zone}: {counts:?}");
    }
}
