//! The states of packs and backups, as pure functions: only these moves exist.
//!
//! ```text
//! pack    signed ──▶ stored ──▶ live ──▶ retiring
//!            │          │        │ ▲        │
//!            └──────────┴────────┴─┼────────┴──▶ doomed ──▶ deleting ──▶ deleted
//!                                  └─ Prepare, undelete ─┘
//!         (stored, live, retiring, doomed) ──▶ missing | damaged ──▶ deleting
//!
//! backup  begun ──▶ committing ──▶ committed ◀──▶ expired ──▶ deleting ──▶ deleted
//!                       ▲ ▼            ▲
//!                    abandoned ────────┘  (its manifest arrived late)
//! ```
//!
//! `deleting` is final, and a transaction of its own before the bucket is touched: what is deleting may be gone already.

use std::fmt;
use std::str::FromStr;

/// A move that the present state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {noun} that is {from} cannot {event}")]
pub struct IllegalMove {
    noun: &'static str,
    from: &'static str,
    event: &'static str,
}

/// A state's name that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such state as {0:?}")]
pub struct UnknownState(String);

macro_rules! states {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $($(#[$vdoc])* $name,)* }

        impl $type {
            /// Every one there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name: for states in the database and to users, for events in errors.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownState;
            fn from_str(text: &str) -> Result<Self, UnknownState> {
                let known = Self::ALL.iter().find(|state| state.as_str() == text);
                known.copied().ok_or_else(|| UnknownState(text.chars().take(40).collect()))
            }
        }
    };
}

states! {
    /// Where a pack is in its life.
    PackState {
        /// Its PUT was signed; nothing more is known.
        Signed = "signed",
        /// The coordinator has seen it in the bucket, whole.
        Stored = "stored",
        /// A prepared backup refers to it.
        Live = "live",
        /// Little of it is still used: new backups do not refer to it, so that it empties by itself.
        Retiring = "retiring",
        /// Nothing refers to it; it goes when its time has come.
        Doomed = "doomed",
        /// It is being removed from the bucket, and may be gone already.
        Deleting = "deleting",
        /// It was removed.
        Deleted = "deleted",
        /// It was there, and is not any more.
        Missing = "missing",
        /// Its bytes are not those that were stored.
        Damaged = "damaged",
    }
}

states! {
    /// What can happen to a pack.
    PackEvent {
        /// It was seen in the bucket.
        Store = "be stored",
        /// Prepare or undelete refers to it.
        Refer = "be referred to",
        /// Too little of it is used.
        Retire = "be retired",
        /// Nothing refers to it any more.
        Doom = "be doomed",
        /// Its time has come.
        Delete = "be deleted",
        /// It is gone from the bucket.
        Remove = "be removed",
        /// A listing does not show it.
        Lose = "be missing",
        /// A listing shows it again, at its length.
        Find = "be found again",
        /// It reads back otherwise.
        Damage = "be damaged",
    }
}

states! {
    /// Where a backup is.
    BackupState {
        /// Packs are being stored under its data key.
        Begun = "begun",
        /// Its manifest was signed for and has not been seen.
        Committing = "committing",
        /// Its manifest is in the bucket.
        Committed = "committed",
        /// Deleted for people; it can still be undeleted.
        Expired = "expired",
        /// Its manifest is being removed from the bucket, and may be gone already.
        Deleting = "deleting",
        /// Its manifest was removed.
        Deleted = "deleted",
        /// Its manifest did not arrive while its signature was good.
        Abandoned = "abandoned",
    }
}

states! {
    /// What can happen to a backup.
    BackupEvent {
        /// Its manifest is signed for; again after a lost reply.
        Prepare = "be prepared",
        /// Its manifest is in the bucket.
        Commit = "be committed",
        /// Its manifest did not come.
        Abandon = "be abandoned",
        /// An admin, or the rules, let it go.
        Expire = "expire",
        /// An admin wants it back.
        Undelete = "be undeleted",
        /// Its grace is over.
        Delete = "be deleted",
        /// Its manifest is gone from the bucket.
        Remove = "be removed",
    }
}

impl PackState {
    /// Whether *Begin* offers it to new backups.
    pub const fn is_offered(self) -> bool {
        matches!(self, Self::Stored | Self::Live)
    }

    /// Whether Prepare and undelete may still refer to it: it is in the bucket, and stays.
    pub const fn is_referable(self) -> bool {
        matches!(self, Self::Stored | Self::Live | Self::Retiring | Self::Doomed)
    }

    /// Whether a backup that needs it cannot be restored whole.
    pub const fn is_lost(self) -> bool {
        matches!(self, Self::Missing | Self::Damaged | Self::Deleting | Self::Deleted)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalMove`].
    pub fn apply(self, event: PackEvent) -> Result<Self, IllegalMove> {
        use PackEvent as E;
        use PackState as S;
        match (event, self) {
            (E::Store, S::Signed) => Ok(S::Stored),
            (E::Store, S::Stored | S::Live) => Ok(self),
            (E::Refer, S::Stored | S::Live | S::Retiring | S::Doomed) => Ok(S::Live),
            (E::Retire, S::Live) => Ok(S::Retiring),
            (E::Doom, S::Signed | S::Stored | S::Live | S::Retiring) => Ok(S::Doomed),
            (E::Delete, S::Doomed | S::Missing | S::Damaged) => Ok(S::Deleting),
            (E::Remove, S::Deleting) => Ok(S::Deleted),
            (E::Lose, S::Stored | S::Live | S::Retiring | S::Doomed | S::Missing | S::Damaged) => {
                Ok(S::Missing)
            }
            (E::Find, S::Missing) => Ok(S::Live),
            (E::Damage, S::Stored | S::Live | S::Retiring | S::Doomed | S::Missing | S::Damaged) => {
                Ok(S::Damaged)
            }
            (event, from) => Err(IllegalMove { noun: "pack", from: from.as_str(), event: event.as_str() }),
        }
    }
}

impl BackupState {
    /// Whether its manifest must be in the bucket.
    pub const fn has_manifest(self) -> bool {
        matches!(self, Self::Committed | Self::Expired)
    }

    /// Whether its manifest may be in the bucket.
    pub const fn may_have_manifest(self) -> bool {
        !matches!(self, Self::Begun | Self::Deleted)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalMove`].
    pub fn apply(self, event: BackupEvent) -> Result<Self, IllegalMove> {
        use BackupEvent as E;
        use BackupState as S;
        match (event, self) {
            (E::Prepare, S::Begun | S::Committing | S::Abandoned) => Ok(S::Committing),
            (E::Commit, S::Committing | S::Abandoned | S::Committed) => Ok(S::Committed),
            (E::Abandon, S::Committing | S::Abandoned) => Ok(S::Abandoned),
            (E::Expire, S::Committed) => Ok(S::Expired),
            (E::Undelete, S::Expired) => Ok(S::Committed),
            (E::Delete, S::Expired) => Ok(S::Deleting),
            (E::Remove, S::Deleting) => Ok(S::Deleted),
            (event, from) => Err(IllegalMove { noun: "backup", from: from.as_str(), event: event.as_str() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per state, one column per event: the state after it, `.` where there is no such move.
    fn table<S: Copy + fmt::Display>(
        states: &[S],
        events: usize,
        apply: impl Fn(S, usize) -> Option<S>,
    ) -> String {
        let row = |state: &S| {
            let after =
                (0..events).map(|event| apply(*state, event).map_or(".".to_owned(), |s| s.to_string()));
            format!("{state}: {}\n", after.collect::<Vec<_>>().join(" "))
        };
        states.iter().map(row).collect()
    }

    #[test]
    fn packs_move_like_this_and_no_other_way() {
        // Store, Refer, Retire, Doom, Delete, Remove, Lose, Find, Damage.
        let table = table(PackState::ALL, PackEvent::ALL.len(), |s, e| s.apply(PackEvent::ALL[e]).ok());
        let expected = "\
signed: stored . . doomed . . . . .
stored: stored live . doomed . . missing . damaged
live: live live retiring doomed . . missing . damaged
retiring: . live . doomed . . missing . damaged
doomed: . live . . deleting . missing . damaged
deleting: . . . . . deleted . . .
deleted: . . . . . . . . .
missing: . . . . deleting . missing live damaged
damaged: . . . . deleting . missing . damaged
";
        assert_eq!(table, expected);
    }

    #[test]
    fn backups_move_like_this_and_no_other_way() {
        // Prepare, Commit, Abandon, Expire, Undelete, Delete, Remove.
        let table = table(BackupState::ALL, BackupEvent::ALL.len(), |s, e| s.apply(BackupEvent::ALL[e]).ok());
        let expected = "\
begun: committing . . . . . .
committing: committing committed abandoned . . . .
committed: . committed . expired . . .
expired: . . . . committed deleting .
deleting: . . . . . . deleted
deleted: . . . . . . .
abandoned: committing committed abandoned . . . .
";
        assert_eq!(table, expected);
    }

    #[test]
    fn names_are_read_back_and_a_wrong_move_says_which() {
        assert!(PackState::ALL.iter().all(|state| state.as_str().parse() == Ok(*state)));
        assert!(BackupState::ALL.iter().all(|state| state.as_str().parse() == Ok(*state)));
        assert!("gone".parse::<PackState>().is_err());
        let error = BackupState::Deleting.apply(BackupEvent::Undelete).unwrap_err();
        assert_eq!(error.to_string(), "a backup that is deleting cannot be undeleted");
    }
}
