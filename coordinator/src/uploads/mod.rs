//! Packs on their way from an agent to the bucket: signed for one by one, looked at once they are there.
//!
//! An agent names a pack it has made, gets one PUT over exactly those bytes, sends them straight to the store, and says so.
//! The coordinator then looks at the object itself and calls the pack *stored*; only then may a backup refer to it.
//! Signatures and confirmations that go well are rows of `packs`, not events: a fleet makes 300,000 a night. What is
//! refused is audited.
//!
//! What if the process dies? After the row is written and before the signature is handed out: the agent asks again and is
//! signed again. After the PUT and before the row says *stored*: the agent confirms again. Nothing else is kept.

mod inspect;

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use sealift_common::format::names::ObjectName;
use sealift_common::format::pack::{MAX_RAW, PackProblem, TRAILER_LEN};
use sealift_common::id::{AgentId, BackupId, PackId, SeriesId, Sha256};

use crate::audit::{AccessError, Action, Details, OpContext, OpError, Operation};
use crate::backups::current::{CurrentError, current, current_to_look};
use crate::core::Core;
use crate::objects::signing::{MAX_PACK, MIN_SIGNED, PutTerms, SignedRequest, SigningError};
use crate::objects::{ByteRange, ObjectError, ObjectErrorKind, ObjectStore};
use crate::runs::{AttemptRef, fence};
use crate::store::backups::BackupRow;
use crate::store::packs::{self, PackFacts, PackRow, PackState};
use crate::store::{StoreError, Tx};

use inspect::{Fault, inspect};

/// Packs of one attempt that may be signed for and not yet confirmed.
pub const MAX_AHEAD: u32 = 4;
/// Most packs whose indexes are read in one call.
pub const MAX_INDEXES: usize = 256;
/// When an agent that is too far ahead may ask again.
pub const AHEAD_RETRY: Duration = Duration::from_secs(1);

