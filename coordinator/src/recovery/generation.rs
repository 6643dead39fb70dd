//! How an old copy of the database is known: by high-water marks in the bucket.
//!
//! A mark is an empty promise kept: it is counted in the database first and put into the bucket afterwards, so the bucket
//! is never ahead of the database that counted it, whatever crashes in between. A bucket that is ahead means that this
//! database has forgotten what it once knew: it was set back. Marks are made at the start, within [`FOLLOW`] of every
//! change, every [`INTERVAL`], and at a clean stop. What happens between a change and its mark, agents tell: they name the
//! newest manifest they know in Hello ([`super::heads`]). Before each round of deletion a mark is made too
//! ([`super::deletion_begins`]), so that every copy of before is known.
//!
//! Two copies that both go on count alike; each mark has a random number, so the bucket shows that there are two.
//!
//! Comparing is a pure function, [`compare`]; [`Generations`] asks bucket and database, in this order.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use sealift_common::format::names::{ObjectName, TRUST_PREFIX};
use tokio_util::sync::CancellationToken;

use super::RecoveryError;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::objects::{ObjectErrorKind, ObjectKey, ObjectStore, Put};
use crate::sessions::Sessions;
use crate::store::generation::{self, GenerationRow};
use crate::store::{StoreError, trust};

/// What the names of marks start with.
pub const MARKS_PREFIX: &str = "coordinator/marks/";
/// A change is followed by its mark within this time.
const FOLLOW: Duration = Duration::from_secs(10);
/// Between two marks where nothing changes.
const INTERVAL: Duration = Duration::from_secs(3_600);
/// Between two tries while the bucket is away.
const RETRY: Duration = Duration::from_secs(2);
/// How long a stop may wait for its mark.
const LAST_MARK: Duration = Duration::from_secs(5);
/// Marks of one generation that are kept.
const KEPT: u64 = 3;
/// Marks that are looked at; more than there ever are.
const MAX_MARKS: usize = 100_000;

/// One mark, in the database or in the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// Counts recoveries.
    pub number: u64,
    /// The generation's random id.
    pub generation: u64,
    /// Counts marks within the generation.
    pub mark: u64,
    /// Random: which of several copies counted it.
    pub nonce: u64,
}

impl Mark {
    /// The object's name.
    ///
    /// # Errors
    /// Never: it is made of digits and dashes.
    pub fn key(&self) -> Result<ObjectKey, crate::objects::key::InvalidObjectKey> {
        let Self { number, generation, mark, nonce } = self;
        format!("{MARKS_PREFIX}{number:010}-{generation:016x}-{mark:020}-{nonce:016x}").parse()
    }

    /// The mark that `key` names.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(MARKS_PREFIX)?.splitn(4, '-');
        let number = parts.next()?.parse().ok()?;
        let generation = u64::from_str_radix(parts.next()?, 16).ok()?;
        let mark = parts.next()?.parse().ok()?;
        let nonce = u64::from_str_radix(parts.next()?, 16).ok()?;
        let mark = Self { number, generation, mark, nonce };
        mark.key().ok().filter(|own| own.as_str() == key).map(|_| mark)
    }
}

impl From<&GenerationRow> for Mark {
    fn from(row: &GenerationRow) -> Self {
        Self { number: row.number, generation: row.id, mark: row.mark, nonce: row.nonce }
    }
}

/// What one side knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Its marks: of the database one.
    pub marks: Vec<Mark>,
    /// The highest version of the trust policy.
    pub trust: u64,
}

/// Why the database is behind the bucket; `None` where it is not. The bucket must have been asked before the database.
pub fn compare(database: Mark, database_trust: u64, bucket: &Side) -> Option<String> {
    let newest = bucket.marks.iter().max_by_key(|mark| (mark.number, mark.mark));
    match newest {
        Some(newest) if newest.number > database.number => {
            return Some(format!(
                "the bucket is of generation {}, this database of generation {}",
                newest.number, database.number
            ));
        }
        Some(newest) if newest.number == database.number && newest.generation != database.generation => {
            return Some("the bucket belongs to another database than this one".to_owned());
        }
        Some(newest) if newest.number == database.number && newest.mark > database.mark => {
            return Some(format!(
                "this database is an older copy: the bucket has its mark {}, it remembers {}",
                newest.mark, database.mark
            ));
        }
        _ => {}
    }
    let own = bucket.marks.iter().chain([&database]);
    let own = own.filter(|mark| (mark.number, mark.generation) == (database.number, database.generation));
    let mut counted = BTreeMap::new();
    for mark in own {
        if *counted.entry(mark.mark).or_insert(mark.nonce) != mark.nonce {
            return Some(format!(
                "two copies of this database are in use: both have counted mark {}",
                mark.mark
            ));
        }
    }
    (bucket.trust > database_trust).then(|| {
        format!(
            "the bucket has version {} of the trust policy, this database knows {database_trust}",
            bucket.trust
        )
    })
}

