//! The database takes in what the bucket knows: trust policies, hosts' keys, every manifest and the packs it names.
//!
//! Manifests' public parts can be read by anyone and are signed by their hosts, so no private key is needed. Nothing is
//! deleted, and nothing is believed that is not signed: a manifest whose key nobody vouches for is left where it is and
//! named. Doing it again does no harm, whenever it was interrupted: the last step alone ends the recovery.
//!
//! | what | from where | what of it is lost without a backup of the coordinator |
//! |---|---|---|
//! | trust policies | `trust/`, verified against the configured root keys | nothing |
//! | hosts | `agents/`, for hosts that have a manifest, or that the trust policy attests | names, labels, revocations |
//! | series, backups, packs | manifests | names of sources, until their hosts connect |
//! | sequence numbers | manifests, and what hosts report; [`GAP`] are left out | nothing |

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::{FutureExt as _, StreamExt as _};
use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::trust::{RootPin, TrustState, verify_chain};
use sealift_common::crypto::{AgentKeyObject, AgentKeyring, KeyStanding, TrustObject};
use sealift_common::format::manifest::{Manifest, ManifestPublic, Status};
use sealift_common::format::names::{
    AGENTS_PREFIX, ObjectName, SERIES_PREFIX, TRUST_PREFIX, manifests_prefix,
};
use sealift_common::id::{AgentId, PackId, RepositoryId, RunId, SeriesId, Sha256};
use sealift_common::name::{Labels, Name};
use serde::Serialize;

use super::RecoveryError;
use super::generation::{Generations, Mark};
use super::names::{Names, placeholder};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::backups::Backups;
use crate::core::Core;
use crate::objects::signing::MAX_MANIFEST;
use crate::objects::{ByteRange, ObjectStore};
use crate::runs::state::{AttemptEvent, AttemptState, RunState};
use crate::runs::{Attempt, Report as AttemptReport, advance};
use crate::store::agents::{self, AgentRow, AgentState, SaidProtocol};
use crate::store::backups::{self, AgentReport, BackupRow, BackupState, Keeping, Prepared};
use crate::store::packs::{self, PackFacts, PackRow, PackState};
use crate::store::runs::{self, RunRow};
use crate::store::sources::{self, SourceRow};
use crate::store::tokens::{self, TokenRow};
use crate::store::trust::{self, TrustRow};
use crate::store::{StoreError, Tx, attempts, generation, recovery};

/// Sequence numbers that are left out: a lost database may have given them away.
pub const GAP: u64 = 1_000;
/// Series that are looked at side by side.
const PARALLEL: usize = 16;
/// Objects of one kind, at most.
const MAX_LISTED: usize = 5_000_000;
/// Largest trust object and agent key that are read.
const MAX_TRUST: u64 = 20 * 1024 * 1024;
const MAX_KEY: u64 = 64 * 1024;
/// Attempts of the old database that are ended.
const MAX_ATTEMPTS: u32 = 100_000;
/// Objects that were left alone and are named one by one.
const MAX_LEFT: usize = 100;
/// How the runs of recovered backups say who asked for them.
const REQUESTED_BY: &str = "recovery";

/// What a recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Versions of the trust policy that were taken in.
    pub trust_versions_added: u64,
    /// Hosts that were taken in.
    pub agents_added: u64,
    /// Series in the bucket.
    pub series: u64,
    /// Of these, those that the database did not know.
    pub series_added: u64,
    /// Manifests in the bucket.
    pub backups: u64,
    /// Of these, those that the database did not know.
    pub backups_added: u64,
    /// Backups of the database whose manifest is not in the bucket.
    pub backups_gone: u64,
    /// Packs that were taken in.
    pub packs_added: u64,
    /// Packs that should be in the bucket, and are not as they were.
    pub packs_lost: u64,
    /// Attempts of the old database that were ended.
    pub attempts_ended: u64,
    /// What was left alone, and why.
    pub left_alone: Vec<String>,
    /// The generation that began.
    pub generation: u64,
}

/// Takes in what the bucket knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reconciler {
    core: Core,
    objects: ObjectStore,
    backups: Backups,
    roots: Vec<Sha256>,
}

/// What all series need.
struct Known {
    repository: RepositoryId,
    trust: Option<TrustState>,
    agent_keys: HashMap<AgentId, Vec<ObjectName>>,
    names: Names,
}

