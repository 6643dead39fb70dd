//! Facts about this installation that are made once: repository id, generation, trust domain.

use super::{StoreError, Tx, failed};

/// The value of the fact `name`.
///
/// # Errors
/// The database's own.
pub async fn get(tx: &mut Tx, name: &str) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar("SELECT value FROM installation WHERE name = $1")
        .bind(name)
        .fetch_optional(tx)
        .await
        .map_err(failed("read a fact of the installation"))
}

/// The value of the fact `name`, which becomes `value` where there was none.
///
/// # Errors
/// The database's own.
pub async fn get_or_set(tx: &mut Tx, name: &str, value: &str) -> Result<String, StoreError> {
    sqlx::query("INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(value)
        .execute(&mut *tx)
        .await
        .map_err(failed("record a fact of the installation"))?;
    Ok(get(tx, name).await?.unwrap_or_else(|| value.to_owned()))
}
