//! Restores with the real engine: through the coordinator's signed GETs, and from the bucket alone.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use sealift_common::crypto::{Identities, RootPin, TrustObject};
use sealift_common::format::names::{ObjectName, agent_prefix};
use sealift_common::id::{AgentId, LeaseId};
use sealift_common::restore::{
    Beliefs, Located, ObjectError, ObjectSource, SignedBackup, Trust, VerifiedReader,
};
use sealift_coordinator::audit::OpContext;
use sealift_coordinator::backups::Backups;
use sealift_coordinator::objects::{ByteRange, ObjectStore};

use super::host::STREAM;
use crate::support::World;

/// Who restores, and what is believed.
pub struct Restorer {
    pub identities: Arc<Identities>,
    pub trust: TrustObject,
}

fn unreadable(object: &ObjectName, problem: impl ToString) -> ObjectError {
    let _ = problem.to_string();
    ObjectError::NotFound { object: object.to_string() }
}

/// The bucket, and nothing else.
#[derive(Debug)]
struct Bucket(ObjectStore);

impl ObjectSource for Bucket {
    fn get<'a>(&'a self, object: &'a ObjectName, limit: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        async move {
            let got = self.0.get(&(*object).into(), ByteRange::All, limit).await;
            got.map_err(|error| unreadable(object, error))
        }
        .boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        async move {
            let len = range.end - range.start;
            let got = self.0.get(&(*object).into(), ByteRange::From { offset: range.start, len }, len).await;
            got.map_err(|error| unreadable(object, error))
        }
        .boxed()
    }

    fn announce(&self, _: &[ObjectName]) {}
}

/// What the coordinator signs for under a lease.
#[derive(Debug)]
pub struct Lease {
    pub backups: Backups,
    pub ctx: OpContext,
    pub lease: LeaseId,
    pub http: reqwest::Client,
}

impl Lease {
    async fn fetch(&self, object: &ObjectName, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        let signed = self.backups.sign_gets(&self.ctx, self.lease, &[object.to_string()]).await;
        let signed = signed.map_err(|error| unreadable(object, error))?.remove(0);
        let mut request = self.http.get(&signed.url);
        for (name, value) in signed.headers.iter().filter(|(name, _)| name != "content-length") {
            request = request.header(name, value);
        }
        if let Some(range) = &range {
            request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = request.send().await.map_err(|error| unreadable(object, error))?;
        let response = response.error_for_status().map_err(|error| unreadable(object, error))?;
        response.bytes().await.map_err(|error| unreadable(object, error))
    }
}

impl ObjectSource for Lease {
    fn get<'a>(&'a self, object: &'a ObjectName, _: u64) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.fetch(object, None).boxed()
    }

    fn get_range<'a>(
        &'a self,
        object: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.fetch(object, Some(range)).boxed()
    }

    fn announce(&self, _: &[ObjectName]) {}
}

impl Restorer {
    /// Restores the backup with this manifest from the bucket alone.
    pub async fn offline(
        &self,
        world: &World,
        manifest: ObjectName,
        agent: AgentId,
    ) -> Result<Vec<u8>, String> {
        self.read(world, Arc::new(Bucket(world.objects.clone())), manifest, agent).await
    }

    /// Restores it through the coordinator.
    pub async fn online(
        &self,
        world: &World,
        lease: Lease,
        manifest: ObjectName,
        agent: AgentId,
    ) -> Result<Vec<u8>, String> {
        self.read(world, Arc::new(lease), manifest, agent).await
    }

    async fn read(
        &self,
        world: &World,
        source: Arc<dyn ObjectSource>,
        manifest: ObjectName,
        agent: AgentId,
    ) -> Result<Vec<u8>, String> {
        let pin = RootPin::any_of(vec![world.root_fingerprint()]);
        let repository = world.core.repository;
        let trust = Trust::verify(&pin, repository, std::slice::from_ref(&self.trust)).unwrap();
        let listed = world.objects.list_all(&agent_prefix(agent), 10).await.unwrap();
        let agent_keys = listed.iter().map(|object| object.name.as_str().parse().unwrap()).collect();
        let located = Located { repository, manifest, slots: Vec::new(), agent_keys };
        let beliefs = Beliefs { trust: &trust, accept_unknown_key: false };
        let said = |error: sealift_common::restore::RestoreError| error.to_string();
        let signed = SignedBackup::load(source.as_ref(), &located, beliefs).await.map_err(said)?;
        let backup = signed.open(source, self.identities.clone()).await.map_err(said)?;
        let stream = backup.stream(STREAM).map_err(said)?.clone();
        let reader = backup.read(&stream).map_err(said)?.blocking(tokio::runtime::Handle::current());
        let reader = VerifiedReader::new(reader, &stream);
        let copied = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            reader.copy_to(&mut out, Path::new("memory")).map(|()| out)
        });
        copied.await.unwrap().map_err(said)
    }
}