/// Compares the database with the bucket, and keeps the marks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Generations {
    core: Core,
    objects: ObjectStore,
}

impl Generations {
    /// Of the installation of `core`, whose bucket is `objects`.
    pub fn new(core: Core, objects: ObjectStore) -> Self {
        Self { core, objects }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn objects(&self) -> &ObjectStore {
        &self.objects
    }

    /// What the bucket knows.
    ///
    /// # Errors
    /// The bucket's own.
    pub async fn bucket(&self) -> Result<Side, RecoveryError> {
        let listed = self.objects.list_all(MARKS_PREFIX, MAX_MARKS).await?;
        let marks = listed.iter().filter_map(|object| Mark::parse(object.name.as_str())).collect();
        let listed = self.objects.list_all(TRUST_PREFIX, MAX_MARKS).await?;
        let version = |key: &ObjectKey| match key.as_str().parse() {
            Ok(ObjectName::Trust { version, .. }) => Some(version),
            _ => None,
        };
        let trust = listed.iter().filter_map(|object| version(&object.name)).max().unwrap_or(0);
        Ok(Side { marks, trust })
    }

    /// Compares; a database that is behind is recorded as recovering, with one audit event.
    ///
    /// # Errors
    /// Those of bucket and database: then nothing is known, and nothing changes.
    pub async fn check(&self) -> Result<Side, RecoveryError> {
        // The bucket first: what is counted between the two questions makes the database look newer, never older.
        let bucket = self.bucket().await?;
        let mut reader = self.core.store.reader().await?;
        let since = self.core.standing.moment();
        let row = generation::get(&mut reader).await?;
        let known = trust::all(&mut reader).await?.last().map_or(0, |row| row.version);
        drop(reader);
        match compare(Mark::from(&row), known, &bucket) {
            Some(reason) => self.behind(&reason).await?,
            None => self.core.standing.take_read(&row, since),
        }
        Ok(bucket)
    }

    /// Records that the database is behind, for this reason.
    ///
    /// # Errors
    /// The database's own.
    pub async fn behind(&self, reason: &str) -> Result<(), RecoveryError> {
        let (ctx, now) = (&OpContext::coordinator(&self.core), self.core.clock.now());
        let (row, news) = self
            .core
            .store
            .run_tx("the database is behind", move |tx, _| {
                async move {
                    let before = generation::get(tx).await?;
                    let news = generation::set_recovering(tx, reason, now).await?;
                    if news {
                        let said = Details::none()
                            .with("before", "serving")
                            .with("after", "recovering")
                            .with("reason", reason)
                            .with("generation", before.number)
                            .with("mark", before.mark);
                        ctx.record(tx, Action::RecoveryNotice, &"coordinator", Outcome::Done, said).await?;
                    }
                    Ok::<_, StoreError>((generation::get(tx).await?, news))
                }
                .boxed()
            })
            .await?;
        self.core.standing.take(&row);
        if news {
            tracing::error!(
                reason,
                "this database is behind the bucket: nothing is dispatched or deleted until `sealift-coordinator recover --from-bucket`"
            );
        }
        Ok(())
    }

    /// Counts one more mark and puts it into the bucket; older ones go. `false` where another generation has begun, or the
    /// database recovers: then there is none.
    ///
    /// # Errors
    /// Those of database and bucket.
    pub async fn mark(&self, bucket: &Side) -> Result<bool, RecoveryError> {
        let (id, nonce) = (self.core.standing.generation(), random(&self.core));
        let count = self.core.store.run_tx("count a mark", move |tx, _| {
            async move { generation::next_mark(tx, id, nonce).await }.boxed()
        });
        let Some(row) = count.await? else {
            self.refresh().await?;
            return Ok(false);
        };
        let mark = Mark::from(&row);
        self.put(&mark).await?;
        let old = |other: &&Mark| {
            (other.number, other.generation) == (mark.number, mark.generation)
                && other.mark + KEPT <= mark.mark
        };
        for old in bucket.marks.iter().filter(old) {
            self.objects.delete(&old.key()?, None).await?;
        }
        Ok(true)
    }

    /// Puts a mark that the database has.
    ///
    /// # Errors
    /// The bucket's own.
    pub async fn put(&self, mark: &Mark) -> Result<(), RecoveryError> {
        let body = serde_json::json!({
            "format": 1,
            "repository_id": self.core.repository.to_string(),
            "generation": mark.number,
            "mark": mark.mark,
            "time": self.core.clock.now().rfc3339(),
        });
        match self.objects.put(&mark.key()?, Bytes::from(body.to_string()), Put::New).await {
            Err(error) if error.kind != ObjectErrorKind::AlreadyThere => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes over what another process has written: a state, a new generation.
    ///
    /// # Errors
    /// The database's own.
    pub async fn refresh(&self) -> Result<(), RecoveryError> {
        let mut reader = self.core.store.reader().await?;
        let since = self.core.standing.moment();
        let row = generation::get(&mut reader).await?;
        self.core.standing.take_read(&row, since);
        Ok(())
    }

    /// Compares at once, keeps the marks until `stop`, and makes the last one then. Agents that connected before the
    /// comparison, or while it was no good, are asked to come again: not all of what they said was taken in.
    pub async fn keep(self, sessions: std::sync::Arc<Sessions>, stop: CancellationToken) {
        let (mut compared, mut late, mut since) = (false, false, Duration::ZERO);
        loop {
            let due = self.core.standing.take_touched() || since >= INTERVAL;
            let outcome = if !compared || due {
                self.round().await.map(|()| true)
            } else {
                self.refresh().await.map(|()| false)
            };
            match outcome {
                Ok(marked) => {
                    compared = true;
                    since = if marked { Duration::ZERO } else { since };
                }
                Err(error) => {
                    self.core.standing.touch();
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot compare the database with the bucket; trying again");
                }
            }
            let serving = self.core.standing.serving().is_ok();
            if serving && late {
                sessions.move_all("the coordinator is in step with the bucket again");
            }
            late = !serving;
            let pause = if compared && serving { FOLLOW } else { RETRY };
            tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(pause) => since += pause }
        }
        if self.core.standing.serving().is_ok()
            && !matches!(tokio::time::timeout(LAST_MARK, self.round()).await, Ok(Ok(())))
        {
            tracing::warn!("the bucket did not take the last mark");
        }
    }

    async fn round(&self) -> Result<(), RecoveryError> {
        let bucket = self.check().await?;
        if self.core.standing.serving().is_ok() { self.mark(&bucket).await.map(drop) } else { Ok(()) }
    }
}

/// A random number that both databases and JSON can carry.
pub(super) fn random(core: &Core) -> u64 {
    u64::from_le_bytes(core.random.bytes()) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mark(number: u64, generation: u64, mark: u64) -> Mark {
        Mark { number, generation, mark, nonce: 0xcd }
    }

    #[test]
    fn names_and_marks_are_one_to_one() {
        let one = mark(2, 0xab, 17);
        let key = one.key().unwrap().to_string();
        assert_eq!(
            key,
            "coordinator/marks/0000000002-00000000000000ab-00000000000000000017-00000000000000cd"
        );
        assert_eq!(Mark::parse(&key), Some(one));
        for bad in ["coordinator/marks/2-ab-17-cd", "coordinator/marks/x", "trust/1", &format!("{key}0")] {
            assert_eq!(Mark::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_database_that_has_forgotten_is_behind() {
        let side = |marks: &[Mark], trust| Side { marks: marks.to_vec(), trust };
        let own = mark(2, 7, 5);
        let other = |mark| Mark { nonce: 0xef, ..mark };
        for (bucket, trust, behind) in [
            (side(&[], 0), 0, false),              // new, or its first mark is on its way
            (side(&[mark(2, 7, 5)], 1), 1, false), // in step
            (side(&[mark(2, 7, 3), mark(2, 7, 4)], 1), 1, false), // crashed before the mark's PUT
            (side(&[mark(1, 9, 900), mark(2, 7, 1)], 1), 1, false), // after a recovery
            (side(&[mark(1, 9, 900)], 1), 1, false), // crashed before the new generation's PUT
            (side(&[mark(2, 7, 4)], 1), 2, false), // a policy that the bucket has not yet
            (side(&[mark(2, 7, 6)], 1), 1, true),  // set back
            (side(&[mark(2, 8, 1)], 1), 1, true),  // two recoveries of two copies
            (side(&[mark(3, 8, 1)], 1), 1, true),  // the copy from before a recovery
            (side(&[], 1), 0, true),               // a new database beside an old bucket
            (side(&[mark(2, 7, 5)], 3), 2, true),  // set back over a change of the policy
            (side(&[other(mark(2, 7, 5))], 1), 1, true), // another copy counted as far
            (side(&[mark(2, 7, 4), other(mark(2, 7, 4))], 1), 1, true), // and earlier
            (side(&[mark(1, 9, 4), other(mark(1, 9, 4))], 1), 1, false), // before a recovery
        ] {
            assert_eq!(compare(own, trust, &bucket).is_some(), behind, "{bucket:?} {trust}");
        }
    }
}
