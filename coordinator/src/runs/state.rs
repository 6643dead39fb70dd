//! The states of runs and attempts, as pure functions.
//!
//! ```text
//! run      scheduled ──▶ queued ──▶ active ◀──▶ backoff     active ──▶ succeeded | partial | failed | cancelled
//!             └───────────┴──▶ missed | skipped | superseded | cancelled
//! attempt  offered ──▶ accepted ──▶ running ──▶ preparing ──▶ committed
//!             └▶ rejected       (any open one) ──▶ failed | lost | cancelling ──▶ cancelled
//! ```
//!
//! A run is what was asked for; an attempt is one agent working on it under one lease (one process of it, and the next
//! where what was read waits in the spool). Preparing cannot be
//! cancelled: from then on the bucket decides whether there is a backup.

use std::fmt;
use std::str::FromStr;

/// A move that the present state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{noun} is {from}: it cannot {event}")]
pub struct IllegalMove {
    noun: &'static str,
    from: &'static str,
    event: String,
}

/// A state's name that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no state {0:?}")]
pub struct UnknownState(String);

macro_rules! states {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$vdoc])* $name,)* }

        impl $type {
            /// Every state there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The state's name in the database and to users.
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
                match text {
                    $($text => Ok(Self::$name),)*
                    other => Err(UnknownState(other.chars().take(40).collect())),
                }
            }
        }
    };
}

states! {
    /// Where a run is.
    RunState {
        /// Its policy has come due; its own start, spread over the fleet, has not.
        Scheduled = "scheduled",
        /// Waits for its agent, or for its turn.
        Queued = "queued",
        /// An attempt is under way.
        Active = "active",
        /// The last attempt failed; the next one waits.
        Backoff = "backoff",
        /// There is a whole backup.
        Succeeded = "succeeded",
        /// There is a backup, and it says what it lacks.
        Partial = "partial",
        /// There is none.
        Failed = "failed",
        /// Somebody did not want it any more.
        Cancelled = "cancelled",
        /// Its window ended before it could start.
        Missed = "missed",
        /// It was not to start, for the reason that it names.
        Skipped = "skipped",
        /// Its policy changed before it started.
        Superseded = "superseded",
    }
}

states! {
    /// Where an attempt is.
    AttemptState {
        /// Sent to the agent, not answered.
        Offered = "offered",
        /// The agent said yes, and has not begun.
        Accepted = "accepted",
        /// The agent said no.
        Rejected = "rejected",
        /// The source is being read and stored.
        Running = "running",
        /// The manifest is on its way to the bucket.
        Preparing = "preparing",
        /// The manifest is in the bucket.
        Committed = "committed",
        /// The agent gave up.
        Failed = "failed",
        /// The agent, or its process, is gone.
        Lost = "lost",
        /// The agent was told to stop, and has not said that it did.
        Cancelling = "cancelling",
        /// The agent stopped.
        Cancelled = "cancelled",
    }
}

/// What can happen to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEvent {
    /// The agent accepts the offer.
    Accept,
    /// The agent rejects it.
    Reject,
    /// *Begin*; again after a lost session.
    Begin,
    /// *Prepare*; again after a lost reply.
    Prepare,
    /// The manifest is in the bucket.
    Commit,
    /// The agent, or the bucket, says that there will be no backup.
    Fail,
    /// The lease ended, or the process that held it did.
    Lose,
    /// Somebody wants it to end.
    Cancel,
    /// The agent says that it ended for that reason.
    Stopped,
}

impl AttemptEvent {
    /// Every event there is.
    pub const ALL: &[Self] = &[
        Self::Accept,
        Self::Reject,
        Self::Begin,
        Self::Prepare,
        Self::Commit,
        Self::Fail,
        Self::Lose,
        Self::Cancel,
        Self::Stopped,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "be accepted",
            Self::Reject => "be rejected",
            Self::Begin => "begin",
            Self::Prepare => "prepare a manifest",
            Self::Commit => "commit",
            Self::Fail => "fail",
            Self::Lose => "be lost",
            Self::Cancel => "be cancelled",
            Self::Stopped => "stop",
        }
    }
}

