//! Compares the packs of a series with a listing of the bucket: what is missing is not referred to again.

use std::collections::{BTreeSet, HashMap};

use futures::FutureExt as _;
use sealift_common::format::names::{ObjectName, packs_prefix};
use sealift_common::id::{SeriesId, Sha256};

use super::{BackupError, Backups};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::store::packs::{self, PackState};
use crate::store::sources;

/// A pack that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPack {
    /// Of which series.
    pub series: SeriesId,
    /// Its hash.
    pub sha256: Sha256,
    /// Missing, or damaged.
    pub state: PackState,
    /// What was found, for people.
    pub problem: String,
}

impl Backups {
    /// Lists the packs of a series and marks those that are missing, or of another length.
    ///
    /// # Errors
    /// Those of store and database.
    pub async fn check_listing(
        &self,
        ctx: &OpContext,
        series: SeriesId,
    ) -> Result<Vec<LostPack>, BackupError> {
        // What is stored after this moment may be missing from the listing and yet be there.
        let began = self.core.clock.now();
        let expected = packs::expected(&mut *self.core.store.reader().await?, series, began).await?;
        let mut missing: HashMap<Sha256, u64> = expected.into_iter().collect();
        let mut lost = Vec::new();
        let mut after = None;
        // A series without packs needs no listing.
        while !missing.is_empty() {
            let page = self.objects.list(&packs_prefix(series), after).await.map_err(BackupError::Objects)?;
            for object in &page.objects {
                let Ok(ObjectName::Pack { sha256, .. }) = object.name.as_str().parse() else { continue };
                if let Some(size) = missing.remove(&sha256)
                    && size != object.size
                {
                    let problem = format!("it is {} bytes, not {size}", object.size);
                    lost.push(LostPack { series, sha256, state: PackState::Damaged, problem });
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        lost.extend(missing.into_keys().map(|sha256| {
            let problem = "it is not in the bucket".to_owned();
            LostPack { series, sha256, state: PackState::Missing, problem }
        }));
        self.record_lost(ctx, &lost).await?;
        self.core
            .store
            .run_tx("record a listing", move |tx, _| packs::set_listed(tx, series, began).boxed())
            .await?;
        Ok(lost)
    }

    /// Marks packs as lost: no backup refers to them again. Each is audited.
    ///
    /// # Errors
    /// The database's own.
    pub async fn record_lost(&self, ctx: &OpContext, lost: &[LostPack]) -> Result<(), BackupError> {
        if lost.is_empty() {
            return Ok(());
        }
        self.core
            .store
            .run_tx("mark lost packs", move |tx, _| {
                async move {
                    // No Prepare is between looking at these packs and recording that it refers to them.
                    let series: BTreeSet<SeriesId> = lost.iter().map(|pack| pack.series).collect();
                    for series in series {
                        sources::lock_series(tx, series).await?;
                    }
                    for pack in lost {
                        if packs::lost(tx, pack.series, pack.sha256, pack.state).await? {
                            let said = Details::none()
                                .with("series", pack.series.to_string())
                                .with("state", pack.state.as_str())
                                .with("problem", pack.problem.as_str());
                            let entity = format!("pack:{}", pack.sha256);
                            ctx.record(tx, Action::BackupVerify, &entity, Outcome::Done, said).await?;
                        }
                    }
                    Ok::<_, BackupError>(())
                }
                .boxed()
            })
            .await?;
        for pack in lost {
            tracing::error!(series = %pack.series, pack = %pack.sha256, problem = pack.problem, "a pack is lost");
        }
        Ok(())
    }
}