/// A manifest whose signer is believed.
struct Believed {
    name: ObjectName,
    size: u64,
    public: ManifestPublic,
    public_sha256: Sha256,
}

/// What the bucket has of one series.
struct SeriesInBucket {
    series: SeriesId,
    /// All its manifests: sequence and hash.
    names: Vec<(u64, Sha256)>,
    /// Those that the database does not know, oldest first.
    unknown: Vec<Believed>,
    /// The key object of each host that signed them.
    keys: BTreeMap<AgentId, AgentKeyObject>,
    left_alone: Vec<String>,
}

impl Reconciler {
    /// For the installation of `core`; `roots` are the root keys that its configuration names.
    pub fn new(core: Core, objects: ObjectStore, backups: Backups, roots: Vec<Sha256>) -> Self {
        Self { core, objects, backups, roots }
    }

    /// Takes everything in and begins a new generation.
    ///
    /// # Errors
    /// [`RecoveryError`]; what was taken in stays, the recovery does not end.
    pub async fn run(&self, ctx: &OpContext, names: Names) -> Result<Report, RecoveryError> {
        let mut report = Report::default();
        // The bucket is asked before the database, as always.
        let marks = Generations::new(self.core.clone(), self.objects.clone()).bucket().await?;
        let known = self.prepare(ctx, names, &mut report).await?;
        // Backups between Prepare and Commit: the bucket decides.
        self.backups.resolve_once().await?;
        self.end_attempts(&mut report).await?;
        let series = self.series().await?;
        report.series = series.len() as u64;
        let known = &known;
        let mut looks = futures::stream::iter(series)
            .map(|series| async move { self.look(known, series).await })
            .buffer_unordered(PARALLEL);
        while let Some(found) = looks.next().await {
            let found = found?;
            report.backups += found.names.len() as u64;
            report.left_alone.extend(found.left_alone.iter().cloned());
            self.take_in(ctx, known, &found, &mut report).await?;
            report.packs_lost += self.backups.check_listing(ctx, found.series).await?.len() as u64;
        }
        self.take_attested(ctx, known, &mut report).await?;
        self.keep_sequences(&mut report).await?;
        let more = report.left_alone.len().saturating_sub(MAX_LEFT);
        if more > 0 {
            report.left_alone.truncate(MAX_LEFT);
            report.left_alone.push(format!("and {more} more"));
        }
        let newest = marks.marks.iter().map(|mark| mark.number).max().unwrap_or(0);
        self.begin_generation(ctx, newest, &mut report).await?;
        Ok(report)
    }

    /// Trust, repository, and the names of the hosts' keys.
    async fn prepare(
        &self,
        ctx: &OpContext,
        names: Names,
        report: &mut Report,
    ) -> Result<Known, RecoveryError> {
        let mut objects = Vec::new();
        for listed in self.objects.list_all(TRUST_PREFIX, MAX_LISTED).await? {
            let Ok(name @ ObjectName::Trust { .. }) = listed.name.as_str().parse() else { continue };
            let bytes = self.objects.get(&listed.name, ByteRange::All, MAX_TRUST).await?;
            objects.push(
                TrustObject::parse_named(&name, &bytes).map_err(|e| RecoveryError::Content(e.to_string()))?,
            );
        }
        let trust = self.verified(&objects)?;
        let repository = trust.as_ref().map_or(self.core.repository, |trust| trust.policy.repository);
        report.trust_versions_added = self.take_trust(ctx, repository, &objects).await?;
        let mut agent_keys: HashMap<AgentId, Vec<ObjectName>> = HashMap::new();
        for listed in self.objects.list_all(AGENTS_PREFIX, MAX_LISTED).await? {
            if let Ok(name @ ObjectName::AgentKey { agent, .. }) = listed.name.as_str().parse() {
                agent_keys.entry(agent).or_default().push(name);
            }
        }
        Ok(Known { repository, trust, agent_keys, names })
    }

    fn verified(&self, objects: &[TrustObject]) -> Result<Option<TrustState>, RecoveryError> {
        let Some(newest) = objects.iter().max_by_key(|object| object.policy().version) else {
            return Ok(None);
        };
        if self.roots.is_empty() {
            return Err(crate::identity::IdentityError::NoRoots.into());
        }
        let pin = RootPin::any_of(self.roots.clone());
        verify_chain(&pin, None, newest.policy().repository, objects)
            .map(Some)
            .map_err(|error| RecoveryError::Content(error.to_string()))
    }