impl AttemptState {
    /// Whether nothing can happen to it any more.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Rejected | Self::Committed | Self::Failed | Self::Lost | Self::Cancelled)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalMove`] where `event` cannot happen in this state.
    pub fn apply(self, event: AttemptEvent) -> Result<Self, IllegalMove> {
        use AttemptEvent as E;
        let illegal =
            || IllegalMove { noun: "the attempt", from: self.as_str(), event: event.as_str().to_owned() };
        match (self, event) {
            (Self::Offered | Self::Accepted, E::Accept) => Ok(Self::Accepted),
            (Self::Running | Self::Preparing | Self::Cancelling, E::Accept) => Ok(self), // answered late
            (Self::Offered, E::Reject) => Ok(Self::Rejected),
            (Self::Cancelling, E::Reject) => Ok(Self::Cancelled),
            // From preparing as well: the session was lost before the manifest arrived, and the agent seals it anew.
            (Self::Offered | Self::Accepted | Self::Running | Self::Preparing, E::Begin) => Ok(Self::Running),
            (Self::Running | Self::Preparing, E::Prepare) => Ok(Self::Preparing),
            (Self::Preparing, E::Commit) => Ok(Self::Committed),
            (Self::Offered | Self::Accepted | Self::Running | Self::Preparing, E::Fail) => Ok(Self::Failed),
            (Self::Offered | Self::Accepted | Self::Running | Self::Preparing, E::Lose) => Ok(Self::Lost),
            (Self::Offered | Self::Accepted | Self::Running | Self::Cancelling, E::Cancel) => {
                Ok(Self::Cancelling)
            }
            (Self::Cancelling, E::Fail | E::Lose | E::Stopped) => Ok(Self::Cancelled),
            // The agent itself was stopped by its host's admin.
            (Self::Offered | Self::Accepted | Self::Running, E::Stopped) => Ok(Self::Cancelled),
            (Self::Offered, E::Prepare | E::Commit)
            | (Self::Accepted, E::Reject | E::Prepare | E::Commit)
            | (Self::Running, E::Reject | E::Commit)
            | (Self::Preparing, E::Reject | E::Cancel | E::Stopped)
            | (Self::Cancelling, E::Begin | E::Prepare | E::Commit)
            | (Self::Rejected | Self::Committed | Self::Failed | Self::Lost | Self::Cancelled, _) => {
                Err(illegal())
            }
        }
    }
}

/// What can happen to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEvent {
    /// Its own start has come.
    Queue,
    /// An attempt was offered.
    Start,
    /// The attempt committed a backup.
    Committed {
        /// It lacks something.
        partial: bool,
    },
    /// The attempt ended without one.
    Unsuccessful {
        /// Whether another attempt is to be made.
        retry: bool,
    },
    /// The attempt ended because somebody wanted it to.
    Stopped,
    /// Somebody wants the run to end.
    Cancel,
    /// Its window ended before an attempt, or the next one, could start.
    Miss,
    /// There is a reason not to start it.
    Skip,
    /// Its policy changed, or is no longer the source's.
    Supersede,
}

impl RunEvent {
    /// Every event there is.
    pub const ALL: &[Self] = &[
        Self::Queue,
        Self::Start,
        Self::Committed { partial: false },
        Self::Committed { partial: true },
        Self::Unsuccessful { retry: true },
        Self::Unsuccessful { retry: false },
        Self::Stopped,
        Self::Cancel,
        Self::Miss,
        Self::Skip,
        Self::Supersede,
    ];
}

