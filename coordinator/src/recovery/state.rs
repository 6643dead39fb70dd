//! Whether the database is to be believed, as this process knows it.
//!
//! | state | what waits |
//! |---|---|
//! | [`State::Unchecked`] (a few milliseconds after the start, or for as long as the bucket is away) | schedules, dispatch, deletion, writes of agents |
//! | [`State::Serving`] | nothing |
//! | [`State::Recovering`] | the same, and what the recovery could contradict (enrolment, tokens, trust policies, new runs), and what lets something go (deleting and releasing backups, policies, retiring hosts) |
//!
//! Reading and restoring always work, certificates are always renewed, and what only protects always goes: holding and
//! undeleting backups, pausing schedules, revoking hosts and tokens.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::audit::{Action, Subject};
use crate::store::generation::GenerationRow;

/// How long a round waits for the first comparison.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the database is in step with the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// They have not been compared yet.
    Unchecked,
    /// It is.
    Serving,
    /// It is an older copy, or a new one beside a bucket that knows more.
    Recovering {
        /// How that was noticed.
        reason: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unchecked => "starting",
            Self::Serving => "serving",
            Self::Recovering { .. } => "recovering",
        })
    }
}

/// Something has to wait until the database is in step with the bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServing {
    /// They have not been compared yet.
    #[error("the coordinator has not compared its database with the bucket yet; try again")]
    Unchecked,
    /// It is behind.
    #[error(
        "the coordinator is recovering ({0}): run `sealift-coordinator recover --from-bucket` on it; what is stored can be restored meanwhile"
    )]
    Recovering(String),
}

/// The state of this process, shared by all of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: watch::Sender<State>,
    generation: AtomicU64,
    changes: AtomicU64,
    touched: AtomicBool,
}

/// A moment in the life of a [`Standing`]: how often it had changed by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Standing {
    /// As the database says.
    pub fn new(row: &GenerationRow) -> Self {
        let state = watch::Sender::new(of(row));
        let generation = AtomicU64::new(row.id);
        let (changes, touched) = (AtomicU64::new(0), AtomicBool::new(true));
        Self(Arc::new(Inner { state, generation, changes, touched }))
    }

    /// The state.
    pub fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// The generation that attempts are made under.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// Whether runs may be dispatched, and the like.
    ///
    /// # Errors
    /// [`NotServing`], which says why not.
    pub fn serving(&self) -> Result<(), NotServing> {
        match &*self.0.state.borrow() {
            State::Serving => Ok(()),
            State::Unchecked => Err(NotServing::Unchecked),
            State::Recovering { reason } => Err(NotServing::Recovering(reason.clone())),
        }
    }

    /// Whether `action` may be done now.
    ///
    /// # Errors
    /// [`NotServing`].
    pub fn allows(&self, action: Action) -> Result<(), NotServing> {
        use Action as A;
        match action {
            A::SessionOpen | A::CertificateRenew | A::SeriesAhead => Ok(()),
            _ if action.subject() == Subject::Agent => self.serving(),
            A::AgentEnroll
            | A::TokenCreate
            | A::TrustSet
            | A::RunStart
            | A::BackupDelete
            | A::BackupRelease
            | A::PolicyApply
            | A::PolicyRollback
            | A::PolicyDelete
            | A::AgentRetire => match self.serving() {
                Err(NotServing::Unchecked) => Ok(()),
                other => other,
            },
            _ => Ok(()),
        }
    }

    /// Waits until the first comparison is made, at most so long.
    pub async fn checked(&self, patience: Duration) {
        let mut state = self.0.state.subscribe();
        let compared = state.wait_for(|state| *state != State::Unchecked);
        // Late: the caller looks at the state anyway.
        let _ = tokio::time::timeout(patience, compared).await;
    }

    /// Whether the database is in step with the bucket, once that is known: what runs again and again waits for it.
    pub async fn ready(&self) -> bool {
        self.checked(PATIENCE).await;
        self.serving().is_ok()
    }

    /// Told of every change of the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Nothing has been compared: to be called before anything is served.
    pub fn forget(&self) {
        self.0.state.send_replace(State::Unchecked);
    }

    /// To be asked before the database is read, for [`Self::take_read`].
    pub fn moment(&self) -> Moment {
        Moment(self.0.changes.load(Ordering::SeqCst))
    }

    /// Takes over what was read from the database after `since`. Where the state has changed meanwhile it may have been read
    /// before that: it is left alone, and whoever asks next will see.
    pub fn take_read(&self, row: &GenerationRow, since: Moment) {
        self.replace(row, Some(since));
    }

    /// Takes over what this process has just written to the database.
    pub fn take(&self, row: &GenerationRow) {
        self.replace(row, None);
    }

    fn replace(&self, row: &GenerationRow, since: Option<Moment>) {
        let new = of(row);
        // One at a time, by the lock of the state.
        self.0.state.send_if_modified(|state| {
            if since.is_some_and(|since| since != self.moment()) {
                return false;
            }
            let another = self.0.generation.swap(row.id, Ordering::SeqCst) != row.id;
            let differs = *state != new;
            if differs || another {
                self.0.changes.fetch_add(1, Ordering::SeqCst);
            }
            *state = new;
            differs
        });
    }

    /// Something was written: the bucket's mark is to follow.
    pub fn touch(&self) {
        self.0.touched.store(true, Ordering::Relaxed);
    }

    /// Whether something was written since this was asked last.
    pub fn take_touched(&self) -> bool {
        self.0.touched.swap(false, Ordering::Relaxed)
    }
}

fn of(row: &GenerationRow) -> State {
    match &row.recovering {
        None => State::Serving,
        Some(reason) => State::Recovering { reason: reason.clone() },
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::clock::UnixMillis;

    use super::*;

    fn row(recovering: Option<&str>) -> GenerationRow {
        let recovering = recovering.map(str::to_owned);
        let (changed, backup) = (UnixMillis(0), UnixMillis(0));
        GenerationRow { number: 1, id: 7, mark: 0, nonce: 0, recovering, changed, backup }
    }

    #[test]
    fn what_was_read_before_a_change_does_not_undo_it() {
        let standing = Standing::new(&row(None));
        let before = standing.moment();
        standing.take(&row(Some("set back")));
        standing.take_read(&row(None), before);
        assert!(standing.serving().is_err());
        // The right database was put back.
        standing.take_read(&row(None), standing.moment());
        assert_eq!(standing.serving(), Ok(()));
    }

    #[test]
    fn every_action_knows_whether_it_waits() {
        let standing = Standing::new(&row(None));
        assert!(Action::ALL.iter().all(|action| standing.allows(*action).is_ok()));
        standing.take(&row(Some("set back")));
        let waits: Vec<&str> =
            Action::ALL.iter().filter(|a| standing.allows(**a).is_err()).map(|a| a.as_str()).collect();
        assert_eq!(
            waits,
            [
                "agent.enroll",
                "backup.begin",
                "pack.authorize",
                "pack.confirm",
                "index.read",
                "backup.prepare",
                "backup.commit",
                "attempt.answer",
                "attempt.fail",
                "token.create",
                "agent.retire",
                "trust.set",
                "run.start",
                "backup.delete",
                "backup.release",
                "policy.apply",
                "policy.rollback",
                "policy.delete"
            ]
        );
        standing.forget();
        assert!(
            standing.allows(Action::TokenCreate).is_ok() && standing.allows(Action::BackupPrepare).is_err()
        );
        assert_eq!(standing.serving(), Err(NotServing::Unchecked));
    }
}
