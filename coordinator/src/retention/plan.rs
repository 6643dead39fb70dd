//! Which backups of a series stay, and why: from what is known about them to a verdict on each. No I/O.
//!
//! A host that was taken over, or whose clock is wrong, must not be able to push good backups out by making many others:
//!
//! - slots are by when the coordinator received a backup;
//! - a slot keeps one backup, and a backup that is not *good* (complete, and nothing of it missing) never takes the place of
//!   one that is: the newest N slots that have a good backup keep it, whatever else came later;
//! - the last good backup stays, whatever the rules say, and so do the newest one that was verified, what is held, and what
//!   is being restored.
//!
//! Where no rules are known, everything stays. The series of a retired host is over after the day that was named when it was
//! retired: then nothing stays but what somebody holds, reads or has just taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::id::BackupId;

use super::rules::RetentionRules;

/// What was undeleted stays this long before rules apply to it again: time to hold it.
pub const UNDELETED_STAYS: Duration = Duration::from_secs(7 * 86_400);

/// A committed backup, as far as retention is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: BackupId,
    /// Its place in the series.
    pub sequence: u64,
    /// When the coordinator saw its manifest: its own clock, not the host's.
    pub received: UnixMillis,
    /// It lacks nothing that it should have had.
    pub complete: bool,
    /// Nothing that it needs is missing or damaged.
    pub whole: bool,
    /// When it was last verified with good result.
    pub verified: Option<UnixMillis>,
    /// Somebody holds it.
    pub held: bool,
    /// A restore or a replication reads it.
    pub in_use: bool,
    /// When it was undeleted, if it ever was.
    pub undeleted: Option<UnixMillis>,
}

impl Candidate {
    /// Whether it is all that a backup should be.
    pub const fn is_good(&self) -> bool {
        self.complete && self.whole
    }
}

/// Kinds of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Unit {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        })
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// Nobody has said how long anything stays.
    NoRules,
    /// Somebody holds it.
    Held,
    /// Somebody is reading it.
    InUse,
    /// It was undeleted, and stays until then.
    Undeleted(UnixMillis),
    /// There is no newer good one.
    LastGood,
    /// There is no newer one that was verified.
    LastVerified,
    /// It is among the newest.
    Last,
    /// It stands for its hour, day, …
    Slot(Unit, String),
    /// Without it there would be too few.
    Minimum,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => f.write_str("no policy says how long it stays"),
            Self::Held => f.write_str("held"),
            Self::InUse => f.write_str("being restored"),
            Self::Undeleted(until) => write!(f, "undeleted, stays until {until}"),
            Self::LastGood => f.write_str("last good backup"),
            Self::LastVerified => f.write_str("last verified backup"),
            Self::Last => f.write_str("among the last"),
            Self::Slot(unit, label) => write!(f, "{unit} {label}"),
            Self::Minimum => f.write_str("minimum"),
        }
    }
}

/// Why a backup goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expire {
    /// Another one stands for the same hour, day, …
    Replaced(Unit, BackupId),
    /// It is older than all slots that the rules keep.
    Outlived,
    /// Its host is retired, and it was to stay until then.
    Retired(UnixMillis),
}

impl fmt::Display for Expire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced(unit, by) => write!(f, "{by} stands for its {unit}"),
            Self::Outlived => f.write_str("older than what the rules keep"),
            Self::Retired(until) => {
                write!(f, "its host is retired, and its backups were to stay until {until}")
            }
        }
    }
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays, for these reasons.
    Keep(Vec<Keep>),
    /// It goes.
    Expire(Expire),
}

/// What becomes of which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub backup: BackupId,
    /// What becomes of it.
    pub fate: Fate,
}

impl Verdict {
    /// Whether it stays.
    pub const fn stays(&self) -> bool {
        matches!(self.fate, Fate::Keep(_))
    }

    /// The reasons, for people.
    pub fn why(&self) -> String {
        match &self.fate {
            Fate::Keep(why) => why.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            Fate::Expire(why) => why.to_string(),
        }
    }
}

/// The backup that a series must never lose: the newest good one; without any, the newest that is whole; without any, the
/// newest that was complete once; and else the newest.
pub fn last_good(backups: &[Candidate]) -> Option<BackupId> {
    backups.iter().max_by_key(|b| (b.is_good(), b.whole, b.complete, b.received, b.sequence)).map(|b| b.id)
}

fn last_verified(backups: &[Candidate]) -> Option<BackupId> {
    let verified = backups.iter().filter(|b| b.whole && b.verified.is_some());
    verified.max_by_key(|b| (b.complete, b.received, b.sequence)).map(|b| b.id)
}

