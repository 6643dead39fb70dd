//! Compares the manifests that a listing of the bucket shows with those that the database knows. No I/O.
//!
//! A difference means that one of the two is not what this coordinator believes it to be: the database was set back, another
//! coordinator writes here, somebody deleted by hand. Then nothing is deleted in that series.

use std::collections::BTreeSet;

use sealift_common::clock::UnixMillis;
use sealift_common::format::names::ObjectName;
use sealift_common::id::SeriesId;

use super::packs::LATE;
use super::states::BackupState;
use crate::store::retention::KeptBackup;

/// A manifest that is on one side only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The database says that it is there.
    #[error("{0} is not in the bucket")]
    Missing(ObjectName),
    /// The database does not say that it may be there.
    #[error("{0} is in the bucket, and the database does not know it")]
    Unknown(ObjectName),
}

fn name(series: SeriesId, backup: &KeptBackup) -> ObjectName {
    ObjectName::Manifest { series, sequence: backup.sequence, sha256: backup.manifest_sha256 }
}

/// Compares `listed` with what the database knew before the listing and what it knew after it: a manifest may arrive
/// meanwhile.
///
/// # Errors
/// The first [`Difference`].
pub fn compare(
    series: SeriesId,
    before: &[KeptBackup],
    listed: &[ObjectName],
    after: &[KeptBackup],
    now: UnixMillis,
) -> Result<(), Difference> {
    let listed: BTreeSet<String> = listed.iter().map(ToString::to_string).collect();
    let must_be = before.iter().filter(|backup| backup.state.has_manifest());
    for expected in must_be.map(|backup| name(series, backup)) {
        if !listed.contains(&expected.to_string()) {
            return Err(Difference::Missing(expected));
        }
    }
    let arrives_too_late =
        |b: &KeptBackup| b.state == BackupState::Abandoned && now > b.signed_until.plus(LATE);
    let may_be = after.iter().filter(|b| b.state.may_have_manifest() && !arrives_too_late(b));
    let may_be: BTreeSet<String> = may_be.map(|backup| name(series, backup).to_string()).collect();
    match listed.iter().find(|listed| !may_be.contains(*listed)).and_then(|name| name.parse().ok()) {
        Some(unknown) => Err(Difference::Unknown(unknown)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::retention::Keeping;
    use sealift_common::id::{BackupId, Sha256};

    const SERIES: SeriesId = SeriesId::from_bytes([7; 16]);
    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn backup(number: u8, state: BackupState) -> KeptBackup {
        KeptBackup {
            id: BackupId::from_bytes([number; 16]),
            sequence: number.into(),
            state,
            manifest_sha256: Sha256::of(&[number]),
            committed: None,
            partial: false,
            refs: Default::default(),
            signed_until: NOW,
            raw_bytes: 0,
            keeping: Keeping::default(),
            locked_until: None,
            in_use: false,
        }
    }

    #[test]
    fn both_sides_must_agree() {
        use BackupState as S;
        let named = |b: &KeptBackup| name(SERIES, b);
        let check = |before: &[KeptBackup], listed: &[ObjectName], after: &[KeptBackup]| {
            compare(SERIES, before, listed, after, NOW)
        };
        let (one, two) = (backup(1, S::Committed), backup(2, S::Expired));
        let both = [one.clone(), two.clone()];
        assert_eq!(check(&both, &[named(&one), named(&two)], &both), Ok(()));
        assert_eq!(check(&both, &[named(&one)], &both), Err(Difference::Missing(named(&two))));
        let one_only = std::slice::from_ref(&one);
        let all = [named(&one), named(&two)];
        assert_eq!(check(one_only, &all, one_only), Err(Difference::Unknown(named(&two))));
        // Prepared while the listing was made, and there already.
        assert_eq!(check(one_only, &all, &both), Ok(()));
        for state in [S::Committing, S::Deleting, S::Abandoned] {
            let other = backup(3, state);
            let rows = [other.clone()];
            assert_eq!(check(&rows, &[], &rows), Ok(()), "{state} may be away");
            assert_eq!(check(&rows, &[named(&other)], &rows), Ok(()), "{state} may be there");
        }
        let late = KeptBackup { signed_until: NOW.minus(LATE * 2), ..backup(3, S::Abandoned) };
        let rows = [late.clone()];
        assert_eq!(check(&rows, &[named(&late)], &rows), Err(Difference::Unknown(named(&late))));
        let other = KeptBackup { manifest_sha256: Sha256::of(b"other"), ..one.clone() };
        assert!(check(one_only, &[named(&other)], one_only).is_err(), "the same number, other bytes");
    }
}
