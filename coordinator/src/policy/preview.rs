//! What a change of policies means, for people: which sources, when they start next, what is different, what may not fit.

use std::collections::BTreeMap;
use std::time::Duration;

use sealift_common::clock::UnixMillis;
use sealift_common::id::AgentId;
use sealift_common::quantity::{ByteSize, Span};

use super::guards::{FleetSource, Impact, InForce};
use super::uplink::{Measured, expected_bytes, rate, time_needed};
use crate::scheduler::next_run::offset;
use crate::store::{StoreError, Tx, runs};

/// Most sources that are shown; the rest is counted.
pub const MAX_SHOWN: usize = 1_000;
/// How many starts are shown of each.
const STARTS: usize = 3;
/// Most hosts whose lines are looked at.
const MAX_MEASURED: usize = 2_000;
/// Backups of a host that its line is measured by.
const MEASURED: u32 = 20;
/// Most warnings.
const MAX_WARNINGS: usize = 50;

/// One source of a preview.
#[derive(Debug, Clone, PartialEq)]
pub struct PreviewSource {
    /// The source.
    pub source: FleetSource,
    /// In force now.
    pub before: Option<InForce>,
    /// In force then.
    pub after: Option<InForce>,
    /// Whether that is anything else.
    pub changed: bool,
    /// In which zone the schedule is meant.
    pub timezone: String,
    /// When it would start next.
    pub starts: Vec<UnixMillis>,
}

/// What a change means.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preview {
    /// Hosts with a source that the policy is for.
    pub hosts_selected: usize,
    /// Sources that the policy is for.
    pub sources_selected: usize,
    /// Hosts for which something changes.
    pub hosts_touched: usize,
    /// Sources for which something changes.
    pub sources_touched: usize,
    /// All hosts with sources.
    pub hosts: usize,
    /// The sources, by host and name, at most [`MAX_SHOWN`].
    pub sources: Vec<PreviewSource>,
    /// What may not go as its author thinks.
    pub warnings: Vec<String>,
}

/// Makes a preview out of an impact.
///
/// # Errors
/// The database's own.
pub async fn preview(
    tx: &mut Tx,
    impact: &Impact,
    fleet: &[FleetSource],
    now: UnixMillis,
) -> Result<Preview, StoreError> {
    let mut sources = BTreeMap::<usize, PreviewSource>::new();
    let one = |n: usize, before: Option<InForce>, after: Option<InForce>, changed: bool| {
        let source = fleet[n].clone();
        let (timezone, starts) =
            after.as_ref().map_or_else(Default::default, |after| starts(&source, after, now));
        PreviewSource { source, before, after, changed, timezone, starts }
    };
    for touched in impact.touched.iter().take(MAX_SHOWN) {
        sources
            .insert(touched.source, one(touched.source, touched.before.clone(), touched.after.clone(), true));
    }
    for (n, in_force) in impact.selected.iter().take(MAX_SHOWN) {
        sources.entry(*n).or_insert_with(|| one(*n, Some(in_force.clone()), Some(in_force.clone()), false));
    }
    let selected_hosts: std::collections::BTreeSet<_> =
        impact.selected.iter().map(|(n, _)| fleet[*n].agent).collect();
    Ok(Preview {
        hosts_selected: selected_hosts.len(),
        sources_selected: impact.selected.len(),
        hosts_touched: impact.hosts_touched,
        sources_touched: impact.touched.len(),
        hosts: impact.hosts,
        sources: sources.into_values().take(MAX_SHOWN).collect(),
        warnings: warnings(tx, impact, fleet).await?,
    })
}

/// The next starts of a source under what is in force for it, and the zone they are meant in.
fn starts(source: &FleetSource, in_force: &InForce, now: UnixMillis) -> (String, Vec<UnixMillis>) {
    let Some(schedule) = &in_force.document.schedule else { return Default::default() };
    let zone = schedule.timezone.of_host(&source.timezone);
    let delay = offset(in_force.policy, source.series, schedule.spread.0);
    // A run of an instant that has passed may still start.
    let mut at = now.minus(delay);
    let mut out = Vec::new();
    while out.len() < STARTS
        && let Some(next) = schedule.cron.after(&zone, at)
    {
        out.push(next.plus(delay));
        at = next;
    }
    (zone.iana_name().unwrap_or("UTC").to_owned(), out)
}

/// Hosts whose line was not seen to be fast enough for what they have to store in their window.
async fn warnings(tx: &mut Tx, impact: &Impact, fleet: &[FleetSource]) -> Result<Vec<String>, StoreError> {
    let mut hosts = BTreeMap::<AgentId, Vec<&(usize, InForce)>>::new();
    for selected in &impact.selected {
        hosts.entry(fleet[selected.0].agent).or_default().push(selected);
    }
    let mut out = Vec::new();
    for (agent, selected) in hosts.into_iter().take(MAX_MEASURED) {
        let Some(window) = selected.iter().filter_map(|(_, p)| p.document.schedule.as_ref()?.window).min()
        else {
            continue;
        };
        let measured = runs::measured(tx, agent, MEASURED).await?;
        let run = |(_, stored_bytes, took_ms): &(_, u64, i64)| Measured {
            stored_bytes: *stored_bytes,
            duration: Duration::from_millis(u64::try_from(*took_ms).unwrap_or(0)),
        };
        let all: Vec<Measured> = measured.iter().map(run).collect();
        let bytes: u64 = selected
            .iter()
            .map(|(n, _)| {
                let own = measured.iter().filter(|(series, ..)| *series == fleet[*n].series);
                expected_bytes(&own.map(run).collect::<Vec<_>>())
            })
            .sum();
        let limit =
            selected.iter().filter_map(|(_, p)| p.document.limits.bandwidth).map(|limit| limit.0).min();
        if let Some(needed) = time_needed(bytes, rate(&all), limit)
            && needed > window.0
        {
            out.push(format!(
                "{}: {} a night take about {} at {}/s, longer than the window of {window}",
                fleet[selected[0].0].agent_name,
                ByteSize(bytes),
                Span(needed),
                ByteSize(
                    limit.map_or(rate(&all).unwrap_or(0), |limit| rate(&all).map_or(limit, |r| r.min(limit)))
                ),
            ));
        }
        if out.len() >= MAX_WARNINGS {
            break;
        }
    }
    Ok(out)
}
