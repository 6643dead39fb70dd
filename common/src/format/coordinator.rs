//! The coordinator's own backup (docs/format.md, Coordinator): an ordinary backup of the series
//! [`COORDINATOR_SERIES`](super::names::COORDINATOR_SERIES), with these streams.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, SeriesId};

/// The database, as lines of JSON.
pub const DATABASE: &str = "database.jsonl";
/// An [`Entry`] for each series, as lines of JSON.
pub const CATALOGUE: &str = "catalogue.jsonl";
/// The CA: an object of file names and their content.
pub const CA: &str = "ca.json";
/// The kind of the source, as the sealed part of the manifest names it.
pub const KIND: &str = "coordinator";

/// Where the backups of one source of one host are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The series.
    pub series_id: SeriesId,
    /// The host's name in the fleet.
    pub host: String,
    /// The host.
    pub agent_id: AgentId,
    /// What it may do: `active`, `revoked`, …
    pub agent_state: String,
    /// The key that its manifests are signed with, hex.
    pub signing_key: String,
    /// The source's name in the host's config.
    pub source: String,
    /// postgres, mysql, …
    pub kind: String,
    /// The host's labels.
    pub labels: BTreeMap<String, String>,
    /// Which rule of the trust policy it falls under.
    pub scope: String,
    /// Sequence number of the newest backup that the coordinator knew; 0 for none.
    pub sequence: u64,
    /// Its manifest, hex.
    pub manifest_sha256: Option<String>,
}
