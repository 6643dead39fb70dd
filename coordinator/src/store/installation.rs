//! Facts about this installation that are made once: the repository id.

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

/// Makes `value` the value of the fact `name`; `None` forgets it.
///
/// # Errors
/// The database's own.
pub async fn set(tx: &mut Tx, name: &str, value: Option<&str>) -> Result<(), StoreError> {
    let query = match value {
        Some(_) => {
            "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2"
        }
        None => "DELETE FROM installation WHERE name = $1 AND $2 = ''",
    };
    sqlx::query(query)
        .bind(name)
        .bind(value.unwrap_or_default())
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("change a fact of the installation"))
}
