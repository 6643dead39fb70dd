//! Wire types to domain types and back: what must be there is there afterwards, and byte strings are ids.

use std::collections::{BTreeMap, HashMap};

use sealift_common::clock::UnixMillis;
use sealift_common::name::{Labels, Name, SourceRef};
use sealift_common::selector::Selector;
use sealift_proto::v1;
use tonic::Status;

use crate::objects::signing::SignedRequest;
use crate::runs::{Attempt, AttemptRef, Progress, Report, RunView};
use crate::store::lists::{InvalidPage, Order, Paging, Position};
use crate::store::runs::RunRow;

/// A field that cannot be used, by name.
pub fn bad_field(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// An id, hash or key out of a bytes field.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
#[allow(clippy::result_large_err)]
pub fn bytes<'a, T: TryFrom<&'a [u8], Error: std::fmt::Display>>(
    field: &str,
    bytes: &'a [u8],
) -> Result<T, Status> {
    T::try_from(bytes).map_err(|error| bad_field(field, error))
}

/// Several of them.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
#[allow(clippy::result_large_err)]
pub fn all_bytes<'a, T: TryFrom<&'a [u8], Error: std::fmt::Display>>(
    field: &str,
    all: &'a [Vec<u8>],
) -> Result<Vec<T>, Status> {
    all.iter().map(|one| bytes(field, one)).collect()
}

/// A name, selector or the like out of a text field.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
#[allow(clippy::result_large_err)]
pub fn text<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error| bad_field(field, error))
}

/// A message that must be there.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
#[allow(clippy::result_large_err)]
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| bad_field(field, "is missing"))
}

/// Longest line of a host's that is kept, in bytes.
pub const MAX_TEXT: usize = 1_000;
/// Longest last words of a tool, in bytes.
const MAX_STDERR: usize = 16 << 10;

/// A text of a host's, at most `most` bytes of it.
pub fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// What an agent says of an attempt that ended without a backup.
pub fn report(error: String, stderr: String, retryable: bool) -> Report {
    let (error, stderr) = (cut(error, MAX_TEXT), cut(stderr, MAX_STDERR));
    Report { error, stderr, retryable, ..Report::default() }
}

/// The wire's name of an attempt.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
#[allow(clippy::result_large_err)]
pub fn attempt_ref(wire: Option<v1::AttemptRef>) -> Result<AttemptRef, Status> {
    let wire = required("attempt", wire)?;
    Ok(AttemptRef {
        run: bytes("attempt.run_id", &wire.run_id)?,
        number: wire.number,
        generation: wire.generation,
        epoch: wire.epoch,
    })
}

/// An attempt's name for the wire.
pub fn attempt_ref_to_wire(attempt: &AttemptRef) -> v1::AttemptRef {
    v1::AttemptRef {
        run_id: attempt.run.to_vec(),
        number: attempt.number,
        generation: attempt.generation,
        epoch: attempt.epoch,
    }
}

/// Labels out of a map.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the label.
#[allow(clippy::result_large_err)]
pub fn labels(map: HashMap<String, String>) -> Result<Labels, Status> {
    let map: BTreeMap<_, _> = map.into_iter().collect();
    Labels::try_from(map).map_err(|error| bad_field("labels", error))
}

/// Labels as a map.
pub fn labels_to_wire(labels: &Labels) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Entries on a page unless asked otherwise.
const PAGE: u32 = 100;
/// Most entries on a page.
const MAX_PAGE: u32 = 1_000;

/// How many are asked for, and after which.
pub fn page(page: Option<v1::Page>) -> (u32, String) {
    let page = page.unwrap_or_default();
    let limit = if page.limit == 0 { PAGE } else { page.limit.min(MAX_PAGE) };
    (limit, page.after)
}

/// Which part of a list is asked for, in which order.
///
/// # Errors
/// `INVALID_ARGUMENT` for an order or a place that the list does not have.
#[allow(clippy::result_large_err)]
pub fn paging<O>(wire: Option<v1::Page>) -> Result<Paging<O>, Status>
where
    O: Order + Default + std::str::FromStr<Err = InvalidPage>,
{
    let wire = wire.unwrap_or_default();
    let (sort, reverse) = (wire.sort.clone(), wire.reverse);
    let (limit, after) = page(Some(wire));
    Paging::parse(&sort, reverse, &after, limit).map_err(|error| bad_field("page", error))
}

/// Where the next page starts; empty after the last one.
pub fn position_to_wire(next: Option<&Position>) -> String {
    next.map(ToString::to_string).unwrap_or_default()
}

/// Where the next page starts; empty after the last one.
pub fn next<T>(rows: &[T], limit: u32, position: impl FnOnce(&T) -> String) -> String {
    match rows.last() {
        Some(last) if rows.len() >= limit as usize => position(last),
        _ => String::new(),
    }
}

/// A position in a list that is sorted by time and id: `MILLIS/ID`.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is no such position.
#[allow(clippy::result_large_err)]
pub fn time_cursor(after: &str) -> Result<Option<(i64, String)>, Status> {
    if after.is_empty() {
        return Ok(None);
    }
    let parsed = after.split_once('/').and_then(|(ms, id)| Some((ms.parse().ok()?, id.to_owned())));
    parsed.map(Some).ok_or_else(|| bad_field("page.after", "is not what the page before ended with"))
}

