//! The stream that every agent holds open.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, RequestId};
use sealift_common::protocol::Spoken;
use sealift_proto::v1;
use sealift_proto::v1::agent_message::Message as FromAgent;
use sealift_proto::v1::coordinator_message::Message as ToAgent;
use sealift_proto::v1::session_server::Session;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Gate, convert};
use crate::audit::{Action, Details, OpContext};
use crate::identity::Identities;
use crate::runs::limits::OfferLimits;
use crate::runs::{Progress, Report, RunError};
use crate::sessions::checks::{CheckAnswer, Checks, SourceCheck};
use crate::sessions::hello::MAX_SOURCES;
use crate::sessions::registry::SessionEnd;
use crate::sessions::{Closed, Command, Hello, SaidAttempt, SaidEnd, SaidHead, SaidSource, SessionService};

/// How long an agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait for the network.
const QUEUE: usize = 16;
/// Longest text that an agent sends for people, in characters.
const MAX_TEXT: usize = 500;
/// When to renew: at this part of a certificate's life.
const RENEW_AT: f64 = 0.7;
/// Agents come back within this time after they were asked to.
const RECONNECT_JITTER_MS: u32 = 5_000;

/// Sessions. Cheap to clone: each of them holds one.
#[derive(Debug, Clone)]
pub struct SessionApi(Arc<SessionParts>);

/// What sessions need.
#[derive(Debug)]
pub struct SessionParts {
    /// Who calls.
    pub gate: Gate,
    /// What does the work.
    pub sessions: SessionService,
    /// How long certificates live.
    pub identities: Identities,
    /// Tests of sources that are under way.
    pub checks: Arc<Checks>,
}

impl From<SessionParts> for SessionApi {
    fn from(parts: SessionParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for SessionApi {
    type Target = SessionParts;

    fn deref(&self) -> &SessionParts {
        &self.0
    }
}

/// Boxed, for the same reason as the registry's commands.
type Outgoing = mpsc::Sender<Box<Result<v1::CoordinatorMessage, Status>>>;

#[tonic::async_trait]
impl Session for SessionApi {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let ctx = self.gate.context(&request).await?;
        ctx.authorize(Action::SessionOpen, &"session").await?;
        let agent = ctx.operation(Action::SessionOpen, "session", Details::none()).agent()?;
        let Some(address) = ctx.address() else {
            return Err(Status::internal("a session without an address"));
        };
        let mut incoming = request.into_inner();
        let wire = self.gate.read(&ctx, Action::SessionOpen, first(&mut incoming).await).await?;
        let agreed = self.sessions.agree(&ctx, &wire.agent_version, &Spoken::from(&wire)).await?;
        let hello = self.gate.read(&ctx, Action::SessionOpen, parse_hello(wire)).await?;
        let welcome = self.sessions.hello(&ctx, &hello, &agreed).await?;

        let (outgoing, receiver) = mpsc::channel(QUEUE);
        let now = self.sessions.core.clock.now();
        let (instance, features) = (hello.instance, agreed.features);
        let end = self.sessions.registry.open(agent, welcome.epoch, instance, features, address, now);
        let reply = v1::Welcome {
            clock_ms: now.0,
            heartbeat_ms: millis(self.sessions.settings.heartbeat),
            reconnect_cap_ms: millis(self.sessions.settings.reconnect_cap),
            lost: welcome.lost.iter().map(convert::attempt_ref_to_wire).collect(),
            certificate_renew_after_ms: now.plus(self.identities.settings().agent_life.mul_f64(RENEW_AT)).0,
            ..agreed.welcome()
        };
        let mut greetings = vec![ToAgent::Welcome(reply)];
        greetings.extend(welcome.cancelling.into_iter().map(|attempt| {
            to_wire(Command::Cancel {
                attempt,
                reason: "the run was cancelled while this host was away".to_owned(),
            })
        }));
        let protocol = agreed.version;
        tracing::info!(%agent, %address, version = hello.version, %protocol, "an agent has connected");
        let session = Live { api: self.clone(), ctx, agent, epoch: welcome.epoch, outgoing };
        tokio::spawn(session.serve(incoming, end, greetings));
        // What may have waited for this agent.
        self.sessions.runs.wake();
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|message| *message))))
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

