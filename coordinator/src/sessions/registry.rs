//! Who is connected here, and the bounded queue to each.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::crypto::EpochId;
use sealift_common::id::{AgentId, InstanceId, RequestId, SeriesId};
use sealift_common::name::Name;
use sealift_common::protocol::{Feature, Features};
use tokio::sync::{mpsc, watch};

use crate::runs::AttemptRef;
use crate::runs::limits::OfferLimits;

/// Most commands that wait for one agent to take them.
const QUEUE: usize = 64;

/// What the coordinator tells an agent; the wire's `CoordinatorMessage`, apart from `Welcome`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make a backup.
    Offer {
        /// Under this name and fence.
        attempt: AttemptRef,
        /// Into this series.
        series: SeriesId,
        /// Of this source.
        source: Name,
        /// As its policy says.
        limits: OfferLimits,
        /// As part of this trace; may be empty.
        trace_parent: String,
        /// A dedup epoch that it must not build upon.
        leave_epoch: Option<EpochId>,
    },
    /// Stop working on an attempt.
    Cancel {
        /// Which.
        attempt: AttemptRef,
        /// Why.
        reason: String,
    },
    /// Test one source, or all.
    TestSource {
        /// Names the answers.
        request: RequestId,
        /// Which; `None` for all.
        source: Option<Name>,
    },
    /// Come back later, perhaps elsewhere.
    Reconnect {
        /// Why.
        reason: String,
    },
}

impl Command {
    /// As it is told to an agent that speaks so: without what it does not understand. `None` where that is all of it.
    fn spoken_to(self, features: Features) -> Option<Self> {
        match self {
            Self::Offer { attempt, series, source, limits, trace_parent, leave_epoch } => Some(Self::Offer {
                attempt,
                series,
                source,
                limits: if features.has(Feature::Limits) { limits } else { OfferLimits::default() },
                trace_parent,
                leave_epoch: leave_epoch.filter(|_| features.has(Feature::LeaveEpoch)),
            }),
            Self::TestSource { .. } => features.has(Feature::SourceTest).then_some(self),
            Self::Reconnect { .. } => features.has(Feature::Reconnect).then_some(self),
            Self::Cancel { .. } => Some(self),
        }
    }
}

/// Why a session was closed from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// The same agent opened a newer one.
    Replaced,
    /// The agent may not be here any more.
    Revoked,
    /// It was silent for too long.
    Silent,
    /// Its queue ran full: it does not listen.
    Deaf,
    /// It is to come back, and cannot be asked to.
    Moved,
    /// The coordinator stops.
    Stopping,
}

/// One session, as the registry knows it.
#[derive(Debug)]
pub struct SessionEntry {
    number: u64,
    /// Counts the agent's sessions on all coordinators.
    epoch: u64,
    /// The agent's process.
    pub instance: InstanceId,
    /// From where.
    pub address: SocketAddr,
    /// What both sides can do.
    features: Features,
    // Boxed: a channel keeps room for 32 of what it carries, for each host.
    commands: mpsc::Sender<Box<Command>>,
    closed: watch::Sender<Option<Closed>>,
    heard: AtomicI64,
}

/// The receiving end of a session: held by whoever serves the stream.
#[derive(Debug)]
pub struct SessionEnd {
    /// Names this session among those of its agent.
    pub number: u64,
    /// What to tell the agent.
    pub commands: mpsc::Receiver<Box<Command>>,
    /// Becomes `Some` when the session is to end.
    pub closed: watch::Receiver<Option<Closed>>,
}