/// The position after an entry.
pub fn time_cursor_to_wire(time: UnixMillis, id: &dyn std::fmt::Display) -> String {
    format!("{}/{id}", time.0)
}

/// What a list of sources or runs is about: one agent's, one source's, or those that labels select.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// AGENT, by name or id.
    pub agent: Option<String>,
    /// The source, where `AGENT/SOURCE` was given.
    pub source: Option<Name>,
    /// Labels of agents.
    pub selector: Selector,
}

/// `AGENT`, `AGENT/SOURCE` or nothing, and a selector.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming what cannot be read.
#[allow(clippy::result_large_err)]
pub fn target(source: &str, selector: &str) -> Result<Target, Status> {
    let selector = text("selector", selector)?;
    if source.is_empty() {
        return Ok(Target { selector, ..Target::default() });
    }
    if !source.contains('/') {
        let agent: Name = text("source", source)?;
        return Ok(Target { agent: Some(agent.into()), source: None, selector });
    }
    let named: SourceRef = text("source", source)?;
    Ok(Target { agent: Some(named.agent), source: Some(named.source), selector })
}

/// A signed request as agents and admins get it.
pub fn signed_request_to_wire(signed: SignedRequest) -> v1::SignedRequest {
    let header = |(name, value)| v1::Header { name, value };
    v1::SignedRequest {
        method: signed.method.to_owned(),
        url: signed.url,
        headers: signed.headers.into_iter().map(header).collect(),
        expires_ms: signed.expires.0,
    }
}

/// A run as admins see it.
pub fn run_to_wire(view: RunView, agent: &str) -> v1::Run {
    let RunView { run, attempts, progress } = view;
    v1::Run {
        attempts: attempts.into_iter().map(attempt_to_wire).collect(),
        progress: progress.map(progress_to_wire),
        ..run_row_to_wire(run, agent)
    }
}

/// A run without its attempts, as lists show it.
pub fn run_row_to_wire(run: RunRow, agent: &str) -> v1::Run {
    v1::Run {
        id: run.id.to_string(),
        agent_id: run.agent.to_string(),
        agent: agent.to_owned(),
        source: run.source.into(),
        series_id: run.series.to_string(),
        state: run.state.to_string(),
        created_ms: run.created.0,
        started_ms: run.started.unwrap_or_default().0,
        ended_ms: run.ended.unwrap_or_default().0,
        attempts: Vec::new(),
        backup_id: run.backup.map(|b| b.to_string()).unwrap_or_default(),
        requested_by: run.requested_by,
        progress: None,
        error: run.error,
        policy_id: run.plan.map(|plan| plan.policy.to_string()).unwrap_or_default(),
        policy_version: run.plan.map_or(0, |plan| plan.version),
        occasion: run.plan.map_or("", |plan| plan.occasion.as_str()).to_owned(),
        instant_ms: run.plan.map_or(0, |plan| plan.instant.0),
        due_ms: run.due.0,
        deadline_ms: run.plan.map_or(0, |plan| plan.deadline.0),
        collapsed: run.plan.map_or(0, |plan| plan.collapsed),
    }
}

fn attempt_to_wire(attempt: Attempt) -> v1::Attempt {
    v1::Attempt {
        number: attempt.number,
        state: attempt.state.to_string(),
        started_ms: attempt.started.0,
        ended_ms: attempt.ended.unwrap_or_default().0,
        error: attempt.error,
        stderr: attempt.stderr,
        backup_id: attempt.backup.map(|b| b.to_string()).unwrap_or_default(),
        epoch: attempt.epoch,
    }
}

fn progress_to_wire(progress: Progress) -> v1::Progress {
    v1::Progress {
        attempt: None,
        raw_bytes: progress.raw_bytes,
        new_raw_bytes: progress.new_raw_bytes,
        stored_bytes: progress.stored_bytes,
        packs: progress.packs,
        stage: progress.stage,
        expected_raw_bytes: progress.expected_raw_bytes,
        log_line: progress.log_line,
        spooled_bytes: progress.spooled_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_nothing_an_agent_or_one_source() {
        assert!(target("", "role=pos").unwrap().agent.is_none());
        assert_eq!(target("store-1", "").unwrap().agent.as_deref(), Some("store-1"));
        assert_eq!(target("store-1/db", "").unwrap().source.unwrap().as_str(), "db");
        for (source, selector) in [("a/../b", ""), ("Ä", ""), ("", "role like x")] {
            assert_eq!(target(source, selector).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn cursors_round_trip_and_pages_are_bounded() {
        let cursor = time_cursor_to_wire(UnixMillis(12), &"abc");
        assert_eq!(time_cursor(&cursor).unwrap(), Some((12, "abc".to_owned())));
        assert!(time_cursor("abc").is_err());
        assert_eq!(page(None).0, PAGE);
        assert_eq!(page(Some(v1::Page { limit: 1_000_000, ..v1::Page::default() })).0, MAX_PAGE);
    }
}
