//! The chain of trust policies. The coordinator keeps it, serves it and checks it; only root keys, offline, can write it.
//!
//! A version is recorded in the database first (which decides between two admins), then put into the bucket, and is in
//! force once it is there: no manifest may name a policy that a restorer would not find.

use bytes::Bytes;
use futures::FutureExt as _;
use sealift_common::crypto::TrustObject;
use sealift_common::crypto::trust::{RootPin, TrustState, verify_chain};
use sealift_common::format::names::ObjectName;

use super::{Identities, IdentityError};
use crate::audit::{Action, Details, OpContext};
use crate::objects::{ObjectErrorKind, Put};
use crate::store::Tx;
use crate::store::trust::{self, TrustRow};

impl Identities {
    /// The objects in force, oldest first.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn trust_chain(&self, ctx: &OpContext) -> Result<Vec<TrustRow>, IdentityError> {
        ctx.authorize(Action::TrustShow, &"trust").await?;
        Ok(trust::chain(&mut *self.core.store.reader().await?, 0).await?)
    }

    /// What is in force; `None` before the first policy.
    ///
    /// # Errors
    /// [`IdentityError::Trust`] where the database was tampered with, or the database's own.
    pub async fn trust_state(&self, tx: &mut Tx) -> Result<Option<TrustState>, IdentityError> {
        let rows = trust::chain(tx, 0).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        self.verified(&rows).map(Some)
    }

    fn verified(&self, rows: &[TrustRow]) -> Result<TrustState, IdentityError> {
        if self.settings.roots.is_empty() {
            return Err(IdentityError::NoRoots);
        }
        let objects: Vec<_> =
            rows.iter().map(|row| TrustObject::parse(&row.object)).collect::<Result<_, _>>()?;
        let pin = RootPin::any_of(self.settings.roots.clone());
        Ok(verify_chain(&pin, None, self.core.repository, &objects)?)
    }

    /// Takes the next version, signed by the root keys in force. The same object again is no error.
    ///
    /// # Errors
    /// [`IdentityError::Trust`], [`IdentityError::TrustVersion`], or where the bucket does not take it: it then comes into
    /// force as soon as it does.
    pub async fn set_trust(&self, ctx: &OpContext, bytes: &[u8]) -> Result<TrustRow, IdentityError> {
        let row = ctx
            .perform(Action::TrustSet, &"trust", Details::none(), move |tx, _| {
                async move {
                    let row = self.append(tx, bytes).await?;
                    let said =
                        Details::none().with("version", row.version).with("sha256", row.sha256.to_string());
                    Ok::<_, IdentityError>((row, said))
                }
                .boxed()
            })
            .await?;
        self.store_trust().await?;
        Ok(row)
    }

    async fn append(&self, tx: &mut Tx, bytes: &[u8]) -> Result<TrustRow, IdentityError> {
        let object = TrustObject::parse(bytes)?;
        let mut rows = trust::all(tx).await?;
        if let Some(same) = rows.iter().find(|row| row.sha256 == object.sha256()) {
            return Ok(same.clone());
        }
        let (current, given) = (rows.last().map_or(0, |row| row.version), object.policy().version);
        if given != current + 1 {
            return Err(IdentityError::TrustVersion { current, given });
        }
        let row = TrustRow {
            version: given,
            sha256: object.sha256(),
            object: bytes.to_vec(),
            stored: self.core.clock.now(),
            in_bucket: false,
        };
        rows.push(row.clone());
        self.verified(&rows)?;
        trust::insert(tx, &row).await?;
        Ok(row)
    }

    /// Puts into the bucket what is not there yet. Called after each change and at each start.
    ///
    /// # Errors
    /// The bucket's and the database's own.
    pub async fn store_trust(&self) -> Result<(), IdentityError> {
        let rows = trust::all(&mut *self.core.store.reader().await?).await?;
        for row in rows.into_iter().filter(|row| !row.in_bucket) {
            let key = ObjectName::Trust { version: row.version, sha256: row.sha256 }.into();
            match self.objects.put(&key, Bytes::from(row.object), Put::New).await {
                Err(error) if error.kind != ObjectErrorKind::AlreadyThere => return Err(error.into()),
                _ => {}
            }
            let version = row.version;
            self.core
                .store
                .run_tx("trust is in the bucket", move |tx, _| {
                    async move { trust::set_in_bucket(tx, version).await }.boxed()
                })
                .await?;
        }
        Ok(())
    }
}
