//! Times and references, one by one.

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn ago(time: Duration) -> UnixMillis {
    NOW.minus(time)
}

fn pack(ordinal: u32, state: PackState) -> Pack {
    Pack {
        ordinal,
        state,
        raw_len: 1_000,
        signed: ago(DAY * 100),
        stored: Some(ago(DAY * 100)),
        referred: true,
        doomed: None,
        locked_until: None,
    }
}

fn doomed(ordinal: u32, since: Duration) -> Pack {
    Pack { doomed: Some(ago(since)), ..pack(ordinal, PackState::Doomed) }
}

fn backup(number: u8, state: BackupState, refs: &[u32]) -> Backup {
    Backup {
        id: BackupId::from_bytes([number; 16]),
        state,
        refs: refs.iter().copied().collect(),
        signed_until: ago(DAY * 50),
        expired: None,
        in_use: false,
        locked_until: None,
    }
}

fn set(ordinals: &[u32]) -> RoaringBitmap {
    ordinals.iter().copied().collect()
}

fn planned(packs: Vec<Pack>, backups: Vec<Backup>) -> CollectPlan {
    plan(&Series { packs, backups, ..Series::default() }, NOW)
}

#[test]
fn what_nothing_refers_to_is_doomed() {
    let packs = vec![
        pack(0, PackState::Live),
        pack(1, PackState::Live),
        pack(2, PackState::Retiring),
        pack(3, PackState::Retiring),
        pack(4, PackState::Live),
        pack(5, PackState::Live),
        pack(6, PackState::Live),
        doomed(7, HOUR),
    ];
    let late = Backup { signed_until: ago(HOUR * 24), ..backup(4, BackupState::Abandoned, &[5]) };
    let too_late = Backup { signed_until: ago(HOUR * 26), ..backup(5, BackupState::Abandoned, &[6]) };
    let backups = vec![
        backup(1, BackupState::Committed, &[0, 2]),
        backup(2, BackupState::Committing, &[4, 7]),
        backup(3, BackupState::Expired, &[1, 3]),
        late,
        too_late,
    ];
    let plan = planned(packs, backups);
    assert_eq!(plan.doom, set(&[1, 3, 6]), "an expired backup does not keep them from being doomed");
    assert_eq!(plan.revive, set(&[7]), "referred to after all");
    assert!(plan.delete_packs.is_empty() && plan.delete_backups.is_empty());
}

#[test]
fn what_was_never_referred_to_waits_a_fortnight() {
    let stored = |ordinal, age| Pack {
        stored: Some(ago(age)),
        signed: ago(age),
        referred: false,
        ..pack(ordinal, PackState::Stored)
    };
    let signed = |ordinal, age| Pack {
        stored: None,
        signed: ago(age),
        referred: false,
        ..pack(ordinal, PackState::Signed)
    };
    let packs = vec![stored(0, DAY * 13), stored(1, DAY * 14), signed(2, DAY * 13), signed(3, DAY * 14)];
    assert_eq!(planned(packs, vec![]).doom, set(&[1, 3]));
    // Doomed then, it goes at once: the fortnight was its time.
    let idle = Pack { state: PackState::Doomed, doomed: Some(NOW), ..stored(4, DAY * 14) };
    assert_eq!(planned(vec![idle], vec![]).delete_packs, set(&[4]));
}

#[test]
fn the_doomed_go_when_every_time_is_over() {
    let due = |pack: Pack| !planned(vec![pack], vec![]).delete_packs.is_empty();
    assert!(due(doomed(0, GRACE)));
    assert!(!due(doomed(0, GRACE - Duration::from_millis(1))), "72 hours after the last reference");
    assert!(!due(Pack { signed: ago(LATE - HOUR), ..doomed(0, GRACE) }), "25 hours after the last signature");
    assert!(due(Pack { signed: ago(LATE), ..doomed(0, GRACE) }));
    assert!(!due(Pack { locked_until: Some(NOW.plus(HOUR)), ..doomed(0, GRACE) }), "locked");
    assert!(due(Pack { locked_until: Some(NOW), ..doomed(0, GRACE) }));
    assert!(due(pack(0, PackState::Deleting)), "what was begun is finished");
    assert!(!due(pack(0, PackState::Live)));
    for lost in [PackState::Missing, PackState::Damaged] {
        assert_eq!(planned(vec![pack(0, lost)], vec![]).forsake, set(&[0]));
        assert!(due(Pack { state: lost, ..doomed(0, GRACE) }));
    }
}

