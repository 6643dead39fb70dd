//! What a host remembers of its series, held against what this database knows: a host is a witness. Where it remembers a newer
//! manifest than is known here, the database was restored from an older backup (or altered): that is recorded, and told.

use std::collections::BTreeSet;

use sealift_common::id::{AgentId, SeriesId, Sha256};

use super::SessionService;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::store::unknown_heads::{self, UnknownHead};
use crate::store::{StoreError, Tx, backups, sources};

/// The newest manifest of a series that its host knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaidHead {
    /// The series.
    pub series: SeriesId,
    /// The manifest's sequence number.
    pub sequence: u64,
    /// Its hash.
    pub manifest: Sha256,
}

/// Whether a host remembers what is not `known` here. That it has missed the newest ones is nothing: its disk may have been
/// full, or its state is older.
fn is_unknown(said: &SaidHead, known: Option<(u64, Sha256)>) -> bool {
    match known {
        None => true,
        Some((sequence, manifest)) => {
            said.sequence > sequence || (said.sequence == sequence && said.manifest != manifest)
        }
    }
}

impl SessionService {
    /// Compares what an agent says of its own series with what is known of them.
    pub(super) async fn take_heads(
        &self,
        tx: &mut Tx,
        ctx: &OpContext,
        agent: AgentId,
        said: &[SaidHead],
    ) -> Result<(), StoreError> {
        let own: BTreeSet<SeriesId> =
            sources::of_agent(tx, agent).await?.into_iter().map(|source| source.series).collect();
        for head in said.iter().filter(|head| own.contains(&head.series)) {
            let known = backups::head(tx, head.series).await?;
            let known = known.and_then(|row| Some((row.sequence, row.prepared?.manifest_sha256)));
            let unknown = is_unknown(head, known);
            let news = if unknown {
                let SaidHead { series, sequence, manifest } = *head;
                let seen = self.core.clock.now();
                unknown_heads::put(tx, &UnknownHead { series, agent, sequence, manifest, seen }).await?
            } else {
                unknown_heads::forget(tx, head.series).await?
            };
            if !news {
                continue;
            }
            if unknown {
                tracing::warn!(%agent, series = %head.series, sequence = head.sequence, "a host remembers a newer backup than this database");
            }
            let said = Details::none()
                .with("sequence", head.sequence)
                .with("manifest_sha256", head.manifest.to_string())
                .with("known_sequence", known.map_or(0, |(sequence, _)| sequence))
                .with("known_here", !unknown);
            let entity = format!("series:{}", head.series);
            ctx.record(tx, Action::SeriesAhead, &entity, Outcome::Done, said).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_newer_or_other_is_unknown() {
        let (one, two) = (Sha256::of(b"1"), Sha256::of(b"2"));
        let said = SaidHead { series: SeriesId::from_bytes([1; 16]), sequence: 7, manifest: one };
        for (known, unknown) in [
            (None, true),
            (Some((6, one)), true),
            (Some((7, two)), true),
            (Some((7, one)), false),
            (Some((8, two)), false),
        ] {
            assert_eq!(is_unknown(&said, known), unknown, "{known:?}");
        }
    }
}