    async fn take_trust(
        &self,
        ctx: &OpContext,
        repository: RepositoryId,
        objects: &[TrustObject],
    ) -> Result<u64, RecoveryError> {
        let (own, now) = (self.core.repository, self.core.clock.now());
        self.core
            .store
            .run_tx("take in trust policies", move |tx, _| {
                async move {
                    if repository != own {
                        if !recovery::all_series(tx).await?.is_empty() {
                            let (bucket, database) = (repository.to_string(), own.to_string());
                            return Err(RecoveryError::OtherRepository { bucket, database });
                        }
                        recovery::set_repository(tx, &repository.to_string()).await?;
                    }
                    let known = trust::all(tx).await?;
                    let mut added = 0;
                    for object in objects {
                        let version = object.policy().version;
                        match known.iter().find(|row| row.version == version) {
                            Some(row) if row.sha256 == object.sha256() => {
                                trust::set_in_bucket(tx, version).await?;
                                continue;
                            }
                            // Recorded, and never stored: the bucket's counts.
                            Some(row) if !row.in_bucket => recovery::forget_trust(tx, version).await?,
                            Some(_) => {
                                let problem =
                                    format!("version {version} of the trust policy is another in the bucket");
                                return Err(RecoveryError::Content(problem));
                            }
                            None => {}
                        }
                        let row = TrustRow {
                            version,
                            sha256: object.sha256(),
                            object: object.bytes().to_vec(),
                            stored: now,
                            in_bucket: true,
                        };
                        trust::insert(tx, &row).await?;
                        let said =
                            Details::none().with("version", version).with("sha256", row.sha256.to_string());
                        ctx.record(tx, Action::CoordinatorRecover, &"trust", Outcome::Done, said).await?;
                        added += 1;
                    }
                    Ok(added)
                }
                .boxed()
            })
            .await
    }

