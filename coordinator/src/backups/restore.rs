//! Restores: a lease that keeps a backup's objects, and signed GETs for them. Bytes go from the store to the admin
//! directly; the coordinator never sees them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::format::names::{ObjectName, agent_prefix, slots_prefix};
use sealift_common::id::{BackupId, LeaseId, Sha256};

use super::query::BackupView;
use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext};
use crate::objects::ObjectKey;
use crate::objects::signing::SignedRequest;
use crate::store::backups::{self, BackupRow};
use crate::store::restore_leases::{self, RestoreLeaseRow};
use crate::store::{Tx, packs, trust};

/// How long a restore may be without a word; every call extends it.
const LEASE: Duration = Duration::from_secs(24 * 3_600);
/// Objects signed for in one call.
pub const MAX_GETS: usize = 256;
/// Key slots or agent keys listed for one restore.
const MAX_LISTED: usize = 10_000;

/// What a restore needs to start.
#[derive(Debug, Clone)]
pub struct OpenedRestore {
    /// The backup.
    pub view: BackupView,
    /// Names this restore in further calls.
    pub lease: LeaseId,
    /// All trust objects, oldest first.
    pub trust_chain: Vec<Vec<u8>>,
    /// Its manifest.
    pub manifest: ObjectName,
    /// Further key slots for the data keys that it needs.
    pub slots: Vec<ObjectKey>,
    /// Signing keys of the agent that made it.
    pub agent_keys: Vec<ObjectKey>,
    /// Hash and sequence number of the newest manifest of the series that the coordinator has seen.
    pub witness: Option<(Sha256, u64)>,
}

impl Backups {
    /// Opens a restore of the backup that `text` names.
    ///
    /// # Errors
    /// As [`Backups::find`]; those of access, store and database.
    pub async fn open_restore(&self, ctx: &OpContext, text: &str) -> Result<OpenedRestore, BackupError> {
        let id = LeaseId::generate(&self.core.random);
        let now = self.core.clock.now();
        let entity = format!("backup:{}", text.chars().take(120).collect::<String>());
        let opened = ctx.perform(Action::RestoreOpen, &entity, Details::none(), move |tx, _| {
            async move {
                let backup = self.find(tx, text).await?;
                let lease = RestoreLeaseRow {
                    id,
                    backup: backup.id,
                    opened_by: ctx.actor().to_string(),
                    opened: now,
                    expires: now.plus(LEASE),
                    closed: None,
                };
                restore_leases::insert(tx, &lease).await?;
                let head = backups::head(tx, backup.series).await?;
                let chain = trust::chain(tx, 0).await?;
                let said = Details::none().with("backup", backup.id.to_string());
                Ok::<_, BackupError>(((self.view(tx, backup).await?, head, chain), said))
            }
            .boxed()
        });
        let (view, head, chain) = opened.await?;
        let manifest = manifest_name(&view.backup)?;
        let slots = self.slots_of(&view.backup).await?;
        let listed = self.objects.list_all(&agent_prefix(view.backup.agent), MAX_LISTED).await;
        let agent_keys = listed.map_err(BackupError::Objects)?.into_iter().map(|o| o.name).collect();
        let witness = head.and_then(|h| h.prepared.map(|prepared| (prepared.manifest_sha256, h.sequence)));
        let trust_chain = chain.into_iter().map(|row| row.object).collect();
        Ok(OpenedRestore { view, lease: id, trust_chain, manifest, slots, agent_keys, witness })
    }

    /// Further key slots of every backup whose data key this one needs.
    async fn slots_of(&self, backup: &BackupRow) -> Result<Vec<ObjectKey>, BackupError> {
        let origins = self.origins(backup).await?;
        // One listing for the series instead of one for each of, perhaps, a year's backups.
        let all = slots_prefix(backup.series, backup.id);
        let below = all.split_inclusive('/').take(3).collect::<String>();
        let listed = self.objects.list_all(&below, MAX_LISTED).await.map_err(BackupError::Objects)?;
        let needed = |key: &ObjectKey| match key.as_str().parse() {
            Ok(ObjectName::Slots { backup, .. }) => origins.contains(&backup),
            _ => false,
        };
        Ok(listed.into_iter().map(|object| object.name).filter(needed).collect())
    }

    async fn origins(&self, backup: &BackupRow) -> Result<BTreeSet<BackupId>, BackupError> {
        let mut origins = BTreeSet::from([backup.id]);
        if let Some(prepared) = &backup.prepared {
            let mut reader = self.core.store.reader().await?;
            let packs = packs::of_ordinals(&mut reader, backup.series, &prepared.refs).await?;
            origins.extend(packs.into_iter().map(|(facts, _)| facts.origin));
        }
        Ok(origins)
    }

