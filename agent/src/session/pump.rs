//! Carries the messages of one session until it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use sealift_common::lifecycle::Lifecycle;
use sealift_common::protocol::Feature;
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as Up;
use sealift_proto::v1::coordinator_message::Message as Down;

use super::error::describe;
use super::open::OpenSession;
use super::speak::understood;
use crate::agent::Agent;
use crate::attempt::Attempts;
use crate::identity::Identity;

/// How long a message may wait for room in the queue before the session counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A busy session moves to a new certificate when the old one has only this left.
const MOVE_AT_LAST: Duration = Duration::from_secs(60);

/// Why a session ended.
pub enum Ended {
    /// The agent stops.
    Stopped,
    /// The coordinator wants this host to come back, here or elsewhere, spread over `jitter`.
    AskedToReconnect {
        /// Wait a random part of this.
        jitter: Duration,
    },
    /// There is a new certificate, and now is a good time to use it; or something that only Hello can say.
    Moves,
    /// It broke.
    Lost(String),
}

/// Runs the session.
pub async fn pump(
    session: &mut OpenSession,
    agent: &Arc<Agent>,
    attempts: &Arc<Attempts>,
    lifecycle: &Lifecycle,
    identity: &mut watch::Receiver<Arc<Identity>>,
) -> Ended {
    let mut config = agent.config.subscribe();
    let mut heartbeat = tokio::time::interval(session.heartbeat);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let outgoing = session.connection.outgoing.clone();
    loop {
        let up = tokio::select! {
            () = lifecycle.hard.cancelled() => return Ended::Stopped,
            () = attempts.wait_stopped(lifecycle) => return Ended::Stopped,
            message = session.incoming.message() => match message {
                Ok(Some(v1::CoordinatorMessage { message: Some(message) })) => {
                    let Some(message) = understood(message, session.features) else { continue };
                    match receive(message, agent, attempts, &outgoing) {
                        Received::Nothing => continue,
                        Received::Answer(up) => *up,
                        Received::End(ended) => return ended,
                    }
                }
                // A kind of message that this version does not know.
                Ok(Some(_)) => continue,
                Ok(None) => return Ended::Lost("the coordinator closed it".to_owned()),
                Err(status) => return Ended::Lost(describe(&status)),
            },
            _ = heartbeat.tick() => {
                if should_move(session, agent, attempts, identity) {
                    identity.mark_unchanged();
                    return Ended::Moves;
                }
                Up::Heartbeat(v1::Heartbeat { clock_ms: agent.clock.now().0 })
            }
            changed = config.changed() => match changed {
                Ok(()) if session.features.has(Feature::SourceList) => Up::Sources(agent.source_list()),
                // The next Hello says it.
                Ok(()) => return Ended::Moves,
                Err(_) => return Ended::Stopped,
            },
        };
        let sending = outgoing.send_timeout(v1::AgentMessage { message: Some(up) }, SEND_TIMEOUT);
        if sending.await.is_err() {
            return Ended::Lost("the coordinator does not take messages".to_owned());
        }
    }
}

enum Received {
    Nothing,
    Answer(Box<Up>),
    End(Ended),
}

fn receive(
    message: Down,
    agent: &Arc<Agent>,
    attempts: &Arc<Attempts>,
    outgoing: &mpsc::Sender<v1::AgentMessage>,
) -> Received {
    match message {
        Down::Offer(offer) => Received::Answer(Box::new(Up::OfferReply(attempts.offer(offer)))),
        Down::Cancel(cancel) => {
            attempts.cancel(&cancel);
            Received::Nothing
        }
        Down::TestSource(test) => {
            attempts.test_sources(test, outgoing.clone());
            Received::Nothing
        }
        Down::Reconnect(v1::Reconnect { jitter_ms, reason }) => {
            tracing::info!(reason, "the coordinator asks to reconnect");
            let jitter = Duration::from_millis(u64::from(jitter_ms.min(600_000)));
            Received::End(Ended::AskedToReconnect { jitter })
        }
        Down::Renew(_) => {
            agent.identity.renew_now();
            Received::Nothing
        }
        // A second welcome means nothing.
        Down::Welcome(_) => Received::Nothing,
    }
}

/// A new certificate is used when nothing runs, or when the old one will not do for much longer.
fn should_move(
    session: &OpenSession,
    agent: &Agent,
    attempts: &Attempts,
    identity: &watch::Receiver<Arc<Identity>>,
) -> bool {
    let pressing = session.certificate_until.since(agent.clock.now()) < MOVE_AT_LAST;
    identity.has_changed().unwrap_or(false) && (attempts.is_idle() || pressing)
}
