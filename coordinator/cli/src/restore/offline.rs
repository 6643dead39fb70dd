//! Without a coordinator: backups are found and opened with nothing but the bucket and a private key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::trust::MAX_POLICY;
use sealift_common::crypto::{Identities, TrustObject};
use sealift_common::format::coordinator::Entry;
use sealift_common::format::manifest::{Source, Status};
use sealift_common::format::names::{self, ObjectName};
use sealift_common::id::{AgentId, RepositoryId, SeriesId, Sha256};
use sealift_common::restore::{
    Beliefs, Located, ObjectSource as _, OpenBackup, RestoreError, SignedBackup, Trust, Witness,
};
use serde::{Deserialize, Serialize};

use super::args::Args;
use super::catalogue::{self, Catalogue};
use super::pins::{check_threshold, warn_unpinned};
use super::s3::S3Source;
use crate::app::App;
use crate::error::{Error, Exit, Result, because, chain};
use crate::progress::Bar;
use crate::time::relative;
use crate::ui;

/// Manifests that are opened at a time.
const AT_ONCE: usize = 16;
/// Backups of the coordinator that are tried for their catalogue.
const CATALOGUES: usize = 5;
/// Beyond so many manifests a list opens only the newest of each series.
const OPEN_ALL: usize = 5_000;

/// Runs `sealift restore --offline`.
pub async fn run(app: &App, args: &Args) -> Result<Exit> {
    let listing = args.list || !args.find.is_empty();
    let target = if listing { None } else { Some(args.target()?) };
    if !listing && args.backup.is_none() && args.series.is_none() {
        return Err(Error::usage(
            "say which backup: --series ID, HOST/SOURCE@TIME, latest:HOST/SOURCE or an id; --list shows them",
        ));
    }
    let identities = Arc::new(args.identity.load(&app.ui)?);
    let bucket = Bucket::open(app, args, identities).await?;
    let Some(target) = target else { return bucket.list(app, args).await };
    let found = bucket.find(app, args).await?;
    let backup = bucket.open_backup(&found).await?;
    super::act(app, args, &target, &backup).await
}

/// A repository, as the bucket shows it.
struct Bucket {
    source: Arc<S3Source>,
    identities: Arc<Identities>,
    repository: RepositoryId,
    trust: Trust,
    accept_unknown_key: bool,
    /// Names of manifests by series, in the order of their sequence.
    manifests: BTreeMap<SeriesId, Vec<ObjectName>>,
    agent_keys: HashMap<AgentId, Vec<ObjectName>>,
    /// What the fleet knew, as the coordinator's own backup says; empty where there is none that opens.
    catalogue: Catalogue,
}

/// A manifest that was looked at.
struct Found {
    name: ObjectName,
    signed: SignedBackup,
    /// What the sealed part says, or why it does not open.
    content: Result<Source, RestoreError>,
}

#[derive(Serialize)]
struct View {
    series_id: String,
    sequence: u64,
    backup: String,
    created: String,
    host: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    /// The host's, as the coordinator's backup knows them.
    labels: BTreeMap<String, String>,
    status: &'static str,
    raw_bytes: u64,
    manifest_sha256: String,
    /// Whether this identity opens it.
    opens: bool,
    problem: Option<String>,
    #[serde(skip)]
    created_ms: i64,
}

impl Bucket {
    async fn open(app: &App, args: &Args, identities: Arc<Identities>) -> Result<Self> {
        let pin = args
            .pins
            .given()
            .unwrap_or(sealift_common::crypto::RootPin { fingerprints: Vec::new(), threshold: 1 });
        check_threshold(&pin)?;
        let source = Arc::new(S3Source::open(&args.bucket).await?);
        let mut objects = Vec::new();
        for name in source.list(names::TRUST_PREFIX).await.map_err(RestoreError::from)? {
            let bytes = source.get(&name, 2 * MAX_POLICY as u64).await.map_err(RestoreError::from)?;
            objects.push(TrustObject::parse_named(&name, &bytes).map_err(RestoreError::Trust)?);
        }
        if objects.is_empty() {
            return Err(Error::new(
                Exit::NotFound,
                "there is no Sealift repository there: check --bucket, --prefix, --endpoint and --region",
            ));
        }
        if pin.fingerprints.is_empty() {
            warn_unpinned(&app.ui);
        }
        let repository = Trust::repository_of(&objects)?;
        let trust = Trust::verify(&pin, repository, &objects)?;
        let mut bucket = Self {
            source,
            identities,
            repository,
            trust,
            accept_unknown_key: args.pins.accept_unknown_key,
            manifests: BTreeMap::new(),
            agent_keys: HashMap::new(),
            catalogue: Catalogue::default(),
        };
        bucket.find_objects(args).await?;
        bucket.read_catalogue(app).await?;
        bucket.check_witness(app, args)?;
        Ok(bucket)
    }

