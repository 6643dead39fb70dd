//! The coordinator's own backup: its database, a catalogue of the fleet and its CA, sealed to the recipients of the trust
//! policy, in the bucket. Daily, and when somebody asks.
//!
//! It is an ordinary backup of a series of its own ([`COORDINATOR_SERIES`]), so every restorer reads it. Its manifest is
//! signed with a key that is derived from the CA's: all coordinators of one CA sign alike, a rebuilt one goes on with it,
//! and there is no further secret to keep. The last [`KEPT`] are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::{AgentKeyObject, KeyOwner, Recipient, SeriesSecret, SigningKey, TrustState};
use sealift_common::format::coordinator::{CA, CATALOGUE, DATABASE, Entry, KIND};
use sealift_common::format::manifest::{Content, Manifest, ManifestObject, PublicDraft, Source, Status};
use sealift_common::format::names::{COORDINATOR_SERIES, ObjectName, manifests_prefix, packs_prefix};
use sealift_common::format::pack::BackupKeys;
use sealift_common::id::{AgentId, BackupId, Sha256};
use sealift_common::selector::Selector;
use tokio_util::sync::CancellationToken;

use super::seal::{Sealed, Sealer};
use super::{RecoveryError, deletion_allowed, lines};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::identity::Identities;
use crate::identity::ca::STATEMENT;
use crate::objects::signing::MAX_MANIFEST;
use crate::objects::{ByteRange, ObjectErrorKind, ObjectKey, ObjectStore, Put};
use crate::recovery::generation::Mark;
use crate::store::export::{self, Table};
use crate::store::{StoreError, Tx, agents, backups, generation, sources};

/// Backups of the coordinator that are kept.
pub const KEPT: usize = 30;
/// Between two of them.
const INTERVAL: Duration = Duration::from_secs(24 * 3_600);
/// The first look after a start: what restarts often must not back up often.
const FIRST: Duration = Duration::from_secs(600);
/// Between two looks whether one is due.
const LOOK: Duration = Duration::from_secs(900);
/// How long one may take before another coordinator tries.
const CLAIM: Duration = Duration::from_secs(2 * 3_600);
/// Objects of the coordinator's own that are listed.
const MAX_LISTED: usize = 100_000;
/// Under which rule of the trust policy the coordinator falls: one for all scopes, or one of this name.
pub const SCOPE: &str = "coordinator";

/// The key that signs the coordinator's backups, and under which id.
#[derive(Debug)]
pub struct Signer {
    /// As which agent.
    pub agent: AgentId,
    /// With which key.
    pub key: SigningKey,
}

impl Signer {
    /// Out of the CA's key: the same in every coordinator that has it.
    pub fn of(ca: &crate::identity::ca::Ca) -> Self {
        let id: [u8; 32] = ca.derive("sealift/1/coordinator/agent-id");
        let mut agent = [0; 16];
        agent.copy_from_slice(&id[..16]);
        let key = SigningKey::from_seed(ca.derive("sealift/1/coordinator/signing-key"));
        Self { agent: AgentId::from_bytes(agent), key }
    }

    /// Its `agents/` object.
    pub fn object(&self) -> AgentKeyObject {
        AgentKeyObject::first(self.agent, &self.key, UnixMillis(0))
    }
}

/// One that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its manifest.
    pub name: ObjectName,
    /// The how-manieth.
    pub sequence: u64,
    /// Rows of the database.
    pub rows: u64,
    /// Bytes in the bucket.
    pub stored_bytes: u64,
    /// Who can open it: fingerprints.
    pub recipients: Vec<Sha256>,
}

/// Makes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OwnBackups {
    core: Core,
    objects: ObjectStore,
    identities: Identities,
    ca_dir: PathBuf,
    /// Packs that no manifest named when they were looked at last: a backup may have been under way.
    strangers: Arc<Mutex<BTreeSet<ObjectKey>>>,
}

