//! The catalogue in the coordinator's own backup: which series is which host's, as the fleet knew it. It only says where to
//! look; what is there, manifests decide.

use std::collections::HashMap;

use sealift_common::format::coordinator::{CATALOGUE, Entry, KIND};
use sealift_common::id::SeriesId;
use sealift_common::restore::{OpenBackup, RestoreError, VerifiedReader};
use tokio::runtime::Handle;

/// Largest catalogue that is read.
const MAX_CATALOGUE: u64 = 1 << 30;

/// What the fleet knew of its series.
#[derive(Debug, Default)]
pub struct Catalogue(HashMap<SeriesId, Entry>);

impl Catalogue {
    /// Reads the catalogue of a backup of the coordinator.
    ///
    /// # Errors
    /// [`RestoreError`] where it is none, or not whole.
    pub async fn read(backup: &OpenBackup) -> Result<Self, RestoreError> {
        let bad =
            |problem: &str| RestoreError::Content { item: CATALOGUE.to_owned(), problem: problem.to_owned() };
        let stream = backup.stream(CATALOGUE)?.clone();
        if backup.content().source.kind != KIND || stream.raw_len > MAX_CATALOGUE {
            return Err(bad("it is no catalogue"));
        }
        let reader = VerifiedReader::new(backup.read(&stream)?.blocking(Handle::current()), &stream);
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            reader.copy_to(&mut text, std::path::Path::new(CATALOGUE)).map(|()| text)
        });
        let text = read.await.map_err(|_| RestoreError::Cancelled)??;
        Self::parse(&text).ok_or_else(|| bad("it is malformed"))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let entries = lines
            .map(|line| serde_json::from_slice::<Entry>(line).ok().map(|entry| (entry.series_id, entry)));
        entries.collect::<Option<_>>().map(Self)
    }

    /// What is known of a series.
    pub fn of(&self, series: SeriesId) -> Option<&Entry> {
        self.0.get(&series)
    }

    /// Series of which all this is true.
    pub fn find<'a>(&'a self, wanted: &'a [(String, String)]) -> impl Iterator<Item = SeriesId> + 'a {
        let fits = |entry: &Entry| wanted.iter().all(|(key, value)| has(entry, key, value));
        self.0.values().filter(move |entry| fits(entry)).map(|entry| entry.series_id)
    }
}

/// Whether a series has this host, source, kind or label.
pub fn has(entry: &Entry, key: &str, value: &str) -> bool {
    match key {
        "host" => entry.host == value,
        "source" | "name" => entry.source == value,
        "kind" => entry.kind == value,
        other => entry.labels.get(other).is_some_and(|known| known == value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_host_source_kind_and_label() {
        let entry = |n: u8, host: &str| {
            format!(
                r#"{{"series_id":"{}","host":"{host}","agent_id":"{}","agent_state":"active","signing_key":"","source":"db","kind":"postgres","labels":{{"role":"pos"}},"scope":"","sequence":3,"manifest_sha256":null}}"#,
                SeriesId::from_bytes([n; 16]),
                sealift_common::id::AgentId::from_bytes([n; 16]),
            )
        };
        let text = format!("{}\n{}\n", entry(1, "store-1"), entry(2, "store-2"));
        let catalogue = Catalogue::parse(text.as_bytes()).unwrap();
        let find = |wanted: &[(&str, &str)]| {
            let wanted: Vec<_> = wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut found: Vec<SeriesId> = catalogue.find(&wanted).collect();
            found.sort();
            found
        };
        let (one, two) = (SeriesId::from_bytes([1; 16]), SeriesId::from_bytes([2; 16]));
        assert_eq!(find(&[("host", "store-1")]), [one]);
        assert_eq!(find(&[("role", "pos"), ("kind", "postgres")]), [one, two]);
        assert_eq!(find(&[("host", "store-1"), ("role", "web")]), []);
        assert_eq!(catalogue.of(two).unwrap().host, "store-2");
        assert!(Catalogue::parse(b"{}\n").is_none());
    }
}
