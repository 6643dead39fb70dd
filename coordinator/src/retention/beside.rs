//! What may run beside what on one series.
//!
//! | | run | restore | verify | retention | collect | import |
//! |---|---|---|---|---|---|---|
//! | **run** | no | yes | yes | yes | yes | no |
//! | **restore** | yes | yes | yes | yes | yes | yes |
//! | **verify** | yes | yes | yes | yes | yes | yes |
//! | **retention** | yes | yes | yes | no | no | no |
//! | **collect** | yes | yes | yes | no | no | no |
//! | **import** | no | yes | yes | no | no | no |
//!
//! Why yes: a *run* keeps what it may refer to by its attempt's lease, and Prepare's transaction decides in the end; a
//! *restore* keeps its backup by its own lease; a *verification* only reads, and what it finds is another state, not another
//! place. Why no: two runs would take one sequence number; retention and collection each act on what they have read of the
//! series; an import changes what both and Begin read.

/// Something that is done to a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A backup, from its attempt's lease to its end.
    Run,
    /// A restore, from opening to closing.
    Restore,
    /// A verification, presence by a listing included.
    Verify,
    /// Backups expire.
    Retention,
    /// Packs and manifests are doomed and deleted.
    Collect,
    /// The database is made to follow the bucket.
    Import,
}

impl Operation {
    /// All of them, in the order of the table.
    pub const ALL: &[Self] =
        &[Self::Run, Self::Restore, Self::Verify, Self::Retention, Self::Collect, Self::Import];

    /// Its name in the database and to people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Restore => "restore",
            Self::Verify => "verify",
            Self::Retention => "retention",
            Self::Collect => "collect",
            Self::Import => "import",
        }
    }

    /// The operation of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|operation| operation.as_str() == name)
    }
}

/// Whether both may be under way on one series.
pub const fn may_run_beside(one: Operation, other: Operation) -> bool {
    use Operation as O;
    match (one, other) {
        (O::Restore | O::Verify, _) | (_, O::Restore | O::Verify) => true,
        (O::Run, O::Retention | O::Collect) | (O::Retention | O::Collect, O::Run) => true,
        (O::Run | O::Retention | O::Collect | O::Import, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_above_is_the_function() {
        let head = include_str!("beside.rs");
        let rows = head.lines().filter_map(|line| line.strip_prefix("//! | **"));
        let rows: Vec<(&str, Vec<bool>)> = rows
            .map(|row| {
                let (name, cells) = row.split_once("** |").unwrap();
                (name, cells.trim_end_matches('|').split('|').map(|cell| cell.trim() == "yes").collect())
            })
            .collect();
        assert_eq!(rows.len(), Operation::ALL.len());
        for (one, (name, cells)) in Operation::ALL.iter().zip(&rows) {
            assert_eq!(one.as_str(), *name);
            assert_eq!(Operation::by_name(name), Some(*one));
            for (other, cell) in Operation::ALL.iter().zip(cells) {
                assert_eq!(may_run_beside(*one, *other), *cell, "{one:?} beside {other:?}");
                assert_eq!(may_run_beside(*one, *other), may_run_beside(*other, *one), "{one:?}, {other:?}");
            }
        }
    }
}
