//! A backup opened through the coordinator: it says where things are and signs GETs; nothing that it says is believed that
//! the chain from the pinned root keys does not prove.

use std::sync::Arc;

use sealift_common::crypto::{Identities, TrustObject};
use sealift_common::format::names::ObjectName;
use sealift_common::id::{RepositoryId, Sha256};
use sealift_common::restore::{Beliefs, Located, ObjectSource, OpenBackup, SignedBackup, Trust, Witness};
use sealift_proto::v1;

use super::pins::{check_threshold, warn_unpinned};
use super::signed::SignedSource;
use super::{Pins, signed};
use crate::app::App;
use crate::coordinator::Coordinator;
use crate::error::{Error, Exit, Result, because, said};

/// An opened backup and the lease that keeps its packs.
pub struct Session {
    /// The backup.
    pub backup: OpenBackup,
    coordinator: Coordinator,
    lease: Vec<u8>,
}

impl Session {
    /// Opens the backup that `name` names.
    ///
    /// # Errors
    /// 4 where there is none; 7 where the chain does not hold.
    pub async fn open(
        app: &App,
        coordinator: Coordinator,
        name: &str,
        identities: Arc<Identities>,
        pins: &Pins,
    ) -> Result<Self> {
        let request = v1::OpenRestoreRequest { backup: name.to_owned() };
        let reply =
            coordinator.backups().open_restore(request).await.map_err(said("open the backup"))?.into_inner();
        let lease = reply.lease_id.clone();
        match Self::opened(app, &coordinator, reply, identities, pins).await {
            Ok(backup) => Ok(Self { backup, coordinator, lease }),
            Err(error) => {
                signed::close(&coordinator, lease, Err(&error)).await;
                Err(error)
            }
        }
    }

    async fn opened(
        app: &App,
        coordinator: &Coordinator,
        reply: v1::OpenRestoreReply,
        identities: Arc<Identities>,
        pins: &Pins,
    ) -> Result<OpenBackup> {
        let pin = pins.resolve(app)?;
        check_threshold(&pin)?;
        if pin.fingerprints.is_empty() {
            warn_unpinned(&app.ui);
        }
        let objects =
            reply.trust_chain.iter().map(|bytes| TrustObject::parse(bytes)).collect::<Result<Vec<_>, _>>();
        let objects = objects.map_err(lies("its trust policy cannot be read"))?;
        let repository =
            RepositoryId::try_from(reply.repository_id.as_slice()).map_err(lies("it names no repository"))?;
        let trust = Trust::verify(&pin, repository, &objects)?;
        let names =
            |texts: &[String]| texts.iter().map(|text| text.parse()).collect::<Result<Vec<ObjectName>, _>>();
        let located = Located {
            repository,
            manifest: reply.manifest_object.parse().map_err(lies("it names no manifest"))?,
            slots: names(&reply.slot_objects).map_err(lies("it names no slots"))?,
            agent_keys: names(&reply.agent_key_objects).map_err(lies("it names no agent's keys"))?,
        };
        let source: Arc<dyn ObjectSource> =
            Arc::new(SignedSource::new(coordinator.clone(), reply.lease_id, app.clock.clone())?);
        let beliefs = Beliefs { trust: &trust, accept_unknown_key: pins.accept_unknown_key };
        let backup = SignedBackup::load(source.as_ref(), &located, beliefs).await?;
        if !pins.accept_rollback
            && let Ok(manifest) = Sha256::try_from(reply.witness_sha256.as_slice())
        {
            let series = backup.public().owner.series;
            backup.compare(&Witness { series, sequence: reply.witness_sequence, manifest })?;
        }
        if let Some(info) = reply.backup.filter(|info| !info.id.is_empty())
            && info.id != backup.public().owner.backup.to_string()
        {
            return Err(Error::new(
                Exit::Verification,
                "the coordinator gave another backup than the one asked for",
            ));
        }
        Ok(backup.open(source, identities).await?)
    }

    /// Ends the lease.
    pub async fn close(self, outcome: Result<(), &Error>) {
        signed::close(&self.coordinator, self.lease, outcome).await;
    }
}

fn lies<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Error {
    because(Exit::Verification, format!("the coordinator's answer cannot be believed: {what}"))
}

/// Opens the manifest of a backup and one pack of each backup that wrote some of it.
pub async fn test_keys(
    app: &App,
    coordinator: &Coordinator,
    backup: &str,
    identities: Arc<Identities>,
    pins: &Pins,
) -> Result<()> {
    let session = Session::open(app, coordinator.clone(), backup, identities, pins).await?;
    let result = session.backup.test_keys().await.map_err(Error::from);
    session.close(result.as_ref().map(drop)).await;
    result
}