impl OwnBackups {
    /// Of the coordinator whose CA lies in `ca_dir`.
    pub fn new(core: Core, objects: ObjectStore, identities: Identities, ca_dir: PathBuf) -> Self {
        Self { core, objects, identities, ca_dir, strangers: Arc::default() }
    }

    /// Makes one whenever the last one is a day old, until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let mut pause = FIRST;
        loop {
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(pause) => {} }
            pause = LOOK;
            let ctx = OpContext::coordinator(&self.core);
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.if_due(&ctx) => outcome,
            };
            if let Err(error) = outcome {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot back up the coordinator itself; trying again");
            }
        }
    }

    async fn if_due(&self, ctx: &OpContext) -> Result<(), RecoveryError> {
        if self.core.standing.serving().is_err() || self.trust().await?.is_none() {
            return Ok(());
        }
        let now = self.core.clock.now();
        let claimed = self.core.store.run_tx("claim the coordinator's backup", move |tx, _| {
            generation::claim_backup(tx, now, now.minus(INTERVAL), now.plus(CLAIM)).boxed()
        });
        if claimed.await? { self.store(ctx).await.map(drop) } else { Ok(()) }
    }

    async fn trust(&self) -> Result<Option<TrustState>, RecoveryError> {
        Ok(self.identities.trust_state(&mut *self.core.store.reader().await?).await?)
    }

    /// Makes one now.
    ///
    /// # Errors
    /// [`RecoveryError`]; what was stored by then is removed some day.
    pub async fn store(&self, ctx: &OpContext) -> Result<Made, RecoveryError> {
        let (action, entity) = (Action::CoordinatorBackup, &"coordinator");
        ctx.authorize(action, entity).await?;
        ctx.record_alone(action, entity, Outcome::Intended, Details::none()).await?;
        let made = self.make().await;
        let ended = made.is_ok().then(|| self.core.clock.now());
        self.core
            .store
            .run_tx("end the coordinator's backup", move |tx, _| generation::end_backup(tx, ended).boxed())
            .await?;
        match &made {
            Ok(made) => {
                let said = Details::none()
                    .with("sequence", made.sequence)
                    .with("object", made.name.to_string())
                    .with("rows", made.rows)
                    .with("stored_bytes", made.stored_bytes);
                ctx.record_alone(action, entity, Outcome::Done, said).await?;
                if let Err(error) = self.prune().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot remove old backups of the coordinator");
                }
            }
            Err(error) => {
                let said = Details::none().with("error", error.to_string());
                ctx.record_alone(action, entity, Outcome::Failed, said).await?;
            }
        }
        made
    }

    async fn make(&self) -> Result<Made, RecoveryError> {
        self.core.standing.serving()?;
        let trust = self.trust().await?.ok_or(RecoveryError::NoRecipients)?;
        let recipients: Vec<Recipient> = trust
            .policy
            .recipients_for(SCOPE)
            .filter(|all| !all.is_empty())
            .ok_or(RecoveryError::NoRecipients)?;
        let signer = Signer::of(self.identities.ca());
        self.put_new(signer.object().name(), signer.object().bytes().to_vec()).await?;
        let (sequence, previous) = self.next_sequence().await?;
        let random = &self.core.random;
        let owner = KeyOwner {
            repository: self.core.repository,
            series: COORDINATOR_SERIES,
            backup: BackupId::generate(random),
        };
        let nonce = random.bytes();
        let secret = SeriesSecret::generate(random);
        let keys = BackupKeys::generate(random, &nonce, owner, secret, &recipients)
            .map_err(|error| RecoveryError::Seal(error.to_string()))?;
        // Boxed: it is large, and one of a day.
        let (sealed, rows) = Box::pin(self.seal(&keys)).await?;
        let stored_bytes = sealed.packs.iter().map(|pack| pack.meta.size).sum();
        let draft = PublicDraft {
            agent: signer.agent,
            sequence,
            previous,
            created: self.core.clock.now(),
            session_nonce: nonce,
            trust_version: trust.known.version,
            trust_sha256: trust.known.sha256,
            status: Status::Complete,
            new_stored_bytes: stored_bytes,
            packs: sealed.packs.clone(),
        };
        let manifest = ManifestObject::seal(draft, &content(sealed), &keys, &signer.key, random)
            .map_err(|problem| RecoveryError::Seal(problem.to_string()))?;
        let name = manifest.name;
        self.put_new(name, manifest.bytes).await?;
        let recipients = recipients.iter().map(Recipient::fingerprint).collect();
        tracing::info!(sequence, rows, stored_bytes, "the coordinator has backed itself up");
        Ok(Made { name, sequence, rows, stored_bytes, recipients })
    }

    async fn put_new(&self, name: ObjectName, bytes: Vec<u8>) -> Result<(), RecoveryError> {
        match self.objects.put(&name.into(), Bytes::from(bytes), Put::New).await {
            Err(error) if error.kind != ObjectErrorKind::AlreadyThere => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn manifests(&self) -> Result<Vec<ObjectName>, RecoveryError> {
        manifests(&self.objects).await
    }

    async fn next_sequence(&self) -> Result<(u64, Option<Sha256>), RecoveryError> {
        Ok(match self.manifests().await?.last() {
            Some(ObjectName::Manifest { sequence, sha256, .. }) => (sequence + 1, Some(*sha256)),
            _ => (1, None),
        })
    }

    /// Everything, out of one snapshot of the database.
    async fn seal(&self, keys: &BackupKeys) -> Result<(Sealed, u64), RecoveryError> {
        let mut sealer = Sealer::new(&self.objects, keys, &self.core.random);
        let mut tx = self.core.store.snapshot().await?;
        let rows = self.seal_database(&mut tx, &mut sealer).await?;
        let mut open = sealer.begin(CATALOGUE);
        let (mut after, mut more) = (String::new(), true);
        while more {
            let page = agents::selected(&mut tx, &Selector::default(), &after, 1_000).await?;
            for agent in &page {
                for entry in entries(&mut tx, agent).await? {
                    sealer.write(&mut open, &lines::entry(&entry)).await?;
                }
            }
            more = page.last().is_some();
            after = page.last().map_or(after, |agent| agent.name.to_string());
        }
        sealer.end(open).await?;
        // It was only read.
        drop(tx);
        let mut open = sealer.begin(CA);
        let files = zeroize::Zeroizing::new(self.ca_files()?);
        sealer.write(&mut open, &files).await?;
        sealer.end(open).await?;
        Ok((sealer.finish().await?, rows))
    }

    async fn seal_database(&self, tx: &mut Tx, sealer: &mut Sealer<'_>) -> Result<u64, RecoveryError> {
        let row = generation::get(tx).await?;
        let created = self.core.clock.now().rfc3339();
        let mut open = sealer.begin(DATABASE);
        let head = lines::Head::new(self.core.repository, Mark::from(&row), created);
        sealer.write(&mut open, &lines::head(&head)).await?;
        let mut count = 0;
        for table in export::tables(tx).await? {
            count += seal_table(tx, &table, sealer, &mut open).await?;
        }
        sealer.write(&mut open, &lines::end(count)).await?;
        sealer.end(open).await?;
        Ok(count)
    }

    fn ca_files(&self) -> Result<Vec<u8>, RecoveryError> {
        let mut files = BTreeMap::new();
        for name in super::ca::FILES {
            let path = self.ca_dir.join(name);
            let text =
                std::fs::read_to_string(&path).map_err(|source| RecoveryError::File { path, source })?;
            files.insert(*name, text);
        }
        let path = self.ca_dir.join(STATEMENT);
        match std::fs::read_to_string(&path) {
            Ok(text) => drop(files.insert(STATEMENT, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(RecoveryError::File { path, source }),
        }
        Ok(serde_json::to_vec(&files).unwrap_or_default())
    }

    /// Removes all but the newest: manifests before packs. Packs without a manifest go when they were seen so twice.
    async fn prune(&self) -> Result<(), RecoveryError> {
        let manifests = self.manifests().await?;
        let (old, kept) = manifests.split_at(manifests.len().saturating_sub(KEPT));
        let mut named = BTreeSet::new();
        for name in kept {
            named.extend(self.packs_of(name).await?);
        }
        let mut going = BTreeSet::new();
        for name in old {
            going.extend(self.packs_of(name).await?);
        }
        let listed = self.objects.list_all(&packs_prefix(COORDINATOR_SERIES), MAX_LISTED).await?;
        let strangers: BTreeSet<ObjectKey> = listed
            .into_iter()
            .map(|object| object.name)
            .filter(|key| !named.contains(key) && !going.contains(key))
            .collect();
        let known = {
            let mut known = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, strangers.clone())
        };
        going.extend(strangers.into_iter().filter(|key| known.contains(key)));
        if old.is_empty() && going.is_empty() {
            return Ok(());
        }
        deletion_allowed(&self.core, &self.objects).await?;
        for name in old {
            self.objects.delete(&(*name).into(), None).await?;
        }
        for key in going.difference(&named) {
            self.objects.delete(key, None).await?;
        }
        Ok(())
    }

    /// The packs that a manifest of the coordinator's names; none where it cannot be read: it is then no manifest.
    async fn packs_of(&self, name: &ObjectName) -> Result<Vec<ObjectKey>, RecoveryError> {
        let bytes = self.objects.get(&(*name).into(), ByteRange::All, MAX_MANIFEST).await?;
        let Ok(manifest) = Manifest::parse(self.core.repository, name, &bytes) else { return Ok(Vec::new()) };
        let name =
            |pack: &sealift_common::format::manifest::PackRef| pack.meta.name(COORDINATOR_SERIES).into();
        Ok(manifest.public().packs.iter().map(name).collect())
    }
}

/// The manifests of the coordinator's backups, oldest first.
///
/// # Errors
/// The bucket's own.
pub async fn manifests(objects: &ObjectStore) -> Result<Vec<ObjectName>, RecoveryError> {
    let listed = objects.list_all(&manifests_prefix(COORDINATOR_SERIES), MAX_LISTED).await?;
    let mut names: Vec<ObjectName> =
        listed.iter().filter_map(|object| object.name.as_str().parse().ok()).collect();
    names.retain(|name| matches!(name, ObjectName::Manifest { .. }));
    names.sort_unstable();
    Ok(names)
}

async fn seal_table(
    tx: &mut Tx,
    table: &Table,
    sealer: &mut Sealer<'_>,
    open: &mut super::seal::Open,
) -> Result<u64, RecoveryError> {
    sealer.write(open, &lines::table(table)).await?;
    let (mut rows, mut count) = (export::rows(tx, table), 0);
    while let Some(cells) = rows.next().await {
        sealer.write(open, &lines::row(&cells?)).await?;
        count += 1;
    }
    Ok(count)
}

async fn entries(tx: &mut Tx, agent: &agents::AgentRow) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    for source in sources::of_agent(tx, agent.id).await? {
        let head = backups::head(tx, source.series).await?;
        let manifest = head.as_ref().and_then(|head| head.prepared.as_ref());
        entries.push(Entry {
            series_id: source.series,
            host: agent.name.to_string(),
            agent_id: agent.id,
            agent_state: agent.state.to_string(),
            signing_key: hex::encode(agent.signing_key.as_bytes()),
            source: source.name.to_string(),
            kind: source.kind,
            labels: agent.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            scope: agent.scope.clone(),
            sequence: head.as_ref().map_or(0, |head| head.sequence),
            manifest_sha256: manifest.map(|prepared| prepared.manifest_sha256.to_string()),
        });
    }
    Ok(entries)
}

fn content(sealed: Sealed) -> Content {
    let source = Source {
        kind: KIND.to_owned(),
        name: "database".to_owned(),
        host: "coordinator".to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Source::default()
    };
    let chunking = sealift_proto::format::Chunking { algorithm: "fixed".to_owned(), ..Default::default() };
    Content { chunking, source, streams: sealed.streams }
}