/// How long the backups of a series stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// As these rules say; `None` where nobody has said.
    Rules(Option<RetentionRules>),
    /// No longer: the host is retired, and this day is past.
    Over(UnixMillis),
}

impl Term {
    /// What becomes of each of the committed backups of one series, newest first.
    pub fn plan(&self, backups: &[Candidate], now: UnixMillis) -> Vec<Verdict> {
        match self {
            Self::Rules(rules) => plan(backups, rules.as_ref(), now),
            Self::Over(until) => plan_over(backups, *until, now),
        }
    }

    /// The backup that must not be deleted, whatever else is.
    pub fn indispensable(&self, backups: &[Candidate]) -> Option<BackupId> {
        match self {
            Self::Rules(_) => last_good(backups),
            Self::Over(_) => None,
        }
    }

    /// Whether nothing expires by it.
    pub fn keeps_all(&self) -> bool {
        matches!(self, Self::Rules(rules) if rules.is_none_or(|rules| rules.is_empty()))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(None) => Ok(()),
            Self::Rules(Some(rules)) => rules.fmt(f),
            Self::Over(until) => write!(f, "nothing: its host is retired, until {until}"),
        }
    }
}

/// The series is over: nothing stays but what somebody holds, reads or has just taken back.
fn plan_over(backups: &[Candidate], until: UnixMillis, now: UnixMillis) -> Vec<Verdict> {
    let mut verdicts = plan(backups, Some(&RetentionRules { last: 1, ..RetentionRules::default() }), now);
    for verdict in &mut verdicts {
        let wanted = |why: &Keep| matches!(why, Keep::Held | Keep::InUse | Keep::Undeleted(_));
        verdict.fate = match std::mem::replace(&mut verdict.fate, Fate::Expire(Expire::Retired(until))) {
            Fate::Keep(why) if why.iter().any(wanted) => Fate::Keep(why.into_iter().filter(wanted).collect()),
            _ => Fate::Expire(Expire::Retired(until)),
        };
    }
    verdicts
}

/// What becomes of each of the committed backups of one series under these rules, newest first.
pub fn plan(backups: &[Candidate], rules: Option<&RetentionRules>, now: UnixMillis) -> Vec<Verdict> {
    let mut newest_first: Vec<&Candidate> = backups.iter().collect();
    newest_first.sort_by_key(|b| std::cmp::Reverse((b.received, b.sequence)));
    let mut plan = Plan { backups: newest_first, why: BTreeMap::new(), replaced: BTreeMap::new() };
    match rules.filter(|rules| !rules.is_empty()) {
        None => plan.keep_all(),
        Some(rules) => {
            plan.keep_by_rules(rules);
            plan.keep_minimum(rules.minimum as usize);
        }
    }
    plan.keep_always(last_good(backups), last_verified(backups), now);
    plan.verdicts()
}

struct Plan<'a> {
    /// Newest first.
    backups: Vec<&'a Candidate>,
    why: BTreeMap<BackupId, Vec<Keep>>,
    /// Which other backup stands for its slot.
    replaced: BTreeMap<BackupId, (Unit, BackupId)>,
}