/// Why a pack is not signed for, or not stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The attempt or its backup is not the one that counts.
    #[error(transparent)]
    Current(#[from] CurrentError),
    /// Lengths that no pack has.
    #[error("no pack is signed for that is {size} bytes long, or has parts of these lengths")]
    Lengths {
        /// Of the object.
        size: u64,
        /// What is wrong with its parts, where the whole would do.
        #[source]
        source: Option<PackProblem>,
    },
    /// The agent is too far ahead.
    #[error("{MAX_AHEAD} packs are signed for and not confirmed: confirm one first")]
    TooFarAhead,
    /// The series has a pack of these bytes that this backup cannot have made.
    #[error("pack {sha256} of this series is another backup's, or was described otherwise, or is {state}")]
    Taken {
        /// Its hash.
        sha256: Sha256,
        /// Where it is in its life.
        state: PackState,
    },
    /// Confirmed without having been signed for.
    #[error("pack {sha256} was not signed for in this backup")]
    NotAuthorized {
        /// Its hash.
        sha256: Sha256,
    },
    /// Confirmed without being there.
    #[error("pack {sha256} is not in the bucket: send it again")]
    NotThere {
        /// Its hash.
        sha256: Sha256,
    },
    /// What is there is not what was signed for. It has been removed.
    #[error("what was stored as pack {sha256} is not what was signed for: {fault}")]
    Altered {
        /// Its hash.
        sha256: Sha256,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The signer.
    #[error("no upload can be signed")]
    Signing(#[source] SigningError),
    /// The store.
    #[error("the object store could not be asked")]
    Objects(#[source] ObjectError),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the pack could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for UploadError {
    fn is_refusal(&self) -> bool {
        match self {
            Self::Current(inner) => inner.is_refusal(),
            Self::Lengths { .. } | Self::Taken { .. } | Self::NotAuthorized { .. } => true,
            Self::NotThere { .. } | Self::Altered { .. } => true,
            _ => false,
        }
    }

    fn is_passing(&self) -> bool {
        match self {
            Self::TooFarAhead => true,
            Self::Objects(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// A pack that an agent wants to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewPack {
    /// Its own id.
    pub pack: PackId,
    /// What its agent says of it; `origin` is the backup it is stored in.
    pub facts: PackFacts,
    /// Raw bytes in it, as its agent says; 0 where it does not say. Only for judging how much of it is still used.
    pub raw_len: u64,
}

/// Signs for packs and looks at what arrived. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uploads {
    core: Core,
    objects: ObjectStore,
}

impl Uploads {
    /// Uploads into `objects`.
    pub fn new(core: Core, objects: ObjectStore) -> Self {
        Self { core, objects }
    }

    /// Signs a PUT of this pack for the attempt's current backup. Asked again, it signs again.
    ///
    /// # Errors
    /// [`UploadError`]; refusals are audited, and nothing is signed.
    pub async fn authorize(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        pack: NewPack,
    ) -> Result<SignedRequest, UploadError> {
        let operation = operation(ctx, Action::PackAuthorize, attempt, pack.facts.meta.sha256);
        operation.run(async { self.sign(operation.agent()?, attempt, pack).await }.boxed()).await
    }

    async fn sign(
        &self,
        agent: AgentId,
        attempt: &AttemptRef,
        pack: NewPack,
    ) -> Result<SignedRequest, UploadError> {
        check_lengths(&pack.facts)?;
        let series = self
            .core
            .store
            .run_tx("sign for a pack", move |tx, _| self.note_signature(tx, agent, attempt, pack).boxed())
            .await?;
        let key = ObjectName::Pack { series, sha256: pack.facts.meta.sha256 }.into();
        let terms = PutTerms {
            name: &key,
            sha256: pack.facts.meta.sha256,
            size: pack.facts.meta.size,
            limit: MAX_PACK,
        };
        self.objects.sign_put(terms).map_err(UploadError::Signing)
    }

    async fn note_signature(
        &self,
        tx: &mut Tx,
        agent: AgentId,
        attempt: &AttemptRef,
        pack: NewPack,
    ) -> Result<SeriesId, UploadError> {
        let backup = current(tx, attempt, agent, pack.facts.origin).await?;
        let (series, sha256, now) = (backup.series, pack.facts.meta.sha256, self.core.clock.now());
        let ahead = packs::ahead(tx, series, backup.id, sha256).await?;
        if ahead.unconfirmed >= MAX_AHEAD {
            return Err(UploadError::TooFarAhead);
        }
        let locked_until = self.objects.lock().map(|lock| now.plus(lock.at_upload()));
        match packs::get(tx, series, sha256).await? {
            None => {
                let row = PackRow {
                    series,
                    ordinal: ahead.next_ordinal,
                    pack: pack.pack,
                    facts: pack.facts,
                    epoch: backup.epoch,
                    trust_version: backup.trust_version,
                    state: PackState::Signed,
                    signed: now,
                    stored: None,
                    raw_len: pack.raw_len.min(MAX_RAW),
                    locked_until,
                };
                packs::insert(tx, &row).await?;
            }
            Some(known)
                if known.facts == pack.facts
                    && known.pack == pack.pack
                    && matches!(known.state, PackState::Signed | PackState::Stored | PackState::Live) =>
            {
                packs::signed_again(tx, series, known.ordinal, now, locked_until).await?;
            }
            Some(known) => return Err(UploadError::Taken { sha256, state: known.state }),
        }
        Ok(series)
    }

    /// Looks at a pack that its agent says is stored. Asked again, it answers the same.
    ///
    /// # Errors
    /// [`UploadError`]; refusals are audited. What is there and is not what was signed for is removed.
    pub async fn confirm(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        backup: BackupId,
        sha256: Sha256,
    ) -> Result<(), UploadError> {
        let operation = operation(ctx, Action::PackConfirm, attempt, sha256);
        let look = async { self.look_and_note(operation.agent()?, attempt, backup, sha256).await };
        operation.run(look.boxed()).await
    }

    async fn look_and_note(
        &self,
        agent: AgentId,
        attempt: &AttemptRef,
        backup: BackupId,
        sha256: Sha256,
    ) -> Result<(), UploadError> {
        let pack = {
            let mut conn = self.core.store.reader().await?;
            let backup = current_to_look(&mut conn, attempt, agent, backup).await?;
            signed_for(&mut conn, &backup, sha256).await?
        };
        match pack.state {
            PackState::Signed => {}
            PackState::Stored | PackState::Live => return Ok(()),
            state => return Err(UploadError::Taken { sha256, state }),
        }
        self.look(&pack).await?;
        let now = self.core.clock.now();
        self.core
            .store
            .run_tx("confirm a pack", move |tx, _| {
                async move {
                    let backup = current(tx, attempt, agent, backup).await?;
                    let pack = signed_for(tx, &backup, sha256).await?;
                    Ok(packs::stored(tx, pack.series, pack.ordinal, now).await?)
                }
                .boxed()
            })
            .await
    }

    /// Whether what is in the bucket is what was signed for.
    async fn look(&self, pack: &PackRow) -> Result<(), UploadError> {
        let (series, sha256) = (pack.series, pack.facts.meta.sha256);
        let key = ObjectName::Pack { series, sha256 }.into();
        match inspect(&self.objects, &key, sha256, pack.facts.meta.size)
            .await
            .map_err(UploadError::Objects)?
        {
            None => Err(UploadError::NotThere { sha256 }),
            Some(Ok(())) => Ok(()),
            Some(Err(fault)) => {
                // Nobody refers to it: it was never called stored. Left there, it would keep the right bytes out.
                let removed = self.objects.delete(&key, fault.version.as_deref()).await;
                if let Err(error) = removed {
                    tracing::warn!(error = &error as &dyn std::error::Error, %key, "cannot remove a false pack");
                }
                Err(UploadError::Altered { sha256, fault })
            }
        }
    }

    /// What the series knows of these packs, in the order asked; `None` where it has no such pack to read.
    ///
    /// # Errors
    /// [`UploadError`]; an attempt that does not count is audited.
    pub async fn indexes(
        &self,
        ctx: &OpContext,
        attempt: &AttemptRef,
        hashes: &[Sha256],
    ) -> Result<(SeriesId, Vec<Option<PackFacts>>), UploadError> {
        let operation = ctx.operation(Action::IndexRead, format!("attempt:{attempt}"), Details::none());
        let find = async {
            let agent = operation.agent()?;
            let find = self.core.store.run_tx("find packs to read", move |tx, _| {
                async move {
                    let attempt = fence(tx, attempt, agent).await.map_err(CurrentError::Run)?;
                    Ok::<_, UploadError>((
                        attempt.series,
                        packs::candidates(tx, attempt.series, hashes).await?,
                    ))
                }
                .boxed()
            });
            find.await
        };
        let (series, found) = operation.run(find.boxed()).await?;
        let readable = |hash: &Sha256| {
            let found = found.iter().find(|c| c.facts.meta.sha256 == *hash && c.state.is_referable());
            found.map(|candidate| candidate.facts)
        };
        Ok((series, hashes.iter().map(readable).collect()))
    }

    /// Sealed index, directory and header of a stored pack, as they lie there; `None` where they cannot be read.
    ///
    /// # Errors
    /// Where the store cannot be asked now.
    pub async fn read_index(
        &self,
        series: SeriesId,
        facts: &PackFacts,
    ) -> Result<Option<Bytes>, UploadError> {
        let tail = facts.meta.trailer().tail_len();
        let offset = facts.meta.size.saturating_sub(tail);
        let len = tail.saturating_sub(TRAILER_LEN as u64);
        let key = ObjectName::Pack { series, sha256: facts.meta.sha256 }.into();
        match self.objects.get(&key, ByteRange::From { offset, len }, len).await {
            Ok(tail) if tail.len() as u64 == len => Ok(Some(tail)),
            Ok(_) => Ok(None),
            Err(error) if error.is_retryable() || error.kind == ObjectErrorKind::Denied => {
                Err(UploadError::Objects(error))
            }
            Err(_) => Ok(None),
        }
    }
}

fn operation<'ctx>(
    ctx: &'ctx OpContext,
    action: Action,
    attempt: &AttemptRef,
    sha256: Sha256,
) -> Operation<'ctx> {
    let details = Details::none().with("attempt", attempt.to_string());
    ctx.operation(action, format!("pack:{sha256}"), details)
}

/// The pack that was signed for in this backup.
async fn signed_for(tx: &mut Tx, backup: &BackupRow, sha256: Sha256) -> Result<PackRow, UploadError> {
    let pack = packs::get(tx, backup.series, sha256).await?;
    pack.filter(|p| p.facts.origin == backup.id).ok_or(UploadError::NotAuthorized { sha256 })
}

fn check_lengths(facts: &PackFacts) -> Result<(), UploadError> {
    let size = facts.meta.size;
    if !(MIN_SIGNED..=MAX_PACK).contains(&size) {
        return Err(UploadError::Lengths { size, source: None });
    }
    facts.meta.trailer().check(size).map_err(|problem| UploadError::Lengths { size, source: Some(problem) })
}
