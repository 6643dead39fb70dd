//! What hosts report in Hello: the newest manifest that each knows of its series. It bridges the seconds between a change
//! and its mark ([`super::generation`]).
//!
//! A host's word alone moves nothing but its own series' sequence numbers. Where it names a manifest that the database has
//! never heard of, the bucket is asked: a manifest that is there, signed by that host, was signed for by a database that
//! knew more than this one.

use sealift_common::format::manifest::Manifest;
use sealift_common::format::names::ObjectName;
use sealift_common::id::AgentId;

use super::{Generations, RecoveryError};
use crate::objects::signing::MAX_MANIFEST;
use crate::objects::{ByteRange, ObjectErrorKind};
use crate::sessions::SaidHead;
use crate::store::{agents, recovery};

/// Heads of one host that are looked for: one is enough.
const MAX_LOOKS: usize = 8;

impl Generations {
    /// Looks for manifests that a host names and the database does not know.
    ///
    /// # Errors
    /// Those of bucket and database.
    pub async fn examine(&self, agent: AgentId, heads: &[SaidHead]) -> Result<(), RecoveryError> {
        for head in heads.iter().take(MAX_LOOKS) {
            let (series, sequence) = (head.series, head.sequence);
            let name = ObjectName::Manifest { series, sequence, sha256: head.manifest };
            let bytes = match self.objects().get(&name.into(), ByteRange::All, MAX_MANIFEST).await {
                Err(error) if error.kind == ObjectErrorKind::NotFound => continue,
                other => other?,
            };
            let Ok(manifest) = Manifest::parse(self.core().repository, &name, &bytes) else { continue };
            // The database after the bucket: it may have been on its way.
            let mut reader = self.core().store.reader().await?;
            let row = agents::get(&mut reader, agent).await?;
            let known = recovery::known_backups(&mut reader, series).await?;
            drop(reader);
            let its_own = manifest.public().agent == agent
                && row.is_some_and(|row| row.signing_key == manifest.public().signing_key);
            if its_own && !known.iter().any(|backup| backup.manifest == Some(head.manifest)) {
                let reason = format!(
                    "host {agent} knows backup {sequence} of series {series}, it is in the bucket, and this database has never heard of it"
                );
                return self.behind(&reason).await;
            }
        }
        Ok(())
    }
}