impl RunState {
    /// Whether nothing can happen to it any more.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Scheduled | Self::Queued | Self::Active | Self::Backoff)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalMove`] where `event` cannot happen in this state.
    pub fn apply(self, event: RunEvent) -> Result<Self, IllegalMove> {
        use RunEvent as E;
        let illegal = || {
            let event = match event {
                E::Queue => "be queued",
                E::Start => "start an attempt",
                E::Committed { .. } => "commit",
                E::Unsuccessful { .. } => "fail",
                E::Stopped => "stop",
                E::Cancel => "be cancelled",
                E::Miss => "be missed",
                E::Skip => "be skipped",
                E::Supersede => "be superseded",
            };
            IllegalMove { noun: "the run", from: self.as_str(), event: event.to_owned() }
        };
        match (self, event) {
            (Self::Scheduled | Self::Queued, E::Queue) => Ok(Self::Queued),
            (Self::Queued | Self::Backoff, E::Start) => Ok(Self::Active),
            (Self::Scheduled | Self::Queued | Self::Backoff, E::Cancel) => Ok(Self::Cancelled),
            (Self::Scheduled | Self::Queued, E::Miss) => Ok(Self::Missed),
            (Self::Scheduled | Self::Queued, E::Skip) => Ok(Self::Skipped),
            (Self::Scheduled | Self::Queued, E::Supersede) => Ok(Self::Superseded),
            // It was tried: that it is not tried again makes it failed.
            (Self::Backoff, E::Miss) => Ok(Self::Failed),
            (Self::Active, E::Committed { partial: false }) => Ok(Self::Succeeded),
            (Self::Active, E::Committed { partial: true }) => Ok(Self::Partial),
            (Self::Active, E::Unsuccessful { retry: true }) => Ok(Self::Backoff),
            (Self::Active, E::Unsuccessful { retry: false }) => Ok(Self::Failed),
            (Self::Active, E::Stopped) => Ok(Self::Cancelled),
            // The attempt is told to stop; the run ends when it has.
            (Self::Active, E::Cancel) => Ok(Self::Active),
            (Self::Scheduled, E::Start)
            | (Self::Active, E::Start)
            | (Self::Active | Self::Backoff, E::Queue | E::Skip | E::Supersede)
            | (Self::Active, E::Miss)
            | (
                Self::Scheduled | Self::Queued | Self::Backoff,
                E::Committed { .. } | E::Unsuccessful { .. } | E::Stopped,
            )
            | (
                Self::Succeeded
                | Self::Partial
                | Self::Failed
                | Self::Cancelled
                | Self::Missed
                | Self::Skipped
                | Self::Superseded,
                _,
            ) => Err(illegal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of state and event; `.` is illegal. Columns: accept reject begin prepare commit fail lose cancel stopped.
    const ATTEMPTS: &str = "
        offered    accepted   rejected  running .         .         failed    lost      cancelling cancelled
        accepted   accepted   .         running .         .         failed    lost      cancelling cancelled
        rejected   .          .         .       .         .         .         .         .          .
        running    running    .         running preparing .         failed    lost      cancelling cancelled
        preparing  preparing  .         running preparing committed failed    lost      .          .
        committed  .          .         .       .         .         .         .         .          .
        failed     .          .         .       .         .         .         .         .          .
        lost       .          .         .       .         .         .         .         .          .
        cancelling cancelling cancelled .       .         .         cancelled cancelled cancelling cancelled
        cancelled  .          .         .       .         .         .         .         .          .";

    /// Columns: queue, start, committed whole, committed partial, failed with retry, failed without, stopped, cancel, miss,
    /// skip, supersede.
    const RUNS: &str = "
        scheduled  queued .      .         .       .       .      .         cancelled missed skipped superseded
        queued     queued active .         .       .       .      .         cancelled missed skipped superseded
        active     .      .      succeeded partial backoff failed cancelled active    .      .       .
        backoff    .      active .         .       .       .      .         cancelled failed .       .
        succeeded  .      .      .         .       .       .      .         .         .      .       .
        partial    .      .      .         .       .       .      .         .         .      .       .
        failed     .      .      .         .       .       .      .         .         .      .       .
        cancelled  .      .      .         .       .       .      .         .         .      .       .
        missed     .      .      .         .       .       .      .         .         .      .       .
        skipped    .      .      .         .       .       .      .         .         .      .       .
        superseded .      .      .         .       .       .      .         .         .      .       .";

    fn rows(table: &'static str) -> Vec<Vec<&'static str>> {
        table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn every_attempt_state_meets_every_event() {
        let table = rows(ATTEMPTS);
        assert_eq!(table.len(), AttemptState::ALL.len());
        for (row, &state) in table.iter().zip(AttemptState::ALL) {
            assert_eq!(row[0], state.as_str());
            for (want, &event) in row[1..].iter().zip(AttemptEvent::ALL) {
                let got = state.apply(event).map_or(".", AttemptState::as_str);
                assert_eq!(&got, want, "{state} {event:?}");
                assert!(!state.is_over() || got == ".", "{state} is over");
            }
            assert_eq!(row.len(), 1 + AttemptEvent::ALL.len());
        }
    }

    #[test]
    fn every_run_state_meets_every_event() {
        let table = rows(RUNS);
        assert_eq!(table.len(), RunState::ALL.len());
        for (row, &state) in table.iter().zip(RunState::ALL) {
            assert_eq!(row[0], state.as_str());
            assert_eq!(row.len(), 1 + RunEvent::ALL.len());
            for (want, &event) in row[1..].iter().zip(RunEvent::ALL) {
                let got = state.apply(event).map_or(".", RunState::as_str);
                assert_eq!(&got, want, "{state} {event:?}");
                assert!(!state.is_over() || got == ".", "{state} is over");
            }
        }
    }

    #[test]
    fn an_illegal_move_names_state_and_event() {
        let error = AttemptState::Preparing.apply(AttemptEvent::Cancel).unwrap_err();
        assert_eq!(error.to_string(), "the attempt is preparing: it cannot be cancelled");
    }
}
