//! What stays and what goes, on histories that are easy to see, and on random ones.

use proptest::prelude::*;

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

fn id(number: u64) -> BackupId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    BackupId::from_bytes(bytes)
}

/// The backup number `n`, made `hours` before now.
fn backup(n: u64, hours: u32) -> Candidate {
    Candidate {
        id: id(n),
        sequence: n,
        received: NOW.minus(HOUR * hours),
        complete: true,
        whole: true,
        verified: None,
        held: false,
        in_use: false,
        undeleted: None,
    }
}

/// `days` nightly backups, the newest an hour ago; number 1 is the oldest.
fn nightly(days: u32) -> Vec<Candidate> {
    (1..=days).map(|n| backup(u64::from(n), 1 + 24 * (days - n))).collect()
}

fn kept(backups: &[Candidate], rules: &RetentionRules) -> Vec<u64> {
    let verdicts = plan(backups, Some(rules), NOW);
    assert_eq!(verdicts.len(), backups.len());
    let stays = |b: &&Candidate| verdicts.iter().any(|v| v.backup == b.id && v.stays());
    let mut kept: Vec<u64> = backups.iter().filter(stays).map(|b| b.sequence).collect();
    kept.sort_unstable();
    kept
}

fn why(backups: &[Candidate], rules: &RetentionRules, number: u64) -> String {
    let verdicts = plan(backups, Some(rules), NOW);
    verdicts.iter().find(|v| v.backup == id(number)).unwrap().why()
}

#[test]
fn without_rules_everything_stays() {
    let all = nightly(400);
    assert!(plan(&all, None, NOW).iter().all(Verdict::stays));
    assert!(plan(&all, Some(&RetentionRules::default()), NOW).iter().all(Verdict::stays));
    assert_eq!(plan(&all, None, NOW)[0].why(), "no policy says how long it stays, last good backup");
}

#[test]
fn a_series_that_is_over_keeps_what_somebody_wants() {
    let mut all = nightly(10);
    all[1].held = true;
    all[3].in_use = true;
    all[5].undeleted = Some(NOW.minus(HOUR));
    all[7].verified = Some(NOW.minus(HOUR));
    let until = NOW.minus(HOUR);
    let verdicts = Term::Over(until).plan(&all, NOW);
    assert_eq!(verdicts.len(), all.len());
    let of = |number: u64| verdicts.iter().find(|v| v.backup == id(number)).unwrap();
    assert_eq!(of(2).fate, Fate::Keep(vec![Keep::Held]));
    assert_eq!(of(4).fate, Fate::Keep(vec![Keep::InUse]));
    assert!(matches!(&of(6).fate, Fate::Keep(why) if matches!(why[..], [Keep::Undeleted(_)])), "{:?}", of(6));
    for number in [1, 3, 5, 7, 8, 9, 10] {
        assert_eq!(of(number).fate, Fate::Expire(Expire::Retired(until)), "{number}");
    }
    assert_eq!(Term::Over(until).indispensable(&all), None);
    assert_eq!(Term::Rules(None).indispensable(&all), Some(id(10)));
    assert_eq!(Term::Rules(None).plan(&all, NOW), plan(&all, None, NOW));
    let rules = RetentionRules { last: 3, ..Default::default() };
    assert_eq!(Term::Rules(Some(rules)).plan(&all, NOW), plan(&all, Some(&rules), NOW));
    assert!(
        Term::Rules(None).keeps_all()
            && !Term::Rules(Some(rules)).keeps_all()
            && !Term::Over(until).keeps_all()
    );
}

#[test]
fn each_rule_keeps_its_slots() {
    let all = nightly(60);
    assert_eq!(kept(&all, &RetentionRules { last: 3, ..Default::default() }), [58, 59, 60]);
    assert_eq!(kept(&all, &RetentionRules { daily: 2, ..Default::default() }), [59, 60]);
    // Now is Friday, 2027-01-15: the newest of an earlier week is its Sunday's.
    let weekly = kept(&all, &RetentionRules { weekly: 3, ..Default::default() });
    assert_eq!(weekly, [48, 55, 60]);
    assert_eq!(kept(&all, &RetentionRules { monthly: 3, ..Default::default() }), [14, 45, 60]);
    assert_eq!(kept(&all, &RetentionRules { yearly: 5, ..Default::default() }), [45, 60]);
    let rules = RetentionRules { daily: 2, weekly: 2, ..Default::default() };
    assert_eq!(kept(&all, &rules), [55, 59, 60]);
    assert_eq!(why(&all, &rules, 55), "week 2027-W01");
    assert_eq!(why(&all, &rules, 58), format!("{} stands for its week", id(60)));
    assert_eq!(why(&all, &rules, 40), "older than what the rules keep");
}

#[test]
fn hours_with_many_backups_keep_the_newest() {
    let quarter = |n: u64| Candidate {
        received: NOW.minus(Duration::from_secs(900) * (40 - n as u32)),
        ..backup(n, 0)
    };
    let all: Vec<Candidate> = (1..=40).map(quarter).collect();
    assert_eq!(kept(&all, &RetentionRules { hourly: 3, ..Default::default() }).len(), 3);
    assert_eq!(kept(&all, &RetentionRules { hourly: 3, ..Default::default() })[2], 40);
}