    /// Signs GETs for objects of the backup that is being restored, in the order asked; nothing else is signed.
    ///
    /// # Errors
    /// [`BackupError::RestoreOver`], [`BackupError::ForeignObject`], and others; refusals are audited.
    pub async fn sign_gets(
        &self,
        ctx: &OpContext,
        lease: LeaseId,
        objects: &[String],
    ) -> Result<Vec<SignedRequest>, BackupError> {
        let operation = ctx.operation(Action::RestoreSign, format!("restore:{lease}"), Details::none());
        let allowed = operation.run(self.allowed(ctx, lease, objects).boxed()).await?;
        let sign = |key: &ObjectKey| self.objects.sign_get(key).map_err(BackupError::Signing);
        allowed.iter().map(sign).collect()
    }

    async fn allowed(
        &self,
        ctx: &OpContext,
        lease: LeaseId,
        objects: &[String],
    ) -> Result<Vec<ObjectKey>, BackupError> {
        let found = self.core.store.run_tx("extend a restore", move |tx, _| {
            async move {
                let now = self.core.clock.now();
                let mut lease = own_lease(tx, ctx, lease).await?;
                if lease.closed.is_some() || lease.expires < now {
                    return Err(BackupError::RestoreOver);
                }
                lease.expires = now.plus(LEASE);
                restore_leases::update(tx, &lease).await?;
                let backup = backups::get(tx, lease.backup).await?;
                backup.ok_or(BackupError::RestoreOver)
            }
            .boxed()
        });
        let backup = found.await?;
        let foreign = |text: &str| BackupError::ForeignObject { object: text.chars().take(200).collect() };
        let names: Vec<ObjectName> =
            objects.iter().map(|text| text.parse().map_err(|_| foreign(text))).collect::<Result<_, _>>()?;
        let hashes: Vec<Sha256> = names.iter().filter_map(ObjectName::sha256).collect();
        let mut reader = self.core.store.reader().await?;
        let candidates = packs::candidates(&mut reader, backup.series, &hashes).await?;
        drop(reader);
        let refs = backup.prepared.as_ref().map(|prepared| &prepared.refs);
        let packs: BTreeSet<Sha256> = candidates
            .iter()
            .filter(|candidate| refs.is_some_and(|refs| refs.contains(candidate.ordinal)))
            .map(|candidate| candidate.facts.meta.sha256)
            .collect();
        let manifest = manifest_name(&backup)?;
        let origins = match names.iter().any(|name| matches!(name, ObjectName::Slots { .. })) {
            true => self.origins(&backup).await?,
            false => BTreeSet::new(),
        };
        let part = |name: &ObjectName| match name {
            ObjectName::Repository | ObjectName::Trust { .. } => true,
            ObjectName::AgentKey { agent, .. } => *agent == backup.agent,
            ObjectName::Manifest { .. } => *name == manifest,
            ObjectName::Pack { series, sha256 } => *series == backup.series && packs.contains(sha256),
            ObjectName::Slots { series, backup: of, .. } => *series == backup.series && origins.contains(of),
        };
        match names.iter().find(|name| !part(name)) {
            Some(name) => Err(foreign(&name.to_string())),
            None => Ok(names.into_iter().map(ObjectKey::from).collect()),
        }
    }

    /// Ends a restore, saying how it went. Asked again, nothing happens.
    ///
    /// # Errors
    /// [`BackupError::RestoreOver`] for one that is not the caller's, and those of access and database.
    pub async fn close_restore(
        &self,
        ctx: &OpContext,
        lease: LeaseId,
        outcome: &str,
    ) -> Result<(), BackupError> {
        let details = Details::none().with("outcome", outcome);
        ctx.perform(Action::RestoreClose, &format!("restore:{lease}"), details, move |tx, _| {
            async move {
                let mut row = own_lease(tx, ctx, lease).await?;
                row.closed = row.closed.or(Some(self.core.clock.now()));
                restore_leases::update(tx, &row).await?;
                let said = Details::none().with("backup", row.backup.to_string());
                Ok::<_, BackupError>(((), said))
            }
            .boxed()
        })
        .await
    }
}

/// The manifest's name of a prepared backup.
///
/// # Errors
/// [`BackupError::NotPrepared`].
pub fn manifest_name(backup: &BackupRow) -> Result<ObjectName, BackupError> {
    let prepared = backup.prepared.as_ref().ok_or(BackupError::NotPrepared { backup: backup.id })?;
    let (series, sequence, sha256) = (backup.series, backup.sequence, prepared.manifest_sha256);
    Ok(ObjectName::Manifest { series, sequence, sha256 })
}

async fn own_lease(tx: &mut Tx, ctx: &OpContext, id: LeaseId) -> Result<RestoreLeaseRow, BackupError> {
    let lease = restore_leases::lock(tx, id).await?;
    lease.filter(|lease| lease.opened_by == ctx.actor().to_string()).ok_or(BackupError::RestoreOver)
}