    /// The processes that worked on attempts of the old database may go on for a while: what they say is stale.
    async fn end_attempts(&self, report: &mut Report) -> Result<(), RecoveryError> {
        let now = self.core.clock.now();
        let ended = self.core.store.run_tx("end the attempts of before", move |tx, _| {
            async move {
                let mut ended = 0;
                for attempt in attempts::expired(tx, UnixMillis(i64::MAX), MAX_ATTEMPTS).await? {
                    let error = "the coordinator's database was recovered".to_owned();
                    let report = AttemptReport { error, retryable: true, ..AttemptReport::default() };
                    match advance(tx, now, &attempt, AttemptEvent::Lose, report).await {
                        Ok(_) => ended += 1,
                        // Its manifest may still arrive: the resolver ends it.
                        Err(crate::runs::RunError::Illegal(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok::<_, crate::runs::RunError>(ended)
            }
            .boxed()
        });
        report.attempts_ended = ended.await?;
        Ok(())
    }

    /// Series of the bucket, and of the database.
    async fn series(&self) -> Result<BTreeSet<SeriesId>, RecoveryError> {
        let folders = self.objects.folders(SERIES_PREFIX, MAX_LISTED).await?;
        let mut all: BTreeSet<SeriesId> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
        all.extend(recovery::all_series(&mut *self.core.store.reader().await?).await?);
        Ok(all)
    }

    /// What the bucket has of a series, and which of it is news.
    async fn look(&self, known: &Known, series: SeriesId) -> Result<SeriesInBucket, RecoveryError> {
        let mut names = Vec::new();
        for listed in self.objects.list_all(&manifests_prefix(series), MAX_LISTED).await? {
            if let Ok(ObjectName::Manifest { sequence, sha256, .. }) = listed.name.as_str().parse() {
                names.push((sequence, sha256));
            }
        }
        let in_database = recovery::known_backups(&mut *self.core.store.reader().await?, series).await?;
        let mut out =
            SeriesInBucket { series, names, unknown: vec![], keys: BTreeMap::new(), left_alone: vec![] };
        for (sequence, sha256) in out.names.clone() {
            let same =
                |row: &recovery::KnownBackup| row.manifest == Some(sha256) && row.state != BackupState::Begun;
            // An abandoned one whose manifest came late is the resolver's, unless it was long ago.
            if in_database.iter().any(|row| same(row) && row.state != BackupState::Abandoned) {
                continue;
            }
            let name = ObjectName::Manifest { series, sequence, sha256 };
            match self.read(known, name, &mut out.keys).await? {
                Ok(believed) => out.unknown.push(believed),
                Err(why) => out.left_alone.push(format!("{name}: {why}")),
            }
        }
        Ok(out)
    }

    /// Reads a manifest; says why it is not to be believed.
    async fn read(
        &self,
        known: &Known,
        name: ObjectName,
        keys: &mut BTreeMap<AgentId, AgentKeyObject>,
    ) -> Result<Result<Believed, String>, RecoveryError> {
        let bytes = self.objects.get(&name.into(), ByteRange::All, MAX_MANIFEST).await?;
        let (repository, size) = (known.repository, bytes.len() as u64);
        let parsed = tokio::task::spawn_blocking(move || Manifest::parse(repository, &name, &bytes)).await;
        let manifest = match parsed {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(error)) => return Ok(Err(error.problem.to_string())),
            Err(_) => return Err(RecoveryError::Seal("the program stops".to_owned())),
        };
        let public = manifest.public().clone();
        let mut reader = self.core.store.reader().await?;
        let agent = agents::get(&mut reader, public.agent).await?;
        let owner = recovery::owner(&mut reader, public.owner.series).await?;
        drop(reader);
        if owner.is_some_and(|owner| owner != public.agent) {
            return Ok(Err(format!("it is signed by host {}, whose series this is not", public.agent)));
        }
        if agent.as_ref().is_none_or(|agent| agent.signing_key != public.signing_key) {
            match self.vouched(known, &public).await? {
                Some(key) => drop(keys.entry(public.agent).or_insert(key)),
                None => {
                    return Ok(Err(format!(
                        "nobody vouches for the key that host {} signed it with",
                        public.agent
                    )));
                }
            }
        }
        Ok(Ok(Believed { name, size, public, public_sha256: manifest.public_sha256() }))
    }

    /// The object of the key that signed a manifest, where it is believed.
    async fn vouched(
        &self,
        known: &Known,
        public: &ManifestPublic,
    ) -> Result<Option<AgentKeyObject>, RecoveryError> {
        let Some(trust) = &known.trust else { return Ok(None) };
        let mut objects = Vec::new();
        for name in known.agent_keys.get(&public.agent).into_iter().flatten() {
            let bytes = self.objects.get(&(*name).into(), ByteRange::All, MAX_KEY).await?;
            objects.extend(AgentKeyObject::parse_named(name, &bytes).ok());
        }
        let signer = objects.iter().find(|object| object.signing_key() == public.signing_key).cloned();
        let Ok(keyring) = AgentKeyring::new(public.agent, objects) else { return Ok(None) };
        let standing = keyring.standing(&public.signing_key, &trust.policy);
        Ok(signer.filter(|_| standing != KeyStanding::Unknown))
    }

    /// One series, in one transaction.
    async fn take_in(
        &self,
        ctx: &OpContext,
        known: &Known,
        found: &SeriesInBucket,
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let done = self.core.store.run_tx("take in a series", |tx, _| {
            async move {
                let mut done = Report::default();
                self.mark_gone(tx, ctx, found, &mut done).await?;
                for believed in &found.unknown {
                    self.owner_of(tx, ctx, known, found, believed, &mut done).await?;
                    self.take_backup(tx, ctx, known, believed, &mut done).await?;
                }
                Ok::<_, RecoveryError>(done)
            }
            .boxed()
        });
        let done = done.await?;
        report.agents_added += done.agents_added;
        report.series_added += done.series_added;
        report.backups_added += done.backups_added;
        report.backups_gone += done.backups_gone;
        report.packs_added += done.packs_added;
        report.left_alone.extend(done.left_alone);
        Ok(())
    }

    async fn mark_gone(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        found: &SeriesInBucket,
        done: &mut Report,
    ) -> Result<(), RecoveryError> {
        for row in recovery::known_backups(tx, found.series).await? {
            let there = row.manifest.is_some_and(|sha256| found.names.contains(&(row.sequence, sha256)));
            if row.state == BackupState::Committed && !there {
                recovery::vanished(tx, row.id).await?;
                let said = Details::none()
                    .with("before", "committed")
                    .with("after", "gone")
                    .with("series", found.series.to_string())
                    .with("sequence", row.sequence);
                ctx.record(
                    tx,
                    Action::CoordinatorRecover,
                    &format!("backup:{}", row.id),
                    Outcome::Done,
                    said,
                )
                .await?;
                done.backups_gone += 1;
            }
        }
        Ok(())
    }

    /// Host and series of a manifest, made where the database does not know them.
    async fn owner_of(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        known: &Known,
        found: &SeriesInBucket,
        believed: &Believed,
        done: &mut Report,
    ) -> Result<(), RecoveryError> {
        let public = &believed.public;
        if agents::get(tx, public.agent).await?.is_none() {
            let Some(key) = found.keys.get(&public.agent) else { return Ok(()) };
            let row = new_agent(tx, &self.core, key, &known.names).await?;
            let said = Details::none().with("name", row.name.as_str()).with("state", row.state.as_str());
            ctx.record(tx, Action::CoordinatorRecover, &format!("agent:{}", row.id), Outcome::Done, said)
                .await?;
            done.agents_added += 1;
        }
        if recovery::owner(tx, found.series).await?.is_none() {
            let source = known.names.source(found.series);
            let taken = match &source.source {
                Some(name) => sources::get(tx, public.agent, name).await?.is_some(),
                None => true,
            };
            let name = match source.source {
                Some(name) if !taken => name,
                _ => named(&placeholder(found.series))?,
            };
            let row = SourceRow {
                agent: public.agent,
                name,
                kind: source.kind,
                detail: String::new(),
                credential_origins: Vec::new(),
                series: found.series,
                present: false,
                changed: self.core.clock.now(),
            };
            let scope = known.names.host(public.agent).scope;
            sources::insert_series(tx, &row, &scope).await?;
            sources::put(tx, &row).await?;
            done.series_added += 1;
        }
        Ok(())
    }

    async fn take_backup(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        known: &Known,
        believed: &Believed,
        done: &mut Report,
    ) -> Result<(), RecoveryError> {
        let public = &believed.public;
        let (series, id) = (public.owner.series, public.owner.backup);
        let others = recovery::known_backups(tx, series).await?;
        let manifest = believed.name.sha256();
        let same_place = |row: &&recovery::KnownBackup| {
            row.sequence == public.sequence && row.id != id && row.state != BackupState::Begun
        };
        if let Some(other) = others.iter().find(same_place) {
            done.left_alone
                .push(format!("{}: its sequence number is that of backup {}", believed.name, other.id));
            return Ok(());
        }
        let refs = self.take_packs(tx, public, done).await?;
        let now = self.core.clock.now();
        let made = UnixMillis(public.created.0.min(now.0));
        if !others.iter().any(|row| row.id == id) {
            let run = self.new_run(tx, known, public, made).await?;
            let row = BackupRow {
                id,
                series,
                agent: public.agent,
                run,
                attempt: 1,
                state: BackupState::Begun,
                sequence: public.sequence,
                previous: public.previous,
                session_nonce: public.session_nonce,
                epoch: public.epoch,
                trust_version: public.trust_version,
                kind: known.names.source(series).kind,
                created: made,
                prepared: None,
                committed: None,
                keeping: Keeping::default(),
            };
            backups::insert(tx, &row).await?;
        }
        let prepared = Prepared {
            manifest_sha256: manifest
                .ok_or_else(|| RecoveryError::Content("a manifest without a hash".to_owned()))?,
            manifest_size: believed.size,
            public_sha256: believed.public_sha256,
            signed_until: made,
            refs,
            partial: public.status == Status::Partial,
            raw_bytes: public.raw_bytes,
            new_raw_bytes: 0,
            new_stored_bytes: public.new_stored_bytes,
            recipients: public.recipients.iter().map(Sha256::to_string).collect(),
            report: AgentReport::default(),
        };
        backups::prepare(tx, id, &prepared).await?;
        backups::resolve(tx, id, BackupState::Committed, Some(made)).await?;
        let said = Details::none()
            .with("series", series.to_string())
            .with("sequence", public.sequence)
            .with("manifest_sha256", prepared.manifest_sha256.to_string());
        ctx.record(tx, Action::CoordinatorRecover, &format!("backup:{id}"), Outcome::Done, said).await?;
        done.backups_added += 1;
        Ok(())
    }

    /// The ordinals of the packs that a manifest names; those that the database does not know are taken in.
    async fn take_packs(
        &self,
        tx: &mut Tx,
        public: &ManifestPublic,
        done: &mut Report,
    ) -> Result<RoaringBitmap, RecoveryError> {
        let series = public.owner.series;
        let hashes: Vec<Sha256> = public.packs.iter().map(|pack| pack.meta.sha256).collect();
        let found = packs::candidates(tx, series, &hashes).await?;
        let found: HashMap<Sha256, packs::Candidate> =
            found.into_iter().map(|c| (c.facts.meta.sha256, c)).collect();
        let mut next = packs::next_ordinal(tx, series).await?;
        let mut refs = RoaringBitmap::new();
        for pack in &public.packs {
            let sha256 = pack.meta.sha256;
            if let Some(known) = found.get(&sha256) {
                if known.state != PackState::Live {
                    recovery::revive(tx, series, sha256, public.created).await?;
                }
                refs.insert(known.ordinal);
                continue;
            }
            let mut id = [0; 16];
            id.copy_from_slice(&sha256.as_bytes()[..16]);
            let row = PackRow {
                series,
                ordinal: next,
                // The manifest does not say it, and nothing needs it of a pack that is stored.
                pack: PackId::from_bytes(id),
                facts: PackFacts { meta: pack.meta, origin: pack.origin },
                epoch: public.epoch,
                // Whose recipients it is sealed to is known where this very backup wrote it. Others may be restored from, and
                // are not referred to again.
                trust_version: if pack.origin == public.owner.backup { public.trust_version } else { 0 },
                state: PackState::Live,
                signed: public.created,
                stored: Some(public.created),
                raw_len: 0,
                locked_until: None,
            };
            packs::insert(tx, &row).await?;
            refs.insert(next);
            next = next.saturating_add(1);
            done.packs_added += 1;
        }
        Ok(refs)
    }

    /// A backup has a run with an attempt; those of the lost database are not known, so these stand in.
    async fn new_run(
        &self,
        tx: &mut Tx,
        known: &Known,
        public: &ManifestPublic,
        made: UnixMillis,
    ) -> Result<RunId, RecoveryError> {
        let id = RunId::generate(&self.core.random);
        let partial = public.status == Status::Partial;
        let source = match sources::of_series(tx, public.owner.series).await? {
            Some(source) => source.name,
            None => match known.names.source(public.owner.series).source {
                Some(name) => name,
                None => named(&placeholder(public.owner.series))?,
            },
        };
        let run = RunRow {
            id,
            agent: public.agent,
            source,
            series: public.owner.series,
            state: if partial { RunState::Partial } else { RunState::Succeeded },
            created: made,
            due: made,
            started: Some(made),
            ended: Some(made),
            attempts: 1,
            cancelled_by: None,
            requested_by: REQUESTED_BY.to_owned(),
            trace_parent: String::new(),
            backup: Some(public.owner.backup),
            error: String::new(),
            site: String::new(),
            plan: None,
        };
        runs::insert(tx, &run).await?;
        let attempt = Attempt {
            run: id,
            number: 1,
            agent: public.agent,
            series: public.owner.series,
            state: AttemptState::Committed,
            generation: 0,
            epoch: 0,
            lease_owner: String::new(),
            lease_expires: made,
            instance: None,
            backup: Some(public.owner.backup),
            started: made,
            ended: Some(made),
            error: String::new(),
            stderr: String::new(),
        };
        attempts::insert(tx, &attempt).await?;
        Ok(id)
    }

    /// Hosts that the trust policy names are taken in without a manifest too.
    async fn take_attested(
        &self,
        ctx: &OpContext,
        known: &Known,
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let Some(trust) = &known.trust else { return Ok(()) };
        for attested in &trust.policy.agents {
            let mut key = None;
            for name in known.agent_keys.get(&attested.agent).into_iter().flatten() {
                let bytes = self.objects.get(&(*name).into(), ByteRange::All, MAX_KEY).await?;
                let object = AgentKeyObject::parse_named(name, &bytes).ok();
                key = key.or(object.filter(|object| object.signing_key() == attested.signing_key));
            }
            let Some(key) = key else { continue };
            let key = &key;
            let added = self.core.store.run_tx("take in an attested host", move |tx, _| {
                async move {
                    if agents::get(tx, key.agent()).await?.is_some() {
                        return Ok(false);
                    }
                    let row = new_agent(tx, &self.core, key, &known.names).await?;
                    let said =
                        Details::none().with("name", row.name.as_str()).with("state", row.state.as_str());
                    ctx.record(
                        tx,
                        Action::CoordinatorRecover,
                        &format!("agent:{}", row.id),
                        Outcome::Done,
                        said,
                    )
                    .await?;
                    Ok::<_, RecoveryError>(true)
                }
                .boxed()
            });
            report.agents_added += u64::from(added.await?);
        }
        Ok(())
    }

    /// Numbers that the lost database may have given away are not given again.
    async fn keep_sequences(&self, report: &mut Report) -> Result<(), RecoveryError> {
        let all = recovery::all_series(&mut *self.core.store.reader().await?).await?;
        report.series = report.series.max(all.len() as u64);
        for chunk in all.chunks(1_000) {
            self.core
                .store
                .run_tx("keep sequence numbers", move |tx, _| {
                    async move {
                        for series in chunk {
                            let highest = recovery::highest_sequence(tx, *series).await?;
                            recovery::raise_floor(tx, *series, None, highest.saturating_add(GAP)).await?;
                        }
                        Ok::<_, StoreError>(())
                    }
                    .boxed()
                })
                .await?;
        }
        Ok(())
    }

    async fn begin_generation(
        &self,
        ctx: &OpContext,
        newest: u64,
        report: &mut Report,
    ) -> Result<(), RecoveryError> {
        let id = u64::from_le_bytes(self.core.random.bytes()) >> 1;
        let now = self.core.clock.now();
        let so_far = &*report;
        let deletions = &crate::retention::generation::bucket(&self.objects).await?;
        let row = self
            .core
            .store
            .run_tx("begin a generation", move |tx, _| {
                async move {
                    let before = generation::get(tx).await?;
                    let number = newest.max(before.number) + 1;
                    generation::renew(tx, number, id, now).await?;
                    crate::retention::generation::adopt(tx, deletions.as_deref()).await?;
                    let said = Details::none()
                        .with("before", before.number)
                        .with("after", number)
                        .with("report", serde_json::to_value(so_far).unwrap_or_default());
                    ctx.record(tx, Action::CoordinatorRecover, &"coordinator", Outcome::Done, said).await?;
                    generation::get(tx).await
                }
                .boxed()
            })
            .await?;
        report.generation = row.number;
        self.core.standing.take(&row);
        // Where the bucket does not take it now, the next mark will do.
        let put = Generations::new(self.core.clone(), self.objects.clone());
        if let Err(error) = put.put(&Mark::from(&row)).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the bucket does not know the generation yet"
            );
        }
        self.core.standing.touch();
        Ok(())
    }
}

fn named(text: &str) -> Result<Name, RecoveryError> {
    text.parse().map_err(|_| RecoveryError::Content(format!("{text} cannot be a name")))
}

/// An agent out of its key object and what is known of its name.
///
/// # Errors
/// The database's own.
pub async fn new_agent(
    tx: &mut Tx,
    core: &Core,
    key: &AgentKeyObject,
    names: &Names,
) -> Result<AgentRow, RecoveryError> {
    let now = core.clock.now();
    if tokens::get(tx, recovery::TOKEN).await?.is_none() {
        let token = TokenRow {
            id: recovery::TOKEN.to_owned(),
            // Of random bytes that nobody keeps.
            secret_sha256: Sha256::of(&core.random.bytes::<32>()),
            labels: Labels::default(),
            scope: String::new(),
            name: String::new(),
            created: now,
            expires: now,
            uses: 0,
            used: 0,
            revoked: true,
            created_by: "coordinator".to_owned(),
            replaces: None,
        };
        tokens::insert(tx, &token).await?;
    }
    let host = names.host(key.agent());
    let name = match host.name {
        Some(name) if agents::by_name(tx, name.as_str()).await?.is_none() => name,
        _ => named(&placeholder(key.agent()))?,
    };
    let row = AgentRow {
        id: key.agent(),
        name,
        state: if host.revoked { AgentState::Revoked } else { AgentState::Active },
        state_reason: if host.revoked { "revoked before the recovery".to_owned() } else { String::new() },
        labels: host.labels,
        scope: host.scope,
        signing_key: key.signing_key(),
        key_object: key.bytes().to_vec(),
        tls_key_sha256: Sha256::of(b""),
        token_id: recovery::TOKEN.to_owned(),
        version: String::new(),
        os: String::new(),
        timezone: String::new(),
        address: String::new(),
        enrolled: key.created(),
        last_seen: key.created(),
        certificate_expires: now,
        wanted_name: String::new(),
        keep_until: None,
        clock_skew_ms: 0,
        key_epoch: 0,
        protocol: SaidProtocol::default(),
    };
    agents::insert(tx, &row).await?;
    Ok(row)
}