#[test]
fn partial_and_damaged_ones_displace_nothing() {
    let mut all = nightly(10);
    for backup in &mut all[5..] {
        backup.complete = false;
    }
    let rules = RetentionRules { daily: 3, ..Default::default() };
    // Three days with a good one, and beside them the newest three days, which have none.
    assert_eq!(kept(&all, &rules), [3, 4, 5, 8, 9, 10]);
    assert!(why(&all, &rules, 5).contains("last good"));
    all[4].whole = false;
    assert_eq!(kept(&all, &rules), [2, 3, 4, 8, 9, 10]);
    // Of one day, the whole one stands for it though the partial one is newer.
    let mut day = vec![backup(1, 3), backup(2, 2)];
    day[1].complete = false;
    assert_eq!(kept(&day, &RetentionRules { daily: 1, ..Default::default() }), [1]);
}

#[test]
fn a_flood_costs_no_day_its_backup() {
    let mut all = nightly(7);
    let rules = RetentionRules { last: 2, daily: 7, minimum: 5, ..Default::default() };
    for n in 0..500 {
        all.push(Candidate { received: NOW.minus(Duration::from_secs(500 - n)), ..backup(100 + n, 0) });
    }
    let stayed = kept(&all, &rules);
    assert!([1, 2, 3, 4, 5, 6].iter().all(|old| stayed.contains(old)), "{stayed:?}");
    // With `last` alone, `minimum` still keeps one of each of so many days.
    let rules = RetentionRules { last: 2, minimum: 5, ..Default::default() };
    assert_eq!(kept(&all, &rules), [3, 4, 5, 6, 598, 599]);
}

#[test]
fn the_minimum_is_kept_of_one_day_too() {
    let all: Vec<Candidate> = (1..=6)
        .map(|n| Candidate { received: NOW.minus(Duration::from_secs(60 - n)), ..backup(n, 0) })
        .collect();
    assert_eq!(kept(&all, &RetentionRules { last: 1, minimum: 4, ..Default::default() }), [3, 4, 5, 6]);
}

#[test]
fn holds_restores_and_proof_outlive_rules() {
    let mut all = nightly(20);
    all[0].held = true;
    all[1].in_use = true;
    all[2].verified = Some(NOW);
    all[3].undeleted = Some(NOW.minus(HOUR));
    all[4].undeleted = Some(NOW.minus(UNDELETED_STAYS));
    let rules = RetentionRules { last: 1, ..Default::default() };
    assert_eq!(kept(&all, &rules), [1, 2, 3, 4, 20]);
    assert_eq!(why(&all, &rules, 1), "held");
    assert_eq!(why(&all, &rules, 2), "being restored");
    assert_eq!(why(&all, &rules, 3), "last verified backup");
    all[10].verified = Some(NOW.minus(HOUR));
    assert_eq!(kept(&all, &rules), [1, 2, 4, 11, 20], "the newest verified one, not the one verified last");
}

#[test]
fn the_last_good_one_is_what_there_is() {
    let mut all = nightly(3);
    assert_eq!(last_good(&all), Some(id(3)));
    all[2].complete = false;
    assert_eq!(last_good(&all), Some(id(2)));
    all[1].whole = false;
    all[0].whole = false;
    assert_eq!(last_good(&all), Some(id(3)), "partial, but whole");
    all[2].whole = false;
    assert_eq!(last_good(&all), Some(id(2)), "complete once: better than partial and damaged");
    assert_eq!(last_good(&[]), None);
}

fn any_backup() -> impl Strategy<Value = Candidate> {
    let flags =
        (any::<bool>(), prop::bool::weighted(0.9), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (0u32..20_000, flags, prop::option::weighted(0.1, 0u32..500)).prop_map(|(hours, flags, verified)| {
        Candidate {
            complete: flags.0,
            whole: flags.1,
            held: flags.2,
            in_use: flags.3,
            verified: verified.map(|hours| NOW.minus(HOUR * hours)),
            ..backup(0, hours)
        }
    })
}

fn any_rules() -> impl Strategy<Value = RetentionRules> {
    (0u32..5, 0u32..30, 0u32..10, 0u32..6, 0u32..6, 0u32..4, 0u32..6).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, minimum)| RetentionRules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            minimum,
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_history(mut all in prop::collection::vec(any_backup(), 1..60), rules in any_rules()) {
        for (n, backup) in all.iter_mut().enumerate() {
            backup.sequence = n as u64 + 1;
            backup.id = id(n as u64 + 1);
        }
        let verdicts = plan(&all, Some(&rules), NOW);
        let stays = |b: &Candidate| verdicts.iter().any(|v| v.backup == b.id && v.stays());
        prop_assert_eq!(verdicts.len(), all.len());
        prop_assert!(all.iter().filter(|b| b.held || b.in_use).all(stays));
        prop_assert!(all.iter().filter(|b| Some(b.id) == last_good(&all)).all(stays));
        let good = all.iter().filter(|b| b.is_good()).count();
        let good_kept: Vec<_> = all.iter().filter(|b| b.is_good() && stays(b)).collect();
        prop_assert!(good_kept.len() >= good.min(rules.minimum as usize));

        // What goes does not come to matter again: a second look at what stayed changes nothing.
        let left: Vec<Candidate> = all.iter().filter(|b| stays(b)).copied().collect();
        prop_assert!(plan(&left, Some(&rules), NOW).iter().all(Verdict::stays));

        // Longer rules keep no less.
        let longer = RetentionRules { daily: rules.daily + 1, last: rules.last + 1, ..rules };
        if !rules.is_empty() {
            let more = plan(&all, Some(&longer), NOW);
            // The minimum fills up with whatever is left, which more slots may have taken over.
            let by_minimum = |v: &Verdict| v.fate == Fate::Keep(vec![Keep::Minimum]);
            let kept_still = |v: &Verdict| more.iter().any(|m| m.backup == v.backup && m.stays());
            let no_less = verdicts.iter().filter(|v| v.stays()).all(|v| by_minimum(v) || kept_still(v));
            prop_assert!(no_less);
        }
    }
}
