//! *Begin*: a new backup of a series, and the packs that it may refer to.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::crypto::{EpochId, TrustObject};
use sealift_common::id::{AgentId, BackupId, SeriesId, Sha256};

use super::current::CurrentError;
use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext};
use crate::runs::state::AttemptEvent;
use crate::runs::{AttemptRef, Report, advance, fence};
use crate::store::backups::{self, BackupRow, BackupState, Keeping};
use crate::store::packs::{self, PackFacts};
use crate::store::{StoreError, Tx, agents, series, sources, trust};

/// Packs of one message of the answer.
pub const PACKS_PER_MESSAGE: u32 = 4_096;
/// Packs that were not seen in a listing for longer are not offered before the series was listed again.
const LISTING_AGE: Duration = Duration::from_secs(24 * 3_600);

/// A backup that has begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// The backup, with its sequence number, nonce and what came before it.
    pub backup: BackupRow,
    /// Trust objects that the agent does not know, oldest first.
    pub trust_chain: Vec<Vec<u8>>,
    /// The trust policy in force.
    pub trust: TrustInForce,
    /// What the last backup read from the source; 0 for the first.
    pub previous_raw_bytes: u64,
}

/// What the trust policies say about one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustInForce {
    /// Version of the newest policy.
    pub version: u64,
    /// Of its object.
    pub sha256: Sha256,
    /// Fingerprints of whom it wants to be able to open backups of the scope.
    pub recipients: BTreeSet<Sha256>,
    /// Versions under which packs were sealed that all of them can open.
    pub openable: Vec<u64>,
}

/// Reads what the trust policies say about `scope`.
///
/// # Errors
/// [`BackupError::NoRecipients`], or those of database and stored policies.
pub async fn trust_in_force(tx: &mut Tx, scope: &str) -> Result<TrustInForce, BackupError> {
    let none = || BackupError::NoRecipients { scope: scope.to_owned() };
    let mut versions = Vec::new();
    for row in trust::chain(tx, 0).await? {
        let object = TrustObject::parse(&row.object).map_err(BackupError::Trust)?;
        let recipients = object.policy().recipients_for(scope).unwrap_or_default();
        let recipients: BTreeSet<Sha256> = recipients.iter().map(|r| r.fingerprint()).collect();
        versions.push((row.version, row.sha256, recipients));
    }
    let (version, sha256, recipients) = versions.last().cloned().ok_or_else(none)?;
    if recipients.is_empty() {
        return Err(none());
    }
    let openable = versions.iter().filter(|(.., others)| others.is_superset(&recipients));
    let openable = openable.map(|(version, ..)| *version).collect();
    Ok(TrustInForce { version, sha256, recipients, openable })
}

impl Backups {
    /// Begins a backup for `attempt`; called again after a lost session, it begins another one.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn begin(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        epoch: EpochId,
        known_trust: u64,
    ) -> Result<Begun, BackupError> {
        let new = NewBackup {
            id: BackupId::generate(&self.core.random),
            nonce: self.core.random.bytes(),
            epoch,
            known_trust,
        };
        let details = Details::none().with("attempt", attempt.to_string());
        let operation = ctx.operation(Action::BackupBegin, format!("backup:{}", new.id), details);
        let begin = async {
            let agent = operation.agent()?;
            self.settle_series(ctx, attempt, agent).await?;
            let record = operation.change(move |tx, _| {
                async move {
                    let begun = self.record_begin(tx, attempt, agent, new).await?;
                    let said = Details::none()
                        .with("series", begun.backup.series.to_string())
                        .with("sequence", begun.backup.sequence)
                        .with("trust_version", begun.trust.version);
                    Ok::<_, BackupError>((begun, said))
                }
                .boxed()
            });
            record.await
        };
        let begun = operation.run(begin.boxed()).await?;
        self.runs.changed(attempt.run);
        Ok(begun)
    }

    /// What has to be asked of the bucket before a series goes on: did the manifest of an earlier backup arrive; are the
    /// packs still there?
    async fn settle_series(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        agent: AgentId,
    ) -> Result<(), BackupError> {
        let find = self.core.store.run_tx("find the series of an attempt", move |tx, _| {
            async move {
                let series = fence(tx, attempt, agent).await.map_err(CurrentError::Run)?.series;
                let listed = packs::listed(tx, series).await?;
                Ok::<_, BackupError>((series, backups::committing(tx, Some(series), 100).await?, listed))
            }
            .boxed()
        });
        let (series, committing, listed) = find.await?;
        for backup in &committing {
            self.resolve(backup).await?;
        }
        if listed.is_none_or(|at| self.core.clock.now().since(at) >= LISTING_AGE) {
            self.check_listing(ctx, series).await?;
        }
        Ok(())
    }

    async fn record_begin(
        &self,
        tx: &mut Tx,
        attempt: &AttemptRef,
        agent: AgentId,
        new: NewBackup,
    ) -> Result<Begun, BackupError> {
        let now = self.core.clock.now();
        let found = fence(tx, attempt, agent).await?;
        if series::leave_epoch(tx, found.series).await? == Some(new.epoch) {
            return Err(BackupError::EpochLeft { series: found.series });
        }
        let scope = agents::get(tx, agent).await?.map(|agent| agent.scope).unwrap_or_default();
        let trust = trust_in_force(tx, &scope).await?;
        let report = Report { backup: Some(new.id), ..Report::default() };
        let found = advance(tx, now, &found, AttemptEvent::Begin, report).await?;
        let head = backups::head(tx, found.series).await?;
        let head = head.as_ref().and_then(|backup| backup.prepared.as_ref());
        let source = sources::of_series(tx, found.series).await?;
        let backup = BackupRow {
            id: new.id,
            series: found.series,
            agent,
            run: attempt.run,
            attempt: attempt.number,
            state: BackupState::Begun,
            sequence: backups::next_sequence(tx, found.series).await?,
            previous: head.map(|prepared| prepared.manifest_sha256),
            session_nonce: new.nonce,
            epoch: new.epoch,
            trust_version: trust.version,
            kind: source.map(|source| source.kind).unwrap_or_default(),
            created: now,
            prepared: None,
            committed: None,
            keeping: Keeping::default(),
        };
        backups::insert(tx, &backup).await?;
        let chain = trust::chain(tx, new.known_trust).await?;
        let previous_raw_bytes = head.map_or(0, |prepared| prepared.raw_bytes);
        let trust_chain = chain.into_iter().map(|row| row.object).collect();
        Ok(Begun { backup, trust_chain, trust, previous_raw_bytes })
    }

    /// The next packs that the backup may refer to, after the ordinal given; at most [`PACKS_PER_MESSAGE`].
    ///
    /// # Errors
    /// The database's own.
    pub async fn referable(
        &self,
        begun: &Begun,
        after: Option<u32>,
    ) -> Result<Vec<(u32, PackFacts)>, StoreError> {
        let (series, epoch): (SeriesId, EpochId) = (begun.backup.series, begun.backup.epoch);
        let mut reader = self.core.store.reader().await?;
        packs::referable(&mut reader, series, epoch, &begun.trust.openable, after, PACKS_PER_MESSAGE).await
    }
}

#[derive(Debug, Clone, Copy)]
struct NewBackup {
    id: BackupId,
    nonce: [u8; 32],
    epoch: EpochId,
    known_trust: u64,
}
