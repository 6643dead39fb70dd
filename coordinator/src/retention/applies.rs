//! How long the backups of a series stay. The one place where retention asks the policies, and whether the host is retired.

use sealift_common::clock::UnixMillis;
use sealift_common::id::SeriesId;

use super::plan::Term;
use crate::policy;
use crate::store::agents::AgentState;
use crate::store::{StoreError, Tx, agents};

/// What applies to a series at `now`. A shortened retention is in force a week after it was said. A series of a retired host
/// is over after the day until which its backups were to stay; before that its rules go on.
///
/// # Errors
/// The database's own.
pub async fn term_of(tx: &mut Tx, series: SeriesId, now: UnixMillis) -> Result<Term, StoreError> {
    let host = agents::of_series(tx, series).await?.filter(|host| host.state == AgentState::Retired);
    if let Some(until) = host.and_then(|host| host.keep_until).filter(|until| *until <= now) {
        return Ok(Term::Over(until));
    }
    let (rules, ..) = policy::retention_of(tx, series, now).await?;
    Ok(Term::Rules(Some(rules).filter(|rules| !rules.is_empty())))
}
