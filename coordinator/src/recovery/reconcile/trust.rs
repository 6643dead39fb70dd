//! Trust policies of the bucket, and the names of the hosts' keys there.

use std::collections::HashMap;

use futures::FutureExt as _;
use sealift_common::crypto::TrustObject;
use sealift_common::crypto::trust::{RootPin, TrustState, verify_chain};
use sealift_common::format::names::{AGENTS_PREFIX, ObjectName, TRUST_PREFIX};
use sealift_common::id::{AgentId, RepositoryId};

use super::super::RecoveryError;
use super::super::names::Names;
use super::{Known, MAX_LISTED, Reconciler, Report};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::objects::ByteRange;
use crate::store::recovery;
use crate::store::trust::{self, TrustRow};

/// Largest trust object that is read.
const MAX_TRUST: u64 = 20 * 1024 * 1024;

impl Reconciler {
    /// Trust, repository, and the names of the hosts' keys.
    pub(super) async fn prepare(
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
}