impl Plan<'_> {
    fn keep(&mut self, id: BackupId, why: Keep) {
        self.why.entry(id).or_default().push(why);
    }

    fn keep_all(&mut self) {
        for id in self.backups.iter().map(|b| b.id).collect::<Vec<_>>() {
            self.keep(id, Keep::NoRules);
        }
    }

    fn keep_by_rules(&mut self, rules: &RetentionRules) {
        let each: Vec<Slot> =
            self.backups.iter().map(|b| (b.sequence.to_string(), *b)).map(Slot::new).collect();
        for id in chosen(&each, rules.last as usize) {
            self.keep(id, Keep::Last);
        }
        for (unit, count) in [
            (Unit::Hour, rules.hourly),
            (Unit::Day, rules.daily),
            (Unit::Week, rules.weekly),
            (Unit::Month, rules.monthly),
            (Unit::Year, rules.yearly),
        ] {
            let slots = self.slots(unit);
            for id in chosen(&slots, count as usize) {
                let label = slots.iter().find(|slot| slot.best.id == id).map(|slot| slot.label.clone());
                self.keep(id, Keep::Slot(unit, label.unwrap_or_default()));
            }
            if count > 0 {
                self.note_replaced(unit, &slots);
            }
        }
    }

    /// The slots that have a backup, newest first, each with the one that stands for it.
    fn slots(&self, unit: Unit) -> Vec<Slot> {
        let mut slots: Vec<Slot> = Vec::new();
        for backup in &self.backups {
            let label = label(unit, backup.received);
            match slots.iter_mut().rev().find(|slot| slot.label == label) {
                Some(slot) => slot.offer(backup),
                None => slots.push(Slot::new((label, backup))),
            }
        }
        slots
    }

    fn note_replaced(&mut self, unit: Unit, slots: &[Slot]) {
        for backup in &self.backups {
            let label = label(unit, backup.received);
            let by = slots.iter().find(|slot| slot.label == label).map(|slot| slot.best.id);
            if let Some(by) = by.filter(|by| *by != backup.id && self.why.contains_key(by)) {
                self.replaced.entry(backup.id).or_insert((unit, by));
            }
        }
    }

    /// Good backups until there are `minimum`, those of further days first: a flood of one day does not fill it.
    fn keep_minimum(&mut self, minimum: usize) {
        let good: Vec<(BackupId, i64)> =
            self.backups.iter().filter(|b| b.is_good()).map(|b| (b.id, day(b.received))).collect();
        let kept = |plan: &Self| -> Vec<i64> {
            good.iter().filter(|(id, _)| plan.why.contains_key(id)).map(|(_, day)| *day).collect()
        };
        let mut days: BTreeSet<i64> = kept(self).into_iter().collect();
        for (id, day) in &good {
            if days.len() < minimum && days.insert(*day) {
                self.keep(*id, Keep::Minimum);
            }
        }
        let mut count = kept(self).len();
        for (id, _) in &good {
            if count < minimum && !self.why.contains_key(id) {
                self.keep(*id, Keep::Minimum);
                count += 1;
            }
        }
    }

    fn keep_always(&mut self, last_good: Option<BackupId>, last_verified: Option<BackupId>, now: UnixMillis) {
        for backup in self.backups.clone() {
            let until = backup.undeleted.map(|at| at.plus(UNDELETED_STAYS)).filter(|until| *until > now);
            let always = [
                (backup.held, Keep::Held),
                (backup.in_use, Keep::InUse),
                (until.is_some(), Keep::Undeleted(until.unwrap_or_default())),
                (last_good == Some(backup.id), Keep::LastGood),
                (last_verified == Some(backup.id), Keep::LastVerified),
            ];
            for (_, why) in always.into_iter().filter(|(applies, _)| *applies) {
                self.keep(backup.id, why);
            }
        }
    }

    fn verdicts(mut self) -> Vec<Verdict> {
        let ids: Vec<BackupId> = self.backups.iter().map(|b| b.id).collect();
        let verdict = |id: BackupId| {
            let fate = match (self.why.remove(&id), self.replaced.get(&id)) {
                (Some(why), _) => Fate::Keep(why),
                (None, Some((unit, by))) => Fate::Expire(Expire::Replaced(*unit, *by)),
                (None, None) => Fate::Expire(Expire::Outlived),
            };
            Verdict { backup: id, fate }
        };
        ids.into_iter().map(verdict).collect()
    }
}

/// An hour, a day, … with the backup that stands for it.
struct Slot {
    label: String,
    best: Candidate,
}

impl Slot {
    fn new((label, backup): (String, &Candidate)) -> Self {
        Self { label, best: *backup }
    }

    /// An older backup of the slot takes its place only by being good where the newer one is not.
    fn offer(&mut self, older: &Candidate) {
        let rank = |b: &Candidate| (b.is_good(), b.whole);
        if rank(older) > rank(&self.best) {
            self.best = *older;
        }
    }
}

/// The backups that the newest `count` slots keep: of the slots that have a good one, and beside them of those newest slots
/// that have none.
fn chosen(slots: &[Slot], count: usize) -> Vec<BackupId> {
    let good = slots.iter().filter(|slot| slot.best.is_good()).take(count);
    let others = slots.iter().take(count).filter(|slot| !slot.best.is_good());
    good.chain(others).map(|slot| slot.best.id).collect()
}

const DAY_MS: i64 = 86_400_000;

fn day(at: UnixMillis) -> i64 {
    at.0.div_euclid(DAY_MS)
}

/// The slot of a moment, in UTC, as people write it.
fn label(unit: Unit, at: UnixMillis) -> String {
    let moment =
        jiff::Timestamp::from_millisecond(at.0).unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC);
    match unit {
        Unit::Hour => moment.strftime("%Y-%m-%dT%H").to_string(),
        Unit::Day => moment.strftime("%Y-%m-%d").to_string(),
        Unit::Week => {
            let week = moment.date().iso_week_date();
            format!("{}-W{:02}", week.year(), week.week())
        }
        Unit::Month => moment.strftime("%Y-%m").to_string(),
        Unit::Year => moment.strftime("%Y").to_string(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