async fn first(incoming: &mut Streaming<v1::AgentMessage>) -> Result<v1::Hello, Status> {
    let silent = |_| Status::deadline_exceeded("the first message must be Hello, within 10 s");
    let message = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await.map_err(silent)??;
    match message.and_then(|m| m.message) {
        Some(FromAgent::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be Hello")),
    }
}

#[allow(clippy::result_large_err)]
fn parse_hello(hello: v1::Hello) -> Result<Hello, Status> {
    let speaks = Spoken::from(&hello);
    let attempt = |said: v1::AttemptState| {
        let ended = match said.phase() {
            v1::AttemptPhase::Running => None,
            v1::AttemptPhase::Interrupted if said.failed => Some(SaidEnd::Failed {
                report: convert::report(said.failure, said.stderr, said.retryable),
                stopped: said.cancelled,
            }),
            v1::AttemptPhase::Interrupted => Some(SaidEnd::Interrupted(short(&said.failure))),
            v1::AttemptPhase::Unspecified => return Err(convert::bad_field("attempts.phase", "is missing")),
        };
        Ok(SaidAttempt { attempt: convert::attempt_ref(said.attempt)?, ended })
    };
    let head = |said: &v1::SeriesHead| -> Result<SaidHead, Status> {
        Ok(SaidHead {
            series: convert::bytes("heads.series_id", &said.series_id)?,
            sequence: said.sequence,
            manifest: convert::bytes("heads.manifest_sha256", &said.manifest_sha256)?,
        })
    };
    Ok(Hello {
        instance: convert::bytes("instance_id", &hello.instance_id)?,
        version: hello.agent_version,
        speaks,
        os: hello.os,
        timezone: hello.timezone,
        clock: (hello.clock_ms != 0).then_some(UnixMillis(hello.clock_ms)),
        host: short(&hello.host),
        sources: parse_sources(hello.sources.unwrap_or_default())?,
        attempts: hello.attempts.into_iter().map(attempt).collect::<Result<_, _>>()?,
        heads: hello.heads.iter().take(MAX_SOURCES).map(head).collect::<Result<_, _>>()?,
    })
}

#[allow(clippy::result_large_err)]
fn parse_sources(list: v1::SourceList) -> Result<Vec<SaidSource>, Status> {
    if list.sources.len() > MAX_SOURCES {
        return Err(convert::bad_field("sources", format!("at most {MAX_SOURCES}")));
    }
    let source = |said: v1::SourceInfo| {
        Ok(SaidSource {
            name: convert::text("sources.name", &said.name)?,
            kind: short(&said.kind),
            detail: short(&said.detail),
            credential_origins: said.credential_origins.iter().take(16).map(|origin| short(origin)).collect(),
            epoch: match said.epoch_id.as_slice() {
                [] => None,
                epoch => Some(convert::bytes("sources.epoch_id", epoch)?),
            },
        })
    };
    list.sources.into_iter().map(source).collect()
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// A session that is open.
struct Live {
    api: SessionApi,
    ctx: OpContext,
    agent: AgentId,
    epoch: u64,
    outgoing: Outgoing,
}

impl Live {
    async fn serve(
        self,
        mut incoming: Streaming<v1::AgentMessage>,
        mut end: SessionEnd,
        greetings: Vec<ToAgent>,
    ) {
        let number = end.number;
        let why = self.pump(&mut incoming, &mut end, greetings).await;
        self.api.sessions.registry.ended(self.agent, number);
        tracing::info!(agent = %self.agent, why = why.as_ref().map_or("the agent left", Status::message), "a session ended");
        if let Some(status) = why {
            // The agent is gone already: nobody to tell.
            let _ = self.outgoing.try_send(Box::new(Err(status)));
        }
        if let Err(error) = Box::pin(self.api.sessions.presence.closed(self.agent, self.epoch)).await {
            // The next comparison finds it.
            tracing::warn!(error = &error as &dyn std::error::Error, agent = %self.agent, "cannot record the end of a session");
        }
    }

    /// Carries messages both ways until the session ends; says why, where the agent does not know.
    async fn pump(
        &self,
        incoming: &mut Streaming<v1::AgentMessage>,
        end: &mut SessionEnd,
        greetings: Vec<ToAgent>,
    ) -> Option<Status> {
        for greeting in greetings {
            self.tell(greeting).await?;
        }
        let silence = self.api.sessions.settings.silence();
        loop {
            // One arm at a time: what an agent says is taken in before the next of its words is read.
            let mut stop_waiting = end.closed.clone();
            tokio::select! {
                biased;
                () = async { drop(stop_waiting.wait_for(Option::is_some).await) } => return closed(end),
                command = end.commands.recv() => match command {
                    Some(command) => self.tell(to_wire(*command)).await?,
                    None => return closed(end),
                },
                message = tokio::time::timeout(silence, incoming.message()) => match message {
                    Err(_) => return Some(Status::deadline_exceeded("nothing was heard of the agent for too long")),
                    Ok(Ok(Some(v1::AgentMessage { message: Some(message) }))) => {
                        self.api.sessions.registry.heard(self.agent, self.api.sessions.core.clock.now());
                        // Boxed: what is done once in a while is not to be kept room for in every session.
                        let take = async {
                            let taken = self.take(message).await;
                            self.api.gate.read(&self.ctx, Action::SessionOpen, taken).await
                        };
                        if let Err(status) = Box::pin(take).await {
                            return Some(status);
                        }
                    }
                    Ok(Ok(Some(v1::AgentMessage { message: None }))) => {} // of a newer agent
                    Ok(Ok(None) | Err(_)) => return None,
                },
            }
        }
    }

    /// `None`, by `?`, ends the session: the agent does not take messages any more.
    async fn tell(&self, message: ToAgent) -> Option<()> {
        let message = v1::CoordinatorMessage { message: Some(message) };
        let sent = tokio::time::timeout(
            self.api.sessions.settings.silence(),
            self.outgoing.send(Box::new(Ok(message))),
        );
        sent.await.ok()?.ok()
    }

    async fn take(&self, message: FromAgent) -> Result<(), Status> {
        let runs = &self.api.sessions.runs;
        match message {
            FromAgent::Heartbeat(_) => Ok(()),
            FromAgent::Hello(_) => Err(Status::invalid_argument("Hello comes first, and once")),
            FromAgent::Sources(list) => {
                Ok(self.api.sessions.sources_changed(&self.ctx, &parse_sources(list)?).await?)
            }
            FromAgent::OfferReply(reply) => {
                let rejected = (!reply.accepted).then(|| rejection(&reply));
                let attempt = convert::attempt_ref(reply.attempt)?;
                tolerate(runs.answered(&self.ctx, &attempt, rejected).await)
            }
            FromAgent::Progress(wire) => {
                let attempt = convert::attempt_ref(wire.attempt)?;
                let progress = Progress {
                    raw_bytes: wire.raw_bytes,
                    new_raw_bytes: wire.new_raw_bytes,
                    stored_bytes: wire.stored_bytes,
                    packs: wire.packs,
                    stage: short(&wire.stage),
                    expected_raw_bytes: wire.expected_raw_bytes,
                    log_line: short(&wire.log_line),
                    spooled_bytes: wire.spooled_bytes,
                };
                tolerate(runs.take_progress(self.agent, &attempt, progress).await)
            }
            FromAgent::SourceTest(result) => {
                let request: RequestId = convert::bytes("source_test.request_id", &result.request_id)?;
                let check = |check: v1::SourceCheck| SourceCheck {
                    source: short(&check.source),
                    ok: check.ok,
                    detail: short(&check.detail),
                    tool_version: short(&check.tool_version),
                    server_version: short(&check.server_version),
                };
                let checks = result.checks.into_iter().take(MAX_SOURCES).map(check).collect();
                let answer = CheckAnswer { checks, last: result.last };
                Ok(self.api.sessions.relay.tested(&self.api.checks, self.agent, request, answer).await?)
            }
        }
    }
}

/// Late words about attempts that are over are no reason to end a session; a database that fails is.
#[allow(clippy::result_large_err)]
fn tolerate(outcome: Result<(), RunError>) -> Result<(), Status> {
    match outcome {
        Err(error @ RunError::Store(_)) => Err(error.into()),
        Err(error) => {
            tracing::info!(%error, "a late word of an agent was dropped");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn rejection(reply: &v1::OfferReply) -> Report {
    let (why, retryable) = match reply.reject() {
        v1::RejectReason::Busy => ("another backup of this source runs on the host", true),
        v1::RejectReason::UnknownSource => ("the host does not have this source any more", false),
        v1::RejectReason::StateDiskFull => ("the disk with the agent's state is full", true),
        v1::RejectReason::NoTrustPolicy => ("the host has no trust policy that it can verify", false),
        v1::RejectReason::Unspecified => ("the host refused", true),
    };
    let reason = short(&reply.reason);
    let error = if reason.is_empty() { why.to_owned() } else { format!("{why}: {reason}") };
    Report { error, retryable, ..Report::default() }
}

fn closed(end: &SessionEnd) -> Option<Status> {
    let why = end.closed.borrow().clone();
    Some(match why {
        Some(Closed::Replaced) => Status::aborted("this agent has opened a newer session"),
        Some(Closed::Revoked) => Status::permission_denied("this agent was revoked"),
        Some(Closed::Silent) => Status::deadline_exceeded("nothing was heard of the agent for too long"),
        Some(Closed::Deaf) => Status::resource_exhausted("the agent does not take what it is sent"),
        Some(Closed::Moved) => Status::unavailable("the coordinator asks you to come back"),
        Some(Closed::Stopping) | None => Status::unavailable("the coordinator stops; try again"),
    })
}

fn limits_to_wire(limits: &OfferLimits) -> v1::Limits {
    let ms =
        |span: Option<Duration>| span.map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    v1::Limits {
        bandwidth_bytes_per_s: limits.bandwidth.unwrap_or(0),
        stall_timeout_ms: ms(limits.stall_timeout),
        max_duration_ms: ms(limits.max_duration),
        compression_level: limits.compression.unwrap_or(0),
    }
}

fn to_wire(command: Command) -> ToAgent {
    match command {
        Command::Offer { attempt, series, source, limits, trace_parent, leave_epoch } => {
            ToAgent::Offer(v1::Offer {
                attempt: Some(convert::attempt_ref_to_wire(&attempt)),
                series_id: series.to_vec(),
                source: source.into(),
                limits: Some(limits_to_wire(&limits)),
                trace_parent,
                leave_epoch: leave_epoch.map(|epoch| epoch.to_vec()).unwrap_or_default(),
            })
        }
        Command::Cancel { attempt, reason } => ToAgent::Cancel(v1::CancelAttempt {
            attempt: Some(convert::attempt_ref_to_wire(&attempt)),
            reason,
        }),
        Command::TestSource { request, source } => ToAgent::TestSource(v1::TestSource {
            request_id: request.to_vec(),
            source: source.map(String::from).unwrap_or_default(),
        }),
        Command::Reconnect { reason } => {
            ToAgent::Reconnect(v1::Reconnect { jitter_ms: RECONNECT_JITTER_MS, reason })
        }
    }
}