#[test]
fn a_run_that_may_name_it_keeps_it() {
    let with_run = |began: Duration| {
        let packs = vec![doomed(0, GRACE)];
        plan(&Series { packs, run_since: Some(ago(began)), ..Series::default() }, NOW).delete_packs
    };
    assert!(with_run(GRACE + HOUR).is_empty(), "it began when the pack was still offered");
    assert_eq!(with_run(GRACE - HOUR), set(&[0]));
}

#[test]
fn manifests_go_before_packs() {
    let pinned_by = |state| planned(vec![doomed(0, GRACE)], vec![backup(1, state, &[0])]);
    for state in [BackupState::Expired, BackupState::Deleting] {
        assert!(pinned_by(state).delete_packs.is_empty(), "{state}");
    }
    assert_eq!(pinned_by(BackupState::Deleting).delete_backups, [BackupId::from_bytes([1; 16])]);
    assert!(pinned_by(BackupState::Expired).delete_backups.is_empty());
    assert_eq!(pinned_by(BackupState::Deleted).delete_packs, set(&[0]));
}

#[test]
fn an_expired_backup_goes_after_its_grace() {
    let expired = Backup { expired: Some(ago(GRACE)), ..backup(1, BackupState::Expired, &[]) };
    let due = |backup: &Backup| !planned(vec![], vec![backup.clone()]).delete_backups.is_empty();
    assert!(due(&expired));
    assert!(!due(&Backup { expired: Some(ago(GRACE - HOUR)), ..expired.clone() }));
    assert!(!due(&Backup { in_use: true, ..expired.clone() }), "a restore reads it");
    assert!(!due(&Backup { locked_until: Some(NOW.plus(HOUR)), ..expired.clone() }));
    assert!(!due(&Backup { state: BackupState::Committed, ..expired }));
}

fn retired(packs: Vec<Pack>, used: &[(u32, u64)], raw_bytes: u64) -> RoaringBitmap {
    let refs: Vec<u32> = packs.iter().map(|pack| pack.ordinal).collect();
    let newest = Newest { committed: ago(DAY), raw_bytes, used: used.iter().copied().collect() };
    let backups = vec![backup(1, BackupState::Committed, &refs)];
    plan(&Series { packs, backups, newest: Some(newest), run_since: None }, NOW).retire
}

#[test]
fn packs_under_a_quarter_retire_the_worst_first() {
    let live = |ordinal| pack(ordinal, PackState::Live);
    let all = || vec![live(0), live(1), live(2), live(3)];
    let used = [(0, 250), (1, 249), (2, 100), (3, 1_000)];
    assert_eq!(retired(all(), &used, 1_000_000), set(&[1, 2]), "a quarter is not less than a quarter");
    assert_eq!(retired(all(), &used, 50 * 348), set(&[2]), "2 % a run");
    assert_eq!(retired(all(), &used, 50 * 349), set(&[1, 2]));
    assert!(retired(all(), &used, 50 * 99).is_empty());
    let waiting = Pack { state: PackState::Retiring, ..live(0) };
    let packs = vec![waiting, live(1), live(2)];
    assert_eq!(retired(packs, &used, 50 * (250 + 100)), set(&[2]), "what is retiring already counts");
}

#[test]
fn only_what_the_newest_complete_backup_could_have_used_retires() {
    let newer = Pack { stored: Some(ago(HOUR)), ..pack(0, PackState::Live) };
    let unknown = Pack { raw_len: 0, ..pack(1, PackState::Live) };
    let never = Pack { referred: false, ..pack(2, PackState::Stored) };
    assert!(retired(vec![newer, unknown, never], &[], 1_000_000).is_empty());
    let unused = pack(3, PackState::Live);
    assert_eq!(retired(vec![unused], &[], 0), set(&[3]), "what it uses nothing of costs nothing");
}
