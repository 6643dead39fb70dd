//! Which rules a series has. The one place where retention asks the policies.

use sealift_common::clock::UnixMillis;
use sealift_common::id::SeriesId;

use super::rules::RetentionRules;
use crate::policy;
use crate::store::{StoreError, Tx};

/// The rules in force for a series at `now`; `None` where no policy says anything: then nothing expires. A shortened retention
/// is in force a week after it was said.
///
/// # Errors
/// The database's own.
pub async fn rules_of(
    tx: &mut Tx,
    series: SeriesId,
    now: UnixMillis,
) -> Result<Option<RetentionRules>, StoreError> {
    let (rules, ..) = policy::retention_of(tx, series, now).await?;
    Ok(Some(rules).filter(|rules| !rules.is_empty()))
}
