//! What admins ask about backups: which there are, and which one a text names.

use std::collections::BTreeSet;
use std::str::FromStr;

use sealift_common::clock::UnixMillis;
use sealift_common::id::{AgentId, SeriesId};
use sealift_common::name::SourceRef;
use sealift_common::selector::Selector;

use super::{BackupError, Backups};
use crate::audit::{Action, OpContext};
use crate::store::agents::AgentRow;
use crate::store::backups::{self, BackupRow, BackupState};
use crate::store::lists::backups::{BackupList, BackupOrder};
use crate::store::lists::history::Of;
use crate::store::lists::{Page, Paging};
use crate::store::{Tx, agents, lists, sources};

/// How a text names a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupRef {
    /// By the beginning of its id.
    Prefix(String),
    /// The newest good one of a source that was begun by then (complete and whole; the newest of all where none is);
    /// `latest:` is without a moment.
    At(SourceRef, Option<UnixMillis>),
}

impl FromStr for BackupRef {
    type Err = BackupError;
    fn from_str(text: &str) -> Result<Self, BackupError> {
        let bad = || BackupError::Reference(text.chars().take(120).collect());
        if let Some(source) = text.strip_prefix("latest:") {
            return Ok(Self::At(source.parse().map_err(|_| bad())?, None));
        }
        if let Some((source, time)) = text.split_once('@') {
            let time: jiff::Timestamp = time.parse().map_err(|_| bad())?;
            let source = source.parse().map_err(|_| bad())?;
            return Ok(Self::At(source, Some(UnixMillis(time.as_millisecond()))));
        }
        let looks_like_id = !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        if looks_like_id { Ok(Self::Prefix(text.to_ascii_lowercase())) } else { Err(bad()) }
    }
}

/// A backup with the names of its host and source.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupView {
    /// The backup.
    pub backup: BackupRow,
    /// Name of its host.
    pub agent: String,
    /// Name of its source.
    pub source: String,
}

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct BackupQuery {
    /// Only backups of this source, or (without a slash) of this agent; empty for all.
    pub source: String,
    /// Only backups of agents with such labels.
    pub selector: Selector,
    /// Only backups committed at or after this moment.
    pub since: UnixMillis,
    /// Those that were deleted and can be undeleted, instead of those that are there.
    pub expired: bool,
}

impl Backups {
    /// The committed backup that `text` names.
    ///
    /// # Errors
    /// [`BackupError::Reference`], [`BackupError::NotFound`], [`BackupError::Ambiguous`], [`BackupError::Expired`], or the
    /// database's own.
    pub async fn find(&self, tx: &mut Tx, text: &str) -> Result<BackupRow, BackupError> {
        let found = self.find_any(tx, text).await?;
        match found.state {
            BackupState::Committed => Ok(found),
            _ => Err(BackupError::Expired { backup: found.id }),
        }
    }

    /// The backup that `text` names: a committed one, or one that was deleted and can be undeleted.
    ///
    /// # Errors
    /// As [`Backups::find`].
    pub async fn find_any(&self, tx: &mut Tx, text: &str) -> Result<BackupRow, BackupError> {
        let none = || BackupError::NotFound {
            what: format!("backup {:?}", text.chars().take(120).collect::<String>()),
        };
        match text.parse()? {
            BackupRef::Prefix(prefix) => {
                let mut found = backups::by_prefix(tx, &prefix).await?;
                match (found.pop(), found.is_empty()) {
                    (Some(backup), true) => Ok(backup),
                    (Some(_), false) => Err(BackupError::Ambiguous(prefix)),
                    (None, _) => Err(none()),
                }
            }
            BackupRef::At(source, at) => {
                let series = series_of(tx, &source).await?;
                let at = at.unwrap_or(UnixMillis(i64::MAX));
                backups::newest_at(tx, series, at).await?.ok_or_else(none)
            }
        }
    }

    /// One backup.
    ///
    /// # Errors
    /// As [`Backups::find`], and those of access.
    pub async fn show(&self, ctx: &OpContext, text: &str) -> Result<BackupView, BackupError> {
        ctx.authorize(Action::BackupShow, &"backup").await?;
        let mut reader = self.core.store.reader().await?;
        let backup = self.find_any(&mut reader, text).await?;
        self.view(&mut reader, backup).await
    }

