//! Tickets of backups that wait in the spool: their source is through, and any process of this agent can finish them.
//!
//! A ticket is written when everything is on disk (`spool::folder::Folder::settle`) and removed before the folder is: where
//! there is a ticket, there is a whole folder. There is one per series at most. It holds the salt of the spool's key; with
//! the ticket, the key is gone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use sealift_common::clock::UnixMillis;
use sealift_common::id::{BackupId, SeriesId};
use sealift_common::name::Name;
use sealift_common::secret::Secret;

use super::dir::{StateDir, StateError};
use super::encoded::Encoded;
use super::journal::AttemptRef;

const FOLDER: &str = "spooled";
const ADVICE: &str = "it is removed: the next attempt reads the source again";

/// One backup that waits.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The attempt that works on it.
    pub attempt: AttemptRef,
    /// The series it goes to.
    pub series: SeriesId,
    /// The source it was read from.
    pub source: Name,
    /// When its attempt was accepted.
    pub started: UnixMillis,
    /// Whom its packs name as their owner while they wait.
    pub spool: BackupId,
    /// Where they wait.
    pub folder: PathBuf,
    /// Half of their key; the other is the series secret.
    pub salt: Secret<[u8; 32]>,
    /// What the attempt may take.
    pub limits: TicketLimits,
}

/// Limits of the attempt, as they were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketLimits {
    /// 0: none but the host's own.
    pub bandwidth_bytes_per_s: u64,
    /// How long the store may be away while the source is read.
    pub stall_timeout_ms: u64,
    /// How long the whole attempt may take.
    pub max_duration_ms: u64,
    /// zstd level.
    pub compression_level: i32,
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    attempt: AttemptRef,
    series: SeriesId,
    source: Name,
    started_ms: UnixMillis,
    spool: BackupId,
    folder: PathBuf,
    salt: Encoded,
    limits: TicketLimits,
}

/// The tickets in the state directory.
#[derive(Debug, Clone)]
pub struct Tickets(StateDir);

impl Tickets {
    /// The tickets in this state directory.
    pub fn new(state: StateDir) -> Self {
        Self(state)
    }

    /// Writes a ticket; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, ticket: &Ticket) -> Result<(), StateError> {
        let stored = Stored {
            attempt: ticket.attempt,
            series: ticket.series,
            source: ticket.source.clone(),
            started_ms: ticket.started,
            spool: ticket.spool,
            folder: ticket.folder.clone(),
            salt: Encoded::new(ticket.salt.expose()),
            limits: ticket.limits,
        };
        self.0.write_json(&file(ticket.series), &stored)
    }

    /// The ticket of a series. A damaged one is removed: without it, its folder is nothing.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn load(&self, series: SeriesId) -> Result<Option<Ticket>, StateError> {
        let name = file(series);
        let read = self.0.read_json::<Stored>(&name, ADVICE).and_then(|stored| {
            let damaged = || StateError::Damaged {
                path: self.0.path(&name),
                problem: "its salt is not 32 bytes in base64".to_owned(),
                advice: ADVICE,
            };
            stored.map(|stored| parse(stored).ok_or_else(damaged)).transpose()
        });
        match read {
            Err(error @ StateError::Damaged { .. }) => {
                tracing::warn!(%error, "a backup that waited in the spool is lost");
                self.0.remove(&name)?;
                Ok(None)
            }
            other => other,
        }
    }

    /// Removes the ticket of a series.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, series: SeriesId) -> Result<(), StateError> {
        self.0.remove(&file(series))
    }

    /// All tickets.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn all(&self) -> Result<Vec<Ticket>, StateError> {
        let mut all = Vec::new();
        for name in self.0.list(FOLDER)? {
            if let Some(Ok(series)) = name.strip_suffix(".json").map(str::parse) {
                all.extend(self.load(series)?);
            }
        }
        Ok(all)
    }
}

fn parse(stored: Stored) -> Option<Ticket> {
    Some(Ticket {
        attempt: stored.attempt,
        series: stored.series,
        source: stored.source,
        started: stored.started_ms,
        spool: stored.spool,
        folder: stored.folder,
        salt: Secret::new(stored.salt.decode_32()?),
        limits: stored.limits,
    })
}

fn file(series: SeriesId) -> String {
    format!("{FOLDER}/{series}.json")
}

#[cfg(test)]
mod tests {
    use sealift_common::id::{Random, RunId};

    use super::*;

    #[test]
    fn a_ticket_is_read_back_and_a_damaged_one_is_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        let (tickets, random) = (Tickets::new(state.clone()), Random::from_seed(1));
        let ticket = Ticket {
            attempt: AttemptRef { run: RunId::generate(&random), number: 2, generation: 1, epoch: 7 },
            series: SeriesId::generate(&random),
            source: "main-db".parse().unwrap(),
            started: UnixMillis(5),
            spool: BackupId::generate(&random),
            folder: "/var/spool/x".into(),
            salt: Secret::new([7; 32]),
            limits: TicketLimits {
                bandwidth_bytes_per_s: 0,
                stall_timeout_ms: 1,
                max_duration_ms: 2,
                compression_level: 3,
            },
        };
        tickets.save(&ticket).unwrap();
        let read = tickets.load(ticket.series).unwrap().unwrap();
        assert_eq!((read.attempt, &read.source, read.spool), (ticket.attempt, &ticket.source, ticket.spool));
        assert_eq!((read.salt.expose(), read.limits), (ticket.salt.expose(), ticket.limits));
        assert_eq!(tickets.all().unwrap().len(), 1);
        assert!(!format!("{read:?}").contains("7, 7"));

        state.write(&file(ticket.series), b"{").unwrap();
        assert!(tickets.all().unwrap().is_empty());
        assert!(state.list(FOLDER).unwrap().is_empty());
    }
}
