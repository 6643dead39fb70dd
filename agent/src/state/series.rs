//! What the host knows of each of its series: its secret (nowhere else in the world), the newest manifest, and how
//! large the source was.

use serde::{Deserialize, Serialize};

use sealift_common::crypto::SeriesSecret;
use sealift_common::format::chunk::ChunkClass;
use sealift_common::id::{Random, SeriesId, Sha256};
use sealift_common::name::Name;

use super::dir::{StateDir, StateError};
use super::encoded::Encoded;

const FOLDER: &str = "series";
const ADVICE: &str =
    "remove it: the next backup of this source then starts a new epoch and uploads everything once";

/// One dedup epoch: the secret under which chunks are cut and named, and their size.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// The series secret `S`.
    pub secret: SeriesSecret,
    /// Chunk sizes; fixed for the epoch.
    pub class: ChunkClass,
}

/// The newest manifest of a series that this host wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its sequence number.
    pub sequence: u64,
    /// SHA-256 of the manifest object.
    pub manifest: Sha256,
}

/// What is kept of one series.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its id.
    pub id: SeriesId,
    /// Name of the source that feeds it.
    pub source: Name,
    /// The current epoch; `None` before the first backup.
    pub epoch: Option<Epoch>,
    /// Newest manifest; `None` before the first backup.
    pub head: Option<Head>,
    /// Raw size of the newest backup, in bytes.
    pub raw_bytes: u64,
}

impl Series {
    /// A series without any backup.
    pub fn new(id: SeriesId, source: Name) -> Self {
        Self { id, source, epoch: None, head: None, raw_bytes: 0 }
    }

    /// Whether a backup of the size seen last needs a new epoch: there is none, or the source outgrew its class twofold.
    pub fn needs_epoch(&self) -> bool {
        self.epoch.as_ref().is_none_or(|epoch| epoch.class.is_outgrown_by(self.raw_bytes))
    }

    /// Starts a new epoch with chunks fit for `expected_bytes`.
    pub fn start_epoch(&mut self, expected_bytes: u64, random: &Random) {
        let class = ChunkClass::for_raw_size(expected_bytes);
        self.epoch = Some(Epoch { secret: SeriesSecret::generate(random), class });
    }
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    series: SeriesId,
    source: Name,
    epoch: Option<StoredEpoch>,
    head: Option<StoredHead>,
    raw_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredEpoch {
    secret: Encoded,
    average_chunk_bytes: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredHead {
    sequence: u64,
    manifest_sha256: String,
}

/// The series of this host, as files in the state directory.
#[derive(Debug, Clone)]
pub struct SeriesStore(StateDir);

impl SeriesStore {
    /// The series in this state directory.
    pub fn new(state: StateDir) -> Self {
        Self(state)
    }

    /// Reads one series; `None` where this host knows nothing of it.
    ///
    /// # Errors
    /// [`StateError`]: a damaged file is named, with what removing it would cost.
    pub fn load(&self, id: SeriesId) -> Result<Option<Series>, StateError> {
        let file = file(id);
        let Some(stored) = self.0.read_json::<Stored>(&file, ADVICE)? else { return Ok(None) };
        parse(stored).map(Some).map_err(|problem| StateError::Damaged {
            path: self.0.path(&file),
            problem,
            advice: ADVICE,
        })
    }

    /// Writes one series.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, series: &Series) -> Result<(), StateError> {
        let stored = Stored {
            series: series.id,
            source: series.source.clone(),
            epoch: series.epoch.as_ref().map(|epoch| StoredEpoch {
                secret: Encoded::new(epoch.secret.expose()),
                average_chunk_bytes: epoch.class.avg(),
            }),
            head: series.head.map(|head| StoredHead {
                sequence: head.sequence,
                manifest_sha256: head.manifest.to_string(),
            }),
            raw_bytes: series.raw_bytes,
        };
        self.0.write_json(&file(series.id), &stored)
    }

    /// All series that can be read; the others are reported in the log.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn all(&self) -> Result<Vec<Series>, StateError> {
        let mut all = Vec::new();
        for name in self.0.list(FOLDER)? {
            let Some(Ok(id)) = name.strip_suffix(".json").map(str::parse) else { continue };
            match self.load(id) {
                Ok(series) => all.extend(series),
                Err(error @ StateError::Damaged { .. }) => tracing::error!(%error, "cannot use a series"),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

fn parse(stored: Stored) -> Result<Series, String> {
    let epoch = stored.epoch.map(parse_epoch).transpose()?;
    let head = stored
        .head
        .map(|head| {
            head.manifest_sha256
                .parse()
                .map(|manifest| Head { sequence: head.sequence, manifest })
                .map_err(|error| error.to_string())
        })
        .transpose()?;
    Ok(Series { id: stored.series, source: stored.source, epoch, head, raw_bytes: stored.raw_bytes })
}

fn parse_epoch(stored: StoredEpoch) -> Result<Epoch, String> {
    let secret = stored.secret.decode_32().ok_or("the series secret is not 32 bytes in base64")?;
    let class = ChunkClass::from_avg(stored.average_chunk_bytes)
        .ok_or_else(|| format!("no chunk class has an average of {} bytes", stored.average_chunk_bytes))?;
    Ok(Epoch { secret: SeriesSecret::from_bytes(secret), class })
}

fn file(id: SeriesId) -> String {
    format!("{FOLDER}/{id}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_read_back_as_it_was_written() {
        let temporary = tempfile::tempdir().unwrap();
        let store = SeriesStore::new(StateDir::create(&temporary.path().join("s")).unwrap());
        let random = Random::from_seed(3);
        let mut series = Series::new(SeriesId::generate(&random), "main-db".parse().unwrap());
        assert!(series.needs_epoch());
        series.start_epoch(1 << 30, &random);
        series.head = Some(Head { sequence: 9, manifest: Sha256::of(b"manifest") });
        series.raw_bytes = 1 << 30;
        store.save(&series).unwrap();

        let read = store.load(series.id).unwrap().unwrap();
        let (a, b) = (series.epoch.as_ref().unwrap(), read.epoch.as_ref().unwrap());
        assert_eq!(a.secret.expose(), b.secret.expose());
        assert_eq!((a.class, series.head, &series.source), (b.class, read.head, &read.source));
        assert!(!read.needs_epoch());
        assert_eq!(store.all().unwrap().len(), 1);
    }

    #[test]
    fn a_source_that_outgrew_its_chunks_twofold_needs_a_new_epoch() {
        let random = Random::from_seed(3);
        let mut series = Series::new(SeriesId::generate(&random), "db".parse().unwrap());
        series.start_epoch(0, &random);
        series.raw_bytes = 32 << 30;
        assert!(!series.needs_epoch());
        series.raw_bytes += 1;
        assert!(series.needs_epoch());
    }

    #[test]
    fn a_damaged_series_says_what_removing_it_costs() {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::create(&temporary.path().join("s")).unwrap();
        let id = SeriesId::generate(&Random::from_seed(3));
        state.write(&file(id), b"{}").unwrap();
        let error = SeriesStore::new(state).load(id).unwrap_err().to_string();
        assert!(error.contains("new epoch"), "{error}");
    }
}