    /// A backup's row with the names that people know it by.
    ///
    /// # Errors
    /// The database's own.
    pub async fn view(&self, tx: &mut Tx, backup: BackupRow) -> Result<BackupView, BackupError> {
        let agent = agents::get(tx, backup.agent).await?.map(|a| a.name.to_string()).unwrap_or_default();
        let source = sources::of_series(tx, backup.series).await?;
        Ok(BackupView { agent, source: source.map(|s| s.name.to_string()).unwrap_or_default(), backup })
    }

    /// Committed backups, and where the next page begins.
    ///
    /// # Errors
    /// [`BackupError::NotFound`] for a source or agent that does not exist, and those of access and database.
    pub async fn list(
        &self,
        ctx: &OpContext,
        query: &BackupQuery,
        paging: &Paging<BackupOrder>,
    ) -> Result<Page<BackupView>, BackupError> {
        ctx.authorize(Action::BackupList, &"backups").await?;
        let mut reader = self.core.store.reader().await?;
        let Some(of) = listed_of(&mut reader, query).await? else {
            return Ok(Page { rows: Vec::new(), next: None });
        };
        let list = BackupList { of, since: query.since, expired: query.expired };
        let page = lists::backups::list(&mut reader, &list, paging).await?;
        let series: BTreeSet<SeriesId> = page.rows.iter().map(|backup| backup.series).collect();
        let names = lists::sources::names(&mut reader, &Vec::from_iter(series)).await?;
        let view = |backup: BackupRow| {
            let (agent, source) = names.get(&backup.series).cloned().unwrap_or_default();
            BackupView { backup, agent, source }
        };
        Ok(Page { rows: page.rows.into_iter().map(view).collect(), next: page.next })
    }
}

/// What a list is narrowed to; `None` where nothing can be in it.
async fn listed_of(tx: &mut Tx, query: &BackupQuery) -> Result<Option<Of>, BackupError> {
    let bad = |_| BackupError::Reference(query.source.chars().take(120).collect());
    let (agent, of) = match query.source.as_str() {
        "" => return Ok(Some(Of::Labels(query.selector.clone()))),
        source if source.contains('/') => {
            let source: SourceRef = source.parse().map_err(bad)?;
            (agent_of(tx, &source.agent).await?, Of::Series(series_of(tx, &source).await?))
        }
        agent => {
            let agent = agent_of(tx, agent).await?;
            let of = Of::Agent(agent.id);
            (agent, of)
        }
    };
    Ok(Some(of).filter(|_| query.selector.matches(&agent.labels)))
}

async fn agent_of(tx: &mut Tx, text: &str) -> Result<AgentRow, BackupError> {
    let by_id = match text.parse::<AgentId>() {
        Ok(id) => agents::get(tx, id).await?,
        Err(_) => None,
    };
    let found = match by_id {
        Some(agent) => Some(agent),
        None => agents::by_name(tx, text).await?,
    };
    let what = || format!("agent {:?}", text.chars().take(80).collect::<String>());
    found.ok_or_else(|| BackupError::NotFound { what: what() })
}

async fn series_of(tx: &mut Tx, source: &SourceRef) -> Result<SeriesId, BackupError> {
    let agent = agent_of(tx, &source.agent).await?.id;
    let found = sources::get(tx, agent, &source.source).await?;
    found.map(|s| s.series).ok_or_else(|| BackupError::NotFound { what: format!("source {source}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_named_by_id_source_or_moment() {
        assert_eq!("01AB-".parse::<BackupRef>().unwrap(), BackupRef::Prefix("01ab-".into()));
        let source: SourceRef = "store-1/main".parse().unwrap();
        assert_eq!("latest:store-1/main".parse::<BackupRef>().unwrap(), BackupRef::At(source.clone(), None));
        assert_eq!(
            "store-1/main@2026-01-02T03:04:05Z".parse::<BackupRef>().unwrap(),
            BackupRef::At(source, Some(UnixMillis(1_767_323_045_000)))
        );
        for bad in ["", "latest:", "latest:store", "store-1/main", "x@y", "store-1/main@yesterday", "zz"] {
            assert!(bad.parse::<BackupRef>().is_err(), "{bad}");
        }
    }
}
