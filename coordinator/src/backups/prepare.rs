//! *Prepare*: the public part of a manifest is checked against everything the coordinator knows, in one transaction; only
//! then is the manifest's PUT signed (docs/format.md, Writing 4).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::VerifyingKey;
use sealift_common::format::manifest::{ManifestProblem, ManifestPublic, Status, verify_prepared};
use sealift_common::format::names::ObjectName;
use sealift_common::id::{AgentId, BackupId, RepositoryId, Sha256};

use super::begin::{TrustInForce, trust_in_force};
use super::current::CurrentError;
use super::references::{References, references};
use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext};
use crate::objects::signing::{MAX_MANIFEST, PutTerms, SIGNATURE_LIFE, SignedRequest};
use crate::runs::state::AttemptEvent;
use crate::runs::{AttemptRef, Report, advance, fence};
use crate::store::backups::{self, AgentReport, BackupRow, BackupState, Prepared};
use crate::store::{Tx, agents, packs, sources};

/// A PUT that began while its signature was good may take this long to arrive, and clocks differ.
const ARRIVAL_GRACE: Duration = Duration::from_secs(15 * 60);

/// How a manifest's public part differs from what it must say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestMismatch {
    /// It does not parse, or its signature does not hold.
    #[error("{0}")]
    Problem(ManifestProblem),
    /// It is not the part whose hash was sent.
    #[error("its public part is not the one whose hash was sent")]
    Hash,
    /// A field differs.
    #[error("its {0} is not what Begin said")]
    Field(&'static str),
    /// It is not signed by the agent's key.
    #[error("it is not signed with the key that this agent is known by")]
    Key,
    /// Recipients have changed since Begin.
    #[error("the trust policy names other recipients by now: a new attempt will be sealed to them")]
    Recipients,
    /// A pack that it names may not be referred to.
    #[error("it names pack {sha256}, which {why}")]
    Pack {
        /// The pack's hash.
        sha256: Sha256,
        /// Why it may not.
        why: &'static str,
    },
    /// What it names is about to be deleted.
    #[error("it names packs that are being deleted")]
    Deleting,
    /// The whole would be too small or too large.
    #[error("a manifest of {0} bytes cannot be")]
    Size(u64),
}

/// What an agent sends ahead of the public part.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareHead {
    /// Of which backup.
    pub backup: BackupId,
    /// Of the slots.
    pub slots_sha256: Sha256,
    /// Of the sealed part.
    pub sealed_sha256: Sha256,
    /// The agent's, over all three parts.
    pub signature: Vec<u8>,
    /// Of the whole object.
    pub manifest_sha256: Sha256,
    /// Length of the whole object.
    pub manifest_size: u64,
    /// Of the public part.
    pub public_sha256: Sha256,
    /// What the agent says about the backup, for people.
    pub report: AgentReport,
    /// What earlier backups did not have.
    pub new_raw_bytes: u64,
}

/// The answer to Prepare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrepareAnswer {
    /// Send the manifest.
    Put(SignedRequest),
    /// It is in the bucket already.
    AlreadyCommitted,
}

impl Backups {
    /// Checks a manifest's public part, keeps its references, and signs its PUT. Asked again with the same manifest, it
    /// signs again.
    ///
    /// # Errors
    /// [`BackupError`]; refusals are audited, and nothing is signed.
    pub async fn prepare(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        head: PrepareHead,
        public: Bytes,
    ) -> Result<PrepareAnswer, BackupError> {
        let head = &head;
        let details = Details::none()
            .with("attempt", attempt.to_string())
            .with("manifest_sha256", head.manifest_sha256.to_string());
        let operation = ctx.operation(Action::BackupPrepare, format!("backup:{}", head.backup), details);
        let prepare = async {
            let agent = operation.agent()?;
            let mismatch = |mismatch| BackupError::Manifest { backup: head.backup, mismatch };
            let parsed = &parse(head.clone(), public).await.map_err(mismatch)?;
            let record = operation.change(move |tx, _| {
                async move {
                    let row = self.record_prepare(tx, attempt, agent, head, parsed).await?;
                    let said = Details::none()
                        .with("packs", parsed.packs.len())
                        .with("raw_bytes", parsed.raw_bytes)
                        .with("new_stored_bytes", parsed.new_stored_bytes);
                    Ok::<_, BackupError>((row, said))
                }
                .boxed()
            });
            record.await
        };
        let prepared = operation.run(prepare.boxed()).await?;
        self.runs.changed(attempt.run);
        let Some((backup, refs)) = prepared else { return Ok(PrepareAnswer::AlreadyCommitted) };
        if let Some(lock) = self.objects.lock() {
            self.extend_locks(backup.series, &refs, lock).await?;
        }
        let name = ObjectName::Manifest {
            series: backup.series,
            sequence: backup.sequence,
            sha256: head.manifest_sha256,
        };
        let (sha256, size) = (head.manifest_sha256, head.manifest_size);
        let terms = PutTerms { name: &name.into(), sha256, size, limit: MAX_MANIFEST };
        self.objects.sign_put(terms).map(PrepareAnswer::Put).map_err(BackupError::Signing)
    }

