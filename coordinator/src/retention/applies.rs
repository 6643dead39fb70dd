//! Which rules a series has. The one place where retention asks the policies.

use sealift_common::id::SeriesId;

use super::rules::RetentionRules;
use crate::store::{StoreError, Tx, retention};

/// The rules in force for a series; `None` where no policy says anything: then nothing expires.
///
/// # Errors
/// The database's own.
pub async fn rules_of(tx: &mut Tx, series: SeriesId) -> Result<Option<RetentionRules>, StoreError> {
    let rules = retention::rules(tx, series).await?;
    Ok(rules.filter(|rules| !rules.is_empty()))
}
