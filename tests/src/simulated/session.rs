//! Keeps a simulated host's session open, as `agent/src/session/` does: full jitter, capped; the next coordinator of the list
//! after each loss.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealift_common::clock::Clock;
use sealift_common::id::{InstanceId, Random};
use sealift_common::protocol::Spoken;
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as Up;
use sealift_proto::v1::coordinator_message::Message as Down;
use sealift_proto::v1::session_client::SessionClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::figures::Call;
use super::host::{Host, Link};
use super::wire;

/// The agent's own figures.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const GOOD: Duration = Duration::from_secs(30);
const OUTGOING: usize = 64;
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps a session up.
pub(super) async fn keep(host: &Arc<Host>, instance: InstanceId, life: &CancellationToken) -> Infallible {
    let random = &host.world.options.random;
    let mut waits = Waits { cap: LONGEST_WAIT, tries: 0 };
    let mut number = 0;
    loop {
        let coordinator = &host.coordinators[usize::try_from(number).unwrap_or(0) % host.coordinators.len()];
        number += 1;
        let started = Instant::now();
        let opening = tokio::time::timeout(WELCOME_TIMEOUT, open(host, instance, coordinator, number)).await;
        let wait = match opening.unwrap_or_else(|_| Err("no welcome in time".to_owned())) {
            Ok(session) => {
                host.world.figures.took(Call::Open, started);
                waits.cap = session.cap;
                let since = Instant::now();
                let ended = hold(host, session, life).await;
                host.link.send_replace(None);
                if since.elapsed() >= GOOD {
                    waits.tries = 0;
                }
                match ended {
                    Ended::Asked(jitter) => jitter.mul_f64(random.fraction()),
                    Ended::Lost(why) => {
                        host.world.figures.session_lost(&why);
                        waits.next(random)
                    }
                }
            }
            Err(why) => {
                host.world.figures.session_lost(&why);
                waits.next(random)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The agent's back-off.
struct Waits {
    cap: Duration,
    tries: u32,
}

impl Waits {
    fn next(&mut self, random: &Random) -> Duration {
        let longest =
            FIRST_WAIT.saturating_mul(1u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.cap);
        self.tries = self.tries.saturating_add(1).min(31);
        longest.mul_f64(random.fraction())
    }
}

struct Session {
    link: Link,
    incoming: Streaming<v1::CoordinatorMessage>,
    heartbeat: Duration,
    cap: Duration,
}

enum Ended {
    Asked(Duration),
    Lost(String),
}

async fn open(
    host: &Host,
    instance: InstanceId,
    coordinator: &url::Url,
    number: u64,
) -> Result<Session, String> {
    let channel = wire::connect(coordinator, host.tls.clone(), host.from).await?;
    let (outgoing, waiting) = mpsc::channel(OUTGOING);
    let hello = v1::AgentMessage { message: Some(Up::Hello(hello(host, instance))) };
    outgoing.try_send(hello).map_err(|error| error.to_string())?;
    let said = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
    let opened = SessionClient::new(channel.clone()).open(ReceiverStream::new(waiting)).await;
    let mut incoming = opened.map_err(said)?.into_inner();
    let Some(Down::Welcome(welcome)) = incoming.message().await.map_err(said)?.and_then(|m| m.message) else {
        return Err("the first message is not a welcome".to_owned());
    };
    host.welcomed(&welcome.lost);
    let within = |ms: u32, most: u64| Duration::from_millis(u64::from(ms).clamp(1_000, most));
    Ok(Session {
        link: Link { number, channel, outgoing },
        incoming,
        heartbeat: within(welcome.heartbeat_ms, 60_000),
        cap: within(welcome.reconnect_cap_ms, 600_000),
    })
}

fn hello(host: &Host, instance: InstanceId) -> v1::Hello {
    let source = |name: &str| v1::SourceInfo {
        name: name.to_owned(),
        kind: "directory".to_owned(),
        detail: "/srv/simulated".to_owned(),
        ..Default::default()
    };
    v1::Hello {
        instance_id: instance.to_vec(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.name().to_owned(),
        timezone: "Etc/UTC".to_owned(),
        sources: Some(v1::SourceList { sources: host.sources.iter().map(|s| source(&s.name)).collect() }),
        attempts: host.attempt_states(),
        clock_ms: Clock::system().now().0,
        heads: Vec::new(),
        os: "simulated".to_owned(),
        ..Spoken::of_this_build().hello()
    }
}

/// Carries messages until the session ends.
async fn hold(host: &Arc<Host>, mut session: Session, life: &CancellationToken) -> Ended {
    let _connected = host.world.figures.opened();
    host.link.send_replace(Some(session.link.clone()));
    // Not all hosts in step.
    let first = session.heartbeat.mul_f64(host.world.options.random.fraction());
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + first, session.heartbeat);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let up = tokio::select! {
            () = host.cut.notified() => return Ended::Lost("cut by the test".to_owned()),
            message = session.incoming.message() => match message {
                Ok(Some(v1::CoordinatorMessage { message: Some(message) })) => match message {
                    Down::Offer(offer) => Up::OfferReply(host.offered(offer, life)),
                    Down::Cancel(cancel) => {
                        host.cancelled(&cancel.attempt.unwrap_or_default());
                        continue;
                    }
                    Down::TestSource(test) => Up::SourceTest(tested(host, test)),
                    Down::Reconnect(v1::Reconnect { jitter_ms, .. }) => {
                        return Ended::Asked(Duration::from_millis(jitter_ms.into()));
                    }
                    Down::Renew(_) | Down::Welcome(_) => continue,
                },
                Ok(Some(_)) => continue,
                Ok(None) => return Ended::Lost("the coordinator closed the session".to_owned()),
                Err(status) => return Ended::Lost(format!("{:?}: {}", status.code(), status.message())),
            },
            _ = heartbeat.tick() => Up::Heartbeat(v1::Heartbeat { clock_ms: Clock::system().now().0 }),
        };
        if session.link.outgoing.send(v1::AgentMessage { message: Some(up) }).await.is_err() {
            return Ended::Lost("the coordinator does not take messages".to_owned());
        }
    }
}

fn tested(host: &Host, test: v1::TestSource) -> v1::SourceTestResult {
    let wanted = host.sources.iter().filter(|source| test.source.is_empty() || source.name == test.source);
    let check = |name: &str| v1::SourceCheck { source: name.to_owned(), ok: true, ..Default::default() };
    let checks = wanted.map(|source| check(&source.name)).collect();
    v1::SourceTestResult { request_id: test.request_id, checks, last: true }
}