    /// The backup and what it refers to; `None` where it is committed already.
    async fn record_prepare(
        &self,
        tx: &mut Tx,
        attempt: &AttemptRef,
        agent: AgentId,
        head: &PrepareHead,
        public: &ManifestPublic,
    ) -> Result<Option<(BackupRow, RoaringBitmap)>, BackupError> {
        let foreign =
            || BackupError::Current(CurrentError::Backup { backup: head.backup, attempt: *attempt });
        let found = crate::runs::attempt::find(tx, attempt, agent).await?;
        let backup = backups::get(tx, head.backup).await?.ok_or_else(foreign)?;
        if (backup.run, backup.attempt) != (attempt.run, attempt.number) {
            return Err(foreign());
        }
        match (&backup.prepared, backup.state) {
            (Some(prepared), _) if prepared.manifest_sha256 != head.manifest_sha256 => {
                return Err(BackupError::OtherManifest { backup: head.backup });
            }
            (_, BackupState::Committed) => return Ok(None),
            _ => {}
        }
        fence(tx, attempt, agent).await?;
        if found.backup != Some(head.backup) {
            return Err(foreign());
        }
        let mismatch = |mismatch| BackupError::Manifest { backup: head.backup, mismatch };
        // From here on nothing of the series is doomed or deleted before this transaction has ended.
        sources::lock_series(tx, backup.series).await?;
        let found_refs = self.check(tx, agent, &backup, public).await?.map_err(mismatch)?;
        let now = self.core.clock.now();
        let locked_until = self.objects.lock().map(|lock| now.plus(lock.at_upload()));
        if !found_refs.keep(tx, backup.series, backup.id, now, locked_until).await? {
            return Err(mismatch(ManifestMismatch::Deleting));
        }
        let refs = found_refs.refs;
        advance(tx, now, &found, AttemptEvent::Prepare, Report::default()).await?;
        backups::prepare(tx, backup.id, &prepared(head, public, refs.clone(), now)).await?;
        Ok(Some((backup, refs)))
    }

    /// Compares a public part with what Begin said and with the packs of the series.
    async fn check(
        &self,
        tx: &mut Tx,
        agent: AgentId,
        backup: &BackupRow,
        public: &ManifestPublic,
    ) -> Result<Result<References, ManifestMismatch>, BackupError> {
        let Some(known) = agents::get(tx, agent).await? else { return Ok(Err(ManifestMismatch::Key)) };
        let trust = trust_in_force(tx, &known.scope).await?;
        let expected =
            Expected { repository: self.core.repository, backup, key: known.signing_key, trust: &trust };
        if let Err(mismatch) = expected.compare(public) {
            return Ok(Err(mismatch));
        }
        let hashes: Vec<Sha256> = public.packs.iter().map(|pack| pack.meta.sha256).collect();
        let candidates = packs::candidates(tx, backup.series, &hashes).await?;
        Ok(references(&public.packs, &candidates, backup.epoch))
    }
}

fn prepared(head: &PrepareHead, public: &ManifestPublic, refs: RoaringBitmap, now: UnixMillis) -> Prepared {
    Prepared {
        manifest_sha256: head.manifest_sha256,
        manifest_size: head.manifest_size,
        public_sha256: head.public_sha256,
        signed_until: now.plus(SIGNATURE_LIFE).plus(ARRIVAL_GRACE),
        refs,
        partial: public.status == Status::Partial,
        raw_bytes: public.raw_bytes,
        new_raw_bytes: head.new_raw_bytes,
        new_stored_bytes: public.new_stored_bytes,
        recipients: public.recipients.iter().map(Sha256::to_string).collect(),
        report: head.report.clone(),
    }
}

/// Everything that can be said of a public part without the database: off the async threads, it may be long.
async fn parse(head: PrepareHead, public: Bytes) -> Result<ManifestPublic, ManifestMismatch> {
    let parsed = tokio::task::spawn_blocking(move || {
        if Sha256::of(&public) != head.public_sha256 {
            return Err(ManifestMismatch::Hash);
        }
        if !(public.len() as u64..=MAX_MANIFEST).contains(&head.manifest_size) {
            return Err(ManifestMismatch::Size(head.manifest_size));
        }
        verify_prepared(&public, &head.slots_sha256, &head.sealed_sha256, &head.signature)
            .map_err(ManifestMismatch::Problem)
    });
    parsed.await.unwrap_or(Err(ManifestMismatch::Hash)) // cancelled with the program
}

/// What a public part must say.
struct Expected<'a> {
    repository: RepositoryId,
    backup: &'a BackupRow,
    key: VerifyingKey,
    trust: &'a TrustInForce,
}

impl Expected<'_> {
    fn compare(&self, public: &ManifestPublic) -> Result<(), ManifestMismatch> {
        let backup = self.backup;
        for (fits, field) in [
            (public.owner.repository == self.repository, "repository"),
            (public.owner.series == backup.series, "series"),
            (public.owner.backup == backup.id, "backup id"),
            (public.agent == backup.agent, "agent"),
            (public.sequence == backup.sequence, "sequence number"),
            (public.previous == backup.previous, "previous manifest"),
            (public.session_nonce == backup.session_nonce, "session nonce"),
            (public.epoch == backup.epoch, "epoch"),
            (public.trust_version == backup.trust_version, "trust version"),
        ] {
            if !fits {
                return Err(ManifestMismatch::Field(field));
            }
        }
        if public.signing_key != self.key {
            return Err(ManifestMismatch::Key);
        }
        if public.trust_version == self.trust.version && public.trust_sha256 != self.trust.sha256 {
            return Err(ManifestMismatch::Field("trust policy"));
        }
        // A newer policy that means the same recipients here does not cost a dump of many hours.
        let recipients: BTreeSet<Sha256> = public.recipients.iter().copied().collect();
        if recipients == self.trust.recipients { Ok(()) } else { Err(ManifestMismatch::Recipients) }
    }
}
