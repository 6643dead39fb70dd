//! The journal: which attempts this host works on, and which outcomes the coordinator does not know yet.
//!
//! An entry is on disk before work starts and goes when the coordinator has heard how it ended. So an entry that says
//! *running* when the process starts is an attempt that was cut off: Hello reports it as interrupted.

use serde::{Deserialize, Serialize};

use sealift_common::clock::UnixMillis;
use sealift_common::id::{InvalidId, RunId, SeriesId};
use sealift_proto::v1;

use super::dir::{StateDir, StateError};

const FOLDER: &str = "journal";

/// Names one attempt and fences it; the domain's form of [`v1::AttemptRef`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttemptRef {
    /// The run that is attempted.
    pub run: RunId,
    /// Which attempt of the run, from 1.
    pub number: u32,
    /// Generation of the coordinator's database.
    pub generation: u64,
    /// Counter of the lease; a stale one is refused.
    pub epoch: u64,
}

impl AttemptRef {
    /// What the wire carries.
    pub fn to_wire(self) -> v1::AttemptRef {
        v1::AttemptRef {
            run_id: self.run.to_vec(),
            number: self.number,
            generation: self.generation,
            epoch: self.epoch,
        }
    }
}

impl TryFrom<&v1::AttemptRef> for AttemptRef {
    type Error = InvalidId;
    fn try_from(wire: &v1::AttemptRef) -> Result<Self, InvalidId> {
        Ok(Self {
            run: RunId::try_from(wire.run_id.as_slice())?,
            number: wire.number,
            generation: wire.generation,
            epoch: wire.epoch,
        })
    }
}

impl std::fmt::Display for AttemptRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.run, self.number)
    }
}

/// How an attempt ended without a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One line.
    pub error: String,
    /// The tool's last words, redacted.
    pub stderr: String,
    /// Whether another attempt may do better.
    pub retryable: bool,
    /// Whether somebody asked for it to end.
    pub cancelled: bool,
}

/// One attempt, as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The attempt.
    pub attempt: AttemptRef,
    /// The series it writes to.
    pub series: SeriesId,
    /// The source's name at that time.
    pub source: String,
    /// When it was accepted.
    pub started: UnixMillis,
    /// How it failed; `None` while it runs. (A success needs no report: it is a commit.)
    pub failure: Option<Failure>,
}

/// The journal's folder in the state directory.
#[derive(Debug, Clone)]
pub struct Journal(StateDir);

impl Journal {
    /// The journal of this state directory.
    pub fn new(state: StateDir) -> Self {
        Self(state)
    }

    /// Writes an entry; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StateError`]: then the attempt must not start.
    pub fn record(&self, entry: &Entry) -> Result<(), StateError> {
        self.0.write_json(&file(entry.attempt), entry)
    }

    /// Forgets an attempt: the coordinator knows how it ended.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&self, attempt: AttemptRef) -> Result<(), StateError> {
        self.0.remove(&file(attempt))
    }

    /// All entries. A damaged one is put aside as an interrupted attempt cannot be named any more: the coordinator
    /// ends it when its lease does.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn entries(&self) -> Result<Vec<Entry>, StateError> {
        let mut entries = Vec::new();
        for name in self.0.list(FOLDER)? {
            let file = format!("{FOLDER}/{name}");
            match self.0.read_json(&file, "it is ignored") {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => {}
                Err(error @ StateError::Damaged { .. }) => {
                    tracing::warn!(%error, "removing a damaged journal entry");
                    self.0.remove(&file)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }
}

fn file(attempt: AttemptRef) -> String {
    format!("{FOLDER}/{}-{}.json", attempt.run, attempt.number)
}

#[cfg(test)]
mod tests {
    use sealift_common::id::Random;

    use super::*;

    #[test]
    fn entries_survive_until_they_are_forgotten() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        let journal = Journal::new(state.clone());
        let random = Random::from_seed(1);
        let attempt = AttemptRef { run: RunId::generate(&random), number: 2, generation: 1, epoch: 7 };
        let mut entry = Entry {
            attempt,
            series: SeriesId::generate(&random),
            source: "main-db".into(),
            started: UnixMillis(5),
            failure: None,
        };
        journal.record(&entry).unwrap();
        assert_eq!(journal.entries().unwrap(), [entry.clone()]);
        entry.failure = Some(Failure {
            error: "pg_dump exited 1".into(),
            stderr: "no".into(),
            retryable: true,
            cancelled: false,
        });
        journal.record(&entry).unwrap();
        assert_eq!(journal.entries().unwrap(), [entry]);
        journal.forget(attempt).unwrap();
        assert_eq!(journal.entries().unwrap(), []);
    }

    #[test]
    fn a_damaged_entry_does_not_hide_the_others() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        state.write("journal/broken.json", b"{").unwrap();
        assert_eq!(Journal::new(state.clone()).entries().unwrap(), []);
        assert!(state.list("journal").unwrap().is_empty());
    }
}
