//! A series goes into the database, in one transaction: its backups, their packs, and runs that stand for those of before.

use std::collections::HashMap;

use futures::FutureExt as _;
use roaring::RoaringBitmap;
use sealift_common::clock::UnixMillis;
use sealift_common::format::manifest::{ManifestPublic, Status};
use sealift_common::id::{PackId, RunId, Sha256};

use super::super::RecoveryError;
use super::super::names::placeholder;
use super::{Believed, Known, Reconciler, Report, SeriesInBucket, named};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::runs::Attempt;
use crate::runs::state::{AttemptState, RunState};
use crate::store::backups::{self, AgentReport, BackupRow, BackupState, Keeping, Prepared};
use crate::store::packs::{self, PackFacts, PackRow, PackState};
use crate::store::runs::{self, RunRow};
use crate::store::{Tx, attempts, recovery, sources};

/// How the runs of recovered backups say who asked for them.
const REQUESTED_BY: &str = "recovery";

impl Reconciler {
    /// One series, in one transaction.
    pub(super) async fn take_in(
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
}
