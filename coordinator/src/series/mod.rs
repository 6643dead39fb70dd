//! Series as admins see them: which there are, under which name, and from which epoch on.
//!
//! A series outlives what feeds it: a host may be replaced ([`crate::identity::enrol`]), a source may get another name
//! ([`SeriesService::rename`]). A spoiled one is bounded by a new dedup epoch ([`SeriesService::start_epoch`]): nothing of before is built
//! upon any more, and what is stored stays restorable.

use futures::FutureExt as _;
use sealift_common::name::{Name, SourceRef};
use sealift_common::protocol::Feature;

use crate::audit::{AccessError, Action, Details, OpContext, OpError};
use crate::core::Core;
use crate::identity::{IdentityError, agents};
use crate::store::agents::AgentRow;
use crate::store::series::{self, SeriesRow};
use crate::store::{StoreError, Tx, attempts, sources};

/// Why an operation on a series did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// No such series.
    #[error("there is no {what}")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A prefix of several ids.
    #[error("{0:?} is the beginning of more than one id: give more of it")]
    Ambiguous(String),
    /// The source is still there under its present name.
    #[error("{agent} still has the source {source_name}: rename it in the host's configuration first")]
    StillPresent {
        /// The host.
        agent: String,
        /// The source.
        source_name: String,
    },
    /// The new name has backups of its own.
    #[error("{agent}/{source_name} has a series with backups of its own: two cannot become one")]
    HasBackups {
        /// The host.
        agent: String,
        /// The source.
        source_name: String,
    },
    /// A backup runs.
    #[error("a backup of {0} is under way: wait for its end, or cancel it")]
    Busy(String),
    /// There is no epoch to leave.
    #[error("{0} has no backup yet: there is no epoch to leave")]
    Empty(String),
    /// The host would not do it.
    #[error("the agent of {agent} (version {version}) cannot start a new epoch: upgrade it first")]
    TooOld {
        /// Its name.
        agent: String,
        /// What it runs.
        version: String,
    },
    /// The agent.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the series could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for SeriesError {}

/// A series and its host.
#[derive(Debug, Clone)]
pub struct SeriesView {
    /// The series.
    pub series: SeriesRow,
    /// The name of its host.
    pub agent: String,
}

/// Series. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SeriesService {
    core: Core,
}

impl SeriesService {
    /// Series of the installation of `core`.
    pub fn new(core: Core) -> Self {
        Self { core }
    }