/// Who is connected to this process.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: Mutex<HashMap<AgentId, SessionEntry>>,
    numbers: AtomicU64,
    elsewhere: Mutex<HashSet<AgentId>>,
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AgentId, SessionEntry>> {
        self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Registers a session; an older one of the same agent, as their epochs say, is closed.
    pub fn open(
        &self,
        agent: AgentId,
        epoch: u64,
        instance: InstanceId,
        features: Features,
        address: SocketAddr,
        now: UnixMillis,
    ) -> SessionEnd {
        let (commands, command_receiver) = mpsc::channel(QUEUE);
        let (closed, closed_receiver) = watch::channel(None);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let heard = AtomicI64::new(now.0);
        let entry = SessionEntry { number, epoch, instance, address, features, commands, closed, heard };
        let mut sessions = self.lock();
        let older = match sessions.get(&agent) {
            Some(newer) if newer.epoch > epoch => Some(entry),
            _ => sessions.insert(agent, entry),
        };
        if let Some(older) = older {
            older.closed.send_replace(Some(Closed::Replaced));
        }
        SessionEnd { number, commands: command_receiver, closed: closed_receiver }
    }

    /// Forgets a session that ended, unless a newer one has taken its place.
    pub fn ended(&self, agent: AgentId, number: u64) {
        let mut sessions = self.lock();
        if sessions.get(&agent).is_some_and(|entry| entry.number == number) {
            sessions.remove(&agent);
        }
    }

    /// Closes an agent's session, if it has one here.
    pub fn close(&self, agent: AgentId, why: Closed) {
        if let Some(entry) = self.lock().remove(&agent) {
            entry.closed.send_replace(Some(why));
        }
    }

    /// Closes an agent's session here, if it is older than this one.
    pub fn close_below(&self, agent: AgentId, epoch: u64) {
        let mut sessions = self.lock();
        if sessions.get(&agent).is_some_and(|entry| entry.epoch < epoch)
            && let Some(entry) = sessions.remove(&agent)
        {
            entry.closed.send_replace(Some(Closed::Replaced));
        }
    }

    /// Whether an agent's session of this epoch is here.
    pub fn holds(&self, agent: AgentId, epoch: u64) -> bool {
        self.lock().get(&agent).is_some_and(|entry| entry.epoch == epoch)
    }

    /// The epoch of each session here.
    pub fn epochs(&self) -> Vec<(AgentId, u64)> {
        self.lock().iter().map(|(agent, entry)| (*agent, entry.epoch)).collect()
    }

    /// Remembers which agents are connected to other coordinators.
    pub fn set_elsewhere(&self, agents: HashSet<AgentId>) {
        *self.elsewhere.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = agents;
    }

    /// Whether an agent is connected to any coordinator, as far as this one knows.
    pub fn is_connected_anywhere(&self, agent: AgentId) -> bool {
        self.is_connected(agent)
            || self.elsewhere.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&agent)
    }

    /// How many agents are connected to any coordinator, as far as this one knows.
    pub fn count_anywhere(&self) -> usize {
        let elsewhere = self.elsewhere.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let here = self.lock();
        here.len() + elsewhere.iter().filter(|agent| !here.contains_key(agent)).count()
    }

    /// Tells an agent something. `false` where it is not connected here, or does not speak of such things; an agent whose
    /// queue is full is disconnected.
    pub fn send(&self, agent: AgentId, command: Command) -> bool {
        let mut sessions = self.lock();
        let Some(entry) = sessions.get(&agent) else { return false };
        let Some(command) = command.spoken_to(entry.features) else { return false };
        match entry.commands.try_send(Box::new(command)) {
            Ok(()) => true,
            Err(_) => {
                entry.closed.send_replace(Some(Closed::Deaf));
                sessions.remove(&agent);
                false
            }
        }
    }

    /// Everybody is to come back, here or elsewhere: who can be asked is asked, the others' sessions are closed.
    pub fn move_all(&self, reason: &str) {
        let command = Command::Reconnect { reason: reason.to_owned() };
        self.lock().retain(|_, entry| match command.clone().spoken_to(entry.features) {
            Some(command) => {
                // A full queue means that the agent does not listen: it finds out when the connection ends.
                let _ = entry.commands.try_send(Box::new(command));
                true
            }
            None => {
                entry.closed.send_replace(Some(Closed::Moved));
                false
            }
        });
    }

    /// Waits until nobody is connected any more; `false` where somebody still is after `patience`.
    pub async fn deserted(&self, patience: Duration) -> bool {
        let empty = async {
            while self.count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, empty).await.is_ok()
    }

    /// Closes all sessions.
    pub fn close_all(&self, why: &Closed) {
        for (_, entry) in self.lock().drain() {
            entry.closed.send_replace(Some(why.clone()));
        }
    }

    /// Records that an agent was heard of.
    pub fn heard(&self, agent: AgentId, now: UnixMillis) {
        if let Some(entry) = self.lock().get(&agent) {
            entry.heard.store(now.0, Ordering::Relaxed);
        }
    }

    /// Whether an agent is connected here.
    pub fn is_connected(&self, agent: AgentId) -> bool {
        self.lock().contains_key(&agent)
    }

    /// The process of an agent that is connected here.
    pub fn instance(&self, agent: AgentId) -> Option<InstanceId> {
        self.lock().get(&agent).map(|entry| entry.instance)
    }

    /// How many are connected here.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Who is connected here, and when each was last heard of.
    pub fn all(&self) -> Vec<(AgentId, UnixMillis)> {
        self.lock().iter().map(|(id, entry)| (*id, UnixMillis(entry.heard.load(Ordering::Relaxed)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealift_common::id::{Random, RunId};

    fn open(sessions: &Sessions, agent: AgentId, epoch: u64) -> SessionEnd {
        let instance = InstanceId::generate(&Random::from_seed(1));
        let address = "127.0.0.1:1".parse().unwrap();
        sessions.open(agent, epoch, instance, Features::all(), address, UnixMillis(0))
    }

    fn offer() -> Command {
        Command::Offer {
            attempt: AttemptRef { run: RunId::from_bytes([1; 16]), number: 1, generation: 1, epoch: 1 },
            series: SeriesId::from_bytes([1; 16]),
            source: "db".parse().unwrap(),
            limits: OfferLimits { bandwidth: Some(7), ..OfferLimits::default() },
            trace_parent: "t".to_owned(),
            leave_epoch: Some(EpochId::try_from(&[1; 16][..]).unwrap()),
        }
    }

    #[test]
    fn an_agent_is_told_only_what_it_understands() {
        let reason = || "test".to_owned();
        let test = Command::TestSource { request: RequestId::from_bytes([1; 16]), source: None };
        let Command::Offer { attempt, .. } = offer() else { unreachable!() };
        let cancel = Command::Cancel { attempt, reason: reason() };
        for command in [offer(), cancel.clone(), test.clone(), Command::Reconnect { reason: reason() }] {
            assert_eq!(command.clone().spoken_to(Features::all()), Some(command));
        }
        assert_eq!(cancel.clone().spoken_to(Features::NONE), Some(cancel));
        assert_eq!(test.spoken_to(Features::NONE), None);
        assert_eq!(Command::Reconnect { reason: reason() }.spoken_to(Features::NONE), None);
        let Some(Command::Offer { limits, leave_epoch, trace_parent, .. }) =
            offer().spoken_to(Features::NONE)
        else {
            panic!("every agent takes offers")
        };
        assert_eq!((limits, leave_epoch, trace_parent.as_str()), (OfferLimits::default(), None, "t"));
    }

    #[test]
    fn who_cannot_be_asked_to_move_is_made_to() {
        let (sessions, agent) = (Sessions::default(), |n| AgentId::from_bytes([n; 16]));
        let mut asked = open(&sessions, agent(1), 1);
        let (instance, address) = (InstanceId::from_bytes([1; 16]), "127.0.0.1:1".parse().unwrap());
        let closed = sessions.open(agent(2), 1, instance, Features::NONE, address, UnixMillis(0));
        sessions.move_all("test");
        assert_eq!(asked.commands.try_recv(), Ok(Box::new(Command::Reconnect { reason: "test".to_owned() })));
        assert_eq!(
            (asked.closed.borrow().clone(), closed.closed.borrow().clone()),
            (None, Some(Closed::Moved))
        );
        assert!(sessions.is_connected(agent(1)) && !sessions.is_connected(agent(2)));
    }

    #[test]
    fn the_newest_session_wins_and_the_older_ones_end_does_not_matter() {
        let (sessions, agent) = (Sessions::default(), AgentId::from_bytes([1; 16]));
        let older = open(&sessions, agent, 1);
        let mut newer = open(&sessions, agent, 3);
        assert_eq!(*older.closed.borrow(), Some(Closed::Replaced));
        // What was opened before, and comes to be registered after.
        assert_eq!(*open(&sessions, agent, 2).closed.borrow(), Some(Closed::Replaced));
        sessions.close_below(agent, 3);
        assert_eq!(*newer.closed.borrow(), None);
        sessions.ended(agent, older.number);
        assert!(sessions.send(agent, Command::Reconnect { reason: "test".into() }));
        assert!(newer.commands.try_recv().is_ok());
        sessions.close(agent, Closed::Revoked);
        assert_eq!(*newer.closed.borrow(), Some(Closed::Revoked));
        assert!(!sessions.is_connected(agent));
    }

    #[test]
    fn an_agent_that_does_not_listen_is_disconnected() {
        let (sessions, agent) = (Sessions::default(), AgentId::from_bytes([1; 16]));
        let session = open(&sessions, agent, 1);
        let sent = (0..QUEUE + 1)
            .filter(|_| sessions.send(agent, Command::Reconnect { reason: String::new() }))
            .count();
        assert_eq!(sent, QUEUE);
        assert_eq!(*session.closed.borrow(), Some(Closed::Deaf));
    }
}