    async fn find_objects(&mut self, args: &Args) -> Result<()> {
        for name in self.source.list(names::AGENTS_PREFIX).await.map_err(RestoreError::from)? {
            if let ObjectName::AgentKey { agent, .. } = name {
                self.agent_keys.entry(agent).or_default().push(name);
            }
        }
        let series: Vec<SeriesId> = match args.series {
            Some(series) => vec![series],
            None => {
                let folders =
                    self.source.list_folders(names::SERIES_PREFIX).await.map_err(RestoreError::from)?;
                folders.iter().filter_map(|folder| folder.parse().ok()).collect()
            }
        };
        let source = self.source.clone();
        let mut listed = futures::stream::iter(series)
            .map(|series| {
                let source = source.clone();
                async move { source.list(&names::manifests_prefix(series)).await.map(|names| (series, names)) }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(result) = listed.next().await {
            let (series, mut names) = result.map_err(RestoreError::from)?;
            names.retain(|name| matches!(name, ObjectName::Manifest { .. }));
            names.sort_unstable_by_key(|name| (sequence_of(name), name.sha256()));
            if !names.is_empty() {
                self.manifests.insert(series, names);
            }
        }
        Ok(())
    }

    /// The newest backup of the coordinator that opens says which series is whose.
    async fn read_catalogue(&mut self, app: &App) -> Result<()> {
        let listed = self.source.list(&names::manifests_prefix(names::COORDINATOR_SERIES)).await;
        let mut names = listed.map_err(RestoreError::from)?;
        names.sort_unstable();
        for name in names.into_iter().rev().take(CATALOGUES) {
            let located = self.located(name).await.map_err(Error::from)?;
            let beliefs = Beliefs { trust: &self.trust, accept_unknown_key: self.accept_unknown_key };
            let read = async {
                let signed = SignedBackup::load(self.source.as_ref(), &located, beliefs).await?;
                Catalogue::read(&self.open_signed(&signed, name).await?).await
            };
            match read.await {
                Ok(catalogue) => {
                    self.catalogue = catalogue;
                    return Ok(());
                }
                Err(RestoreError::Slot { .. }) => {} // sealed to others
                Err(error) => app.ui.note(format!("cannot use the catalogue of {name}: {}", chain(&error))),
            }
        }
        Ok(())
    }

    fn check_witness(&self, app: &App, args: &Args) -> Result<()> {
        let Some(path) = &args.witness else {
            app.ui.note(
                "no --witness was given: that nothing newer was taken out of the bucket cannot be checked",
            );
            return Ok(());
        };
        for witness in read_witnesses(path)? {
            if args.series.is_some_and(|series| series != witness.series) {
                continue;
            }
            let empty = Vec::new();
            let there = self.manifests.get(&witness.series).unwrap_or(&empty);
            let newest = there.last().map_or(0, sequence_of);
            let of = |sequence: u64| {
                there
                    .iter()
                    .filter(|name| sequence_of(name) == sequence)
                    .filter_map(ObjectName::sha256)
                    .collect()
            };
            match witness.compare(newest, of) {
                Err(error) if args.pins.accept_rollback => app.ui.warn(error.to_string()),
                other => other?,
            }
        }
        Ok(())
    }

    async fn located(&self, name: ObjectName) -> Result<Located, RestoreError> {
        // Which agent made it, only the manifest says: all keys are offered, and those of others ignored.
        let agent_keys = self.agent_keys.values().flatten().copied().collect();
        Ok(Located { repository: self.repository, manifest: name, slots: Vec::new(), agent_keys })
    }

    async fn look(&self, name: ObjectName) -> Result<Found, RestoreError> {
        let located = self.located(name).await?;
        let beliefs = Beliefs { trust: &self.trust, accept_unknown_key: self.accept_unknown_key };
        let signed = SignedBackup::load(self.source.as_ref(), &located, beliefs).await?;
        let opened = self.open_signed(&signed, name).await;
        Ok(Found { name, content: opened.map(|backup| backup.content().source.clone()), signed })
    }

    async fn open_signed(&self, signed: &SignedBackup, name: ObjectName) -> Result<OpenBackup, RestoreError> {
        match signed.clone().open(self.source.clone(), self.identities.clone()).await {
            // Perhaps a slot was added for this identity later.
            Err(RestoreError::Slot { .. }) => {
                let series = name.series().unwrap_or(signed.public().owner.series);
                let slots = self.source.list(&format!("{}slots/", names::series_prefix(series))).await?;
                signed.clone().with_slots(slots).open(self.source.clone(), self.identities.clone()).await
            }
            other => other,
        }
    }

    async fn open_backup(&self, found: &Found) -> Result<OpenBackup> {
        let series = found.signed.public().owner.series;
        let slots = self.source.list(&format!("{}slots/", names::series_prefix(series))).await;
        let slots = slots.map_err(RestoreError::from)?;
        let opened =
            found.signed.clone().with_slots(slots).open(self.source.clone(), self.identities.clone());
        Ok(opened.await?)
    }

    /// Looks at manifests, newest first within each series; one that does not hold is told of apart.
    async fn look_at(&self, app: &App, names: Vec<ObjectName>) -> Result<Looked> {
        let mut bar = Bar::new(&app.ui, "opening manifests", 0);
        let mut looks = futures::stream::iter(names)
            .map(|name| async move { (name, self.look(name).await) })
            .buffered(AT_ONCE);
        let mut looked = Looked { found: Vec::new(), bad: None };
        while let Some((_, result)) = looks.next().await {
            match result {
                Ok(found) => looked.found.push(found),
                Err(error) => {
                    let error = Error::from(error);
                    if error.exit() == Exit::Unreachable || error.exit() == Exit::Refused {
                        return Err(error);
                    }
                    bar.line(&app.ui, &format!("left out: {}", chain(&error)));
                    looked.bad = looked.bad.or(Some(error));
                }
            }
            bar.set(looked.found.len() as u64);
        }
        bar.finish();
        Ok(looked)
    }

    fn newest_first(&self) -> Vec<ObjectName> {
        self.manifests.values().flat_map(|names| names.iter().rev().copied()).collect()
    }

    async fn list(&self, app: &App, args: &Args) -> Result<Exit> {
        let mut names = self.newest_first();
        let known: HashSet<SeriesId> = self.catalogue.find(&args.find).collect();
        if !args.find.is_empty() && !known.is_empty() {
            // What the catalogue does not know is newer than it.
            let looks = |name: &ObjectName| {
                name.series().is_none_or(|id| known.contains(&id) || self.catalogue.of(id).is_none())
            };
            names.retain(looks);
        }
        if names.len() > OPEN_ALL {
            app.ui.note(format!("there are {} backups: only the newest of each series is shown (--series ID shows all of one)", names.len()));
            names = self.manifests.values().filter_map(|names| names.last().copied()).collect();
        }
        let Looked { found, bad } = self.look_at(app, names).await?;
        let wanted = |found: &&Found| {
            let series = found.signed.public().owner.series;
            let entry = self.catalogue.of(series);
            let fits = |(key, value): &(String, String)| {
                has(found, key, value) || entry.is_some_and(|entry| catalogue::has(entry, key, value))
            };
            args.find.iter().all(fits)
        };
        let mut views: Vec<View> =
            found.iter().filter(wanted).map(|found| View::new(found, &self.catalogue)).collect();
        views.sort_by(|a, b| {
            (&a.host, &a.source, &a.series_id)
                .cmp(&(&b.host, &b.source, &b.series_id))
                .then(b.sequence.cmp(&a.sequence))
        });
        let now = app.clock.now();
        app.ui.list(
            &views,
            &["series", "host", "source", "kind", "backup", "made", "size", "status", "opens"],
            |view| {
                vec![
                    view.series_id.clone(),
                    view.host.clone().unwrap_or_default(),
                    view.source.clone().unwrap_or_default(),
                    view.kind.clone().unwrap_or_default(),
                    view.backup.clone(),
                    relative(view.created_ms, now),
                    ui::size(view.raw_bytes),
                    view.status.to_owned(),
                    view.opens_shortly(),
                ]
            },
        )?;
        match bad {
            Some(error) => Err(error),
            None if !args.find.is_empty() && views.is_empty() => Ok(Exit::NotFound),
            None => Ok(Exit::Done),
        }
    }

    /// The backup that is meant.
    async fn find(&self, app: &App, args: &Args) -> Result<Found> {
        if let (Some(series), None) = (args.series, &args.backup) {
            let names = self.manifests.get(&series).cloned().unwrap_or_default();
            return match &args.backup_id {
                Some(id) => self.look_at(app, names).await?.only(id),
                None => {
                    self.newest_good(app, names.into_iter().rev().collect(), &format!("series {series}"))
                        .await
                }
            };
        }
        let name = args.backup.clone().unwrap_or_default();
        if let Some(latest) = name.strip_prefix("latest:") {
            return self.of_source(app, latest, None).await;
        }
        if let Some((source, at)) = name.split_once('@') {
            let at = crate::time::parse_moment(at).map_err(Error::usage)?;
            return self.of_source(app, source, Some(at)).await;
        }
        self.look_at(app, self.newest_first()).await?.only(&name)
    }

    async fn of_source(&self, app: &App, of: &str, at: Option<UnixMillis>) -> Result<Found> {
        let (host, source) = of.split_once('/').unwrap_or((of, ""));
        // One look per series tells which it is.
        let newest = self.manifests.values().filter_map(|names| names.last().copied()).collect();
        let wanted = [("host".to_owned(), host.to_owned()), ("source".to_owned(), source.to_owned())];
        let known: Vec<SeriesId> = self.catalogue.find(&wanted).collect();
        let candidates =
            if known.is_empty() { self.look_at(app, newest).await?.all_hold()? } else { Vec::new() };
        let looked = candidates
            .iter()
            .filter(|found| matches!(&found.content, Ok(content) if content.host == host && content.name == source))
            .map(|found| found.signed.public().owner.series);
        let names: Vec<ObjectName> = known
            .iter()
            .copied()
            .chain(looked)
            .filter_map(|series| self.manifests.get(&series))
            .flat_map(|names| names.iter().rev().copied())
            .collect();
        let found = self.look_at(app, names).await?.all_hold()?;
        let in_time = |found: &Found| at.is_none_or(|at| found.signed.public().created <= at);
        newest_good_of(found.into_iter().filter(in_time).collect(), of)
    }

    async fn newest_good(&self, app: &App, names: Vec<ObjectName>, what: &str) -> Result<Found> {
        newest_good_of(self.look_at(app, names).await?.all_hold()?, what)
    }
}

/// Manifests that were looked at.
struct Looked {
    found: Vec<Found>,
    /// The first that does not hold.
    bad: Option<Error>,
}

impl Looked {
    /// All of them. Which is the newest cannot be said while one does not hold: it may be that one.
    fn all_hold(self) -> Result<Vec<Found>> {
        match self.bad {
            None => Ok(self.found),
            Some(error) => Err(because(
                error.exit(),
                "the newest backup cannot be told (name one by its id, as --list shows it, to restore it all the same)",
            )(error)),
        }
    }

    /// The one with this id, or the only one whose id starts so; it matters not whether others hold.
    fn only(self, name: &str) -> Result<Found> {
        let mut meant = self.found.into_iter().filter(|found| id_of(found).starts_with(name));
        match (meant.next(), meant.next(), self.bad) {
            (Some(one), None, _) => Ok(one),
            (Some(_), Some(_), _) => {
                Err(Error::usage(format!("{name} names more than one backup: write more of its id")))
            }
            (None, _, Some(error)) => Err(error),
            (None, _, None) => Err(Error::new(
                Exit::NotFound,
                format!("there is no backup {name} in the bucket; --list shows what there is"),
            )),
        }
    }
}

/// The newest complete one; where none is complete, the newest.
fn newest_good_of(mut found: Vec<Found>, what: &str) -> Result<Found> {
    found.sort_by_key(|found| {
        let public = found.signed.public();
        (public.status == Status::Complete, public.created, public.sequence)
    });
    found.pop().ok_or_else(|| {
        Error::new(Exit::NotFound, format!("there is no backup of {what} in the bucket that this identity opens; --list shows what there is"))
    })
}

fn id_of(found: &Found) -> String {
    found.signed.public().owner.backup.to_string()
}

fn sequence_of(name: &ObjectName) -> u64 {
    if let ObjectName::Manifest { sequence, .. } = name { *sequence } else { 0 }
}

/// Whether a backup has this host, source, kind or attribute; one that does not open has none of them.
fn has(found: &Found, key: &str, value: &str) -> bool {
    let Ok(source) = &found.content else { return false };
    match key {
        "host" => source.host == value,
        "source" | "name" => source.name == value,
        "kind" => source.kind == value,
        other => source.attributes.get(other).is_some_and(|known| known == value),
    }
}

impl View {
    fn opens_shortly(&self) -> String {
        match &self.problem {
            None => "yes".to_owned(),
            Some(problem) if problem.contains("none of the identities") => "no".to_owned(),
            Some(problem) => problem.clone(),
        }
    }
}

impl View {
    fn new(found: &Found, catalogue: &Catalogue) -> Self {
        let public = found.signed.public();
        let entry = catalogue.of(public.owner.series);
        let known = |of: fn(&Entry) -> &String| entry.map(of).cloned();
        let text = |of: fn(&Source) -> &String| {
            found.content.as_ref().ok().map(of).filter(|t| !t.is_empty()).cloned()
        };
        Self {
            series_id: public.owner.series.to_string(),
            sequence: public.sequence,
            backup: public.owner.backup.to_string(),
            created: public.created.rfc3339(),
            // What the fleet calls a host is not always what the host calls itself.
            host: known(|entry| &entry.host).or_else(|| text(|source| &source.host)),
            source: text(|source| &source.name).or_else(|| known(|entry| &entry.source)),
            kind: text(|source| &source.kind).or_else(|| known(|entry| &entry.kind)),
            labels: entry.map(|entry| entry.labels.clone()).unwrap_or_default(),
            status: if public.status == Status::Complete { "complete" } else { "partial" },
            raw_bytes: public.raw_bytes,
            manifest_sha256: found.name.sha256().map(|sha256| sha256.to_string()).unwrap_or_default(),
            opens: found.content.is_ok(),
            problem: found.content.as_ref().err().map(|error| chain(error)),
            created_ms: public.created.0,
        }
    }
}

/// What `sealift backup list --output json` prints of a backup, as far as a witness needs it.
#[derive(Deserialize)]
struct Seen {
    series_id: String,
    sequence: u64,
    manifest_sha256: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SeenFile {
    Many(Vec<Seen>),
    One(Seen),
}

/// The newest that the file knows of each series.
fn read_witnesses(path: &Path) -> Result<Vec<Witness>> {
    let shown = path.display();
    let text =
        std::fs::read(path).map_err(because(Exit::Usage, format!("cannot read the witness {shown}")))?;
    let bad =
        || format!("{shown} is no witness: it must be what `sealift backup list --output json` printed");
    let file: SeenFile = serde_json::from_slice(&text).map_err(because(Exit::Usage, bad()))?;
    let seen = match file {
        SeenFile::Many(many) => many,
        SeenFile::One(one) => vec![one],
    };
    let mut newest: BTreeMap<SeriesId, Witness> = BTreeMap::new();
    for seen in seen {
        let series: SeriesId = seen.series_id.parse().map_err(because(Exit::Usage, bad()))?;
        let manifest: Sha256 = seen.manifest_sha256.parse().map_err(because(Exit::Usage, bad()))?;
        let witness = Witness { series, sequence: seen.sequence, manifest };
        let known = newest.entry(series).or_insert(witness);
        if known.sequence < witness.sequence {
            *known = witness;
        }
    }
    Ok(newest.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_what_backup_list_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness.json");
        let (series, hash) = (SeriesId::from_bytes([1; 16]), Sha256::of(b"x"));
        let entry = |sequence| {
            format!(
                r#"{{"id":"b","series_id":"{series}","sequence":{sequence},"manifest_sha256":"{hash}","more":[]}}"#
            )
        };
        std::fs::write(&path, format!("[{},{},{}]", entry(3), entry(9), entry(4))).unwrap();
        let read = read_witnesses(&path).unwrap();
        assert_eq!(read, [Witness { series, sequence: 9, manifest: hash }]);
        std::fs::write(&path, entry(2)).unwrap();
        assert_eq!(read_witnesses(&path).unwrap()[0].sequence, 2);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_witnesses(&path).unwrap_err().exit(), Exit::Usage);
    }
}