    /// The series of these hosts.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn list(&self, ctx: &OpContext, hosts: &[AgentRow]) -> Result<Vec<SeriesView>, SeriesError> {
        ctx.authorize(Action::SeriesList, &"series").await?;
        let mut conn = self.core.store.reader().await?;
        let mut out = Vec::new();
        for host in hosts {
            let all = series::of_agent(&mut conn, host.id).await?;
            out.extend(all.into_iter().map(|series| SeriesView { series, agent: host.name.to_string() }));
        }
        Ok(out)
    }

    /// One series.
    ///
    /// # Errors
    /// [`SeriesError::NotFound`], [`SeriesError::Ambiguous`], and those of access and database.
    pub async fn show(&self, ctx: &OpContext, text: &str) -> Result<SeriesView, SeriesError> {
        ctx.authorize(Action::SeriesShow, &"series").await?;
        find(&mut *self.core.store.reader().await?, text).await
    }

    /// The source that fed this series has another name on its host now: the series goes on under that name.
    ///
    /// # Errors
    /// [`SeriesError::StillPresent`], [`SeriesError::HasBackups`], [`SeriesError::Busy`], and as [`SeriesService::show`].
    pub async fn rename(
        &self,
        ctx: &OpContext,
        text: &str,
        source: &Name,
    ) -> Result<SeriesView, SeriesError> {
        let entity = format!("series:{}", shown(text));
        ctx.perform(Action::SeriesRename, &entity, Details::none(), move |tx, _| {
            async move {
                let found = find(tx, text).await?;
                // Its host says which sources it has under the same lock.
                crate::store::agents::lock(tx, found.series.agent).await?;
                let before = find(tx, &found.series.id.to_string()).await?;
                let (row, agent) = (&before.series, &before.agent);
                let place = |source: &Name| (agent.clone(), source.to_string());
                if row.present {
                    let (agent, source_name) = place(&row.source);
                    return Err(SeriesError::StillPresent { agent, source_name });
                }
                if let Some(new) = sources::get(tx, row.agent, source).await?
                    && new.series != row.id
                {
                    if attempts::series_is_busy(tx, new.series).await? {
                        return Err(SeriesError::Busy(format!("{agent}/{source}")));
                    }
                    let found = series::by_prefix(tx, &new.series.to_string()).await?;
                    if found.first().is_some_and(|series| series.backups > 0) {
                        let (agent, source_name) = place(source);
                        return Err(SeriesError::HasBackups { agent, source_name });
                    }
                }
                series::feed_from(tx, row.id, row.agent, source).await?;
                let said = Details::none()
                    .with("series", row.id.to_string())
                    .with("before", row.source.as_str())
                    .with("after", source.as_str());
                let after = find(tx, &row.id.to_string()).await?;
                Ok((after, said))
            }
            .boxed()
        })
        .await
    }

    /// From the next backup on, nothing that was stored before is built upon.
    ///
    /// # Errors
    /// [`SeriesError::Empty`], and as [`SeriesService::show`].
    pub async fn start_epoch(
        &self,
        ctx: &OpContext,
        text: &str,
        reason: &str,
    ) -> Result<SeriesView, SeriesError> {
        let entity = format!("series:{}", shown(text));
        let details = Details::none().with("reason", shown(reason));
        ctx.perform(Action::SeriesEpoch, &entity, details, move |tx, _| {
            async move {
                let before = find(tx, text).await?;
                let row = &before.series;
                // It would go on in the old one, and be refused.
                let host = crate::store::agents::get(tx, row.agent).await?;
                if let Some(host) = host
                    && !host.protocol.may_do(Feature::LeaveEpoch)
                {
                    return Err(SeriesError::TooOld { agent: before.agent, version: host.version });
                }
                let leave = row
                    .epoch
                    .ok_or_else(|| SeriesError::Empty(format!("{}/{}", before.agent, row.source)))?;
                series::set_leave_epoch(tx, row.id, leave).await?;
                let said = Details::none()
                    .with("series", row.id.to_string())
                    .with("before", row.leave_epoch.map(|epoch| epoch.to_string()))
                    .with("after", leave.to_string());
                let after = find(tx, &row.id.to_string()).await?;
                Ok((after, said))
            }
            .boxed()
        })
        .await
    }
}

/// The series that `text` names: AGENT/SOURCE, an id, or an unambiguous beginning of one.
async fn find(tx: &mut Tx, text: &str) -> Result<SeriesView, SeriesError> {
    let none = || SeriesError::NotFound { what: format!("series {:?}", shown(text)) };
    if let Ok(place) = text.parse::<SourceRef>() {
        let agent = agents::find(tx, &place.agent).await?;
        let source = sources::get(tx, agent.id, &place.source).await?.ok_or_else(none)?;
        let found = series::by_prefix(tx, &source.series.to_string()).await?.pop().ok_or_else(none)?;
        return Ok(SeriesView { series: found, agent: agent.name.into() });
    }
    let looks_like_id = !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
    let mut found =
        if looks_like_id { series::by_prefix(tx, &text.to_ascii_lowercase()).await? } else { Vec::new() };
    match (found.pop(), found.is_empty()) {
        (Some(series), true) => {
            let agent = crate::store::agents::get(tx, series.agent).await?;
            Ok(SeriesView { agent: agent.map(|agent| agent.name.to_string()).unwrap_or_default(), series })
        }
        (Some(_), false) => Err(SeriesError::Ambiguous(shown(text))),
        (None, _) => Err(none()),
    }
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
