//! What series and hosts are called, for a recovery: out of the catalogue of the coordinator's backup, or out of manifests
//! that a private key opened. Where nobody knows, a placeholder, until the host connects and says.

use std::collections::HashMap;

use sealift_common::format::coordinator::Entry;
use sealift_common::id::{AgentId, SeriesId};
use sealift_common::name::{Labels, Name};

/// What placeholders start with.
pub const PLACEHOLDER: &str = "recovered-";

/// A name for what nobody knows the name of: from the first digits of its id.
pub fn placeholder(id: impl std::fmt::Display) -> String {
    format!("{PLACEHOLDER}{}", id.to_string().chars().take(8).collect::<String>())
}

/// What a source is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceName {
    /// Its name in the host's config.
    pub source: Option<Name>,
    /// Its kind.
    pub kind: String,
}

/// What a host is called, and what was known of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostName {
    /// Its name.
    pub name: Option<Name>,
    /// Its labels.
    pub labels: Labels,
    /// Which rule of the trust policy it falls under.
    pub scope: String,
    /// It may not come back.
    pub revoked: bool,
}

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub struct Names {
    series: HashMap<SeriesId, SourceName>,
    hosts: HashMap<AgentId, HostName>,
}

impl Names {
    /// Takes in a line of a catalogue.
    pub fn take(&mut self, entry: &Entry) {
        let source = SourceName { source: entry.source.parse().ok(), kind: entry.kind.clone() };
        self.series.insert(entry.series_id, source);
        let labels =
            serde_json::to_value(&entry.labels).ok().and_then(|json| serde_json::from_value(json).ok());
        self.hosts.insert(
            entry.agent_id,
            HostName {
                name: entry.host.parse().ok(),
                labels: labels.unwrap_or_default(),
                scope: entry.scope.clone(),
                revoked: entry.agent_state == "revoked",
            },
        );
    }

    /// Takes in what a manifest's sealed part says; a catalogue knows better.
    pub fn opened(
        &mut self,
        series: SeriesId,
        agent: AgentId,
        source: &sealift_common::format::manifest::Source,
    ) {
        let name = SourceName { source: source.name.parse().ok(), kind: source.kind.clone() };
        self.series.entry(series).or_insert(name);
        let name = source.host.to_ascii_lowercase().parse().ok();
        self.hosts.entry(agent).or_insert(HostName { name, ..HostName::default() });
    }

    /// Of a series.
    pub fn source(&self, series: SeriesId) -> SourceName {
        self.series.get(&series).cloned().unwrap_or_default()
    }

    /// Of a host.
    pub fn host(&self, agent: AgentId) -> HostName {
        self.hosts.get(&agent).cloned().unwrap_or_default()
    }

    /// Whether a series' name is known.
    pub fn knows(&self, series: SeriesId) -> bool {
        self.series.contains_key(&series)
    }
}
