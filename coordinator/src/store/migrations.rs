//! The schema's history: one text for both databases, in `coordinator/migrations/`.
//!
//! | word in `NNNN_name.sql` | SQLite | PostgreSQL |
//! |---|---|---|
//! | `TEXT` | `TEXT` | `TEXT COLLATE "C"`: compared byte by byte, whatever the database's own collation |
//! | `BIGINT` | `BIGINT` | `BIGINT` |
//! | `BOOLEAN` | `INT` (sqlx's any-driver reads no other) | `BOOLEAN` |
//! | `BLOB` | `BLOB` | `BYTEA` |
//! | `COUNTER` | `INTEGER PRIMARY KEY AUTOINCREMENT` | `BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY` |
//!
//! What cannot be said in common (triggers) goes, as it is, into `NNNN_name.sqlite.sql` and `NNNN_name.postgres.sql`, which
//! follow the common file of their number. A test compares the two schemas. Migrations expand first and contract a
//! release later: coordinators of two versions run side by side while they are replaced.

use std::collections::BTreeMap;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

use super::StoreError;
use super::dialect::{Dialect, Tx};

/// File names and their texts, in order; made by build.rs.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// Brings the schema up to date. Coordinators that start together wait for one another.
pub(super) async fn run(dialect: Dialect, connection: &mut Tx) -> Result<(), StoreError> {
    let migrator = Migrator::with_migrations(all(dialect, FILES));
    let newest = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
    migrator.run_direct(None, connection, false).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) if version > newest => StoreError::Newer { version, newest },
        error => StoreError::Migrate(error),
    })
}

/// What one number stands for.
#[derive(Default)]
struct Parts {
    name: String,
    common: String,
    own: String,
}

fn all(dialect: Dialect, files: &[(&str, &str)]) -> Vec<Migration> {
    let mut all: BTreeMap<i64, Parts> = BTreeMap::new();
    for (file, text) in files {
        let stem = file.trim_end_matches(".sql");
        let (stem, of) = stem.rsplit_once('.').map_or((stem, None), |(stem, of)| (stem, Some(of)));
        let (number, name) = stem.split_once('_').unwrap_or((stem, ""));
        // A file without a number is found by a test below.
        let parts = all.entry(number.parse().unwrap_or_default()).or_default();
        parts.name = name.replace('_', " ");
        match of {
            None => parts.common = translate(text, dialect),
            Some(of) if of == dialect.as_str() => (*text).clone_into(&mut parts.own),
            Some(_) => {}
        }
    }
    let migration = |(version, parts): (i64, Parts)| {
        let sql = AssertSqlSafe(parts.common + &parts.own).into_sql_str();
        Migration::new(version, parts.name.into(), MigrationType::Simple, sql, false)
    };
    all.into_iter().map(migration).collect()
}

/// Replaces the words of the table above.
fn translate(text: &str, dialect: Dialect) -> String {
    let separator = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(separator) {
        let (word, rest) = part.split_at(part.find(separator).unwrap_or(part.len()));
        out.push_str(match (word, dialect) {
            ("TEXT", Dialect::Postgres) => "TEXT COLLATE \"C\"",
            ("BLOB", Dialect::Postgres) => "BYTEA",
            ("COUNTER", Dialect::Postgres) => "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            ("BOOLEAN", Dialect::Sqlite) => "INT",
            ("COUNTER", Dialect::Sqlite) => "INTEGER PRIMARY KEY AUTOINCREMENT",
            (word, _) => word,
        });
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_translated_and_nothing_else() {
        let text =
            "CREATE TABLE t (seq COUNTER, a TEXT NOT NULL, b BLOB, c BOOLEAN, d BIGINT, BLOB_LIKE TEXT);";
        assert_eq!(
            translate(text, Dialect::Postgres),
            "CREATE TABLE t (seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a TEXT COLLATE \"C\" NOT NULL, b BYTEA, \
             c BOOLEAN, d BIGINT, BLOB_LIKE TEXT COLLATE \"C\");"
        );
        assert_eq!(
            translate(text, Dialect::Sqlite),
            "CREATE TABLE t (seq INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT NOT NULL, b BLOB, c INT, d BIGINT, BLOB_LIKE TEXT);"
        );
    }

    #[test]
    fn the_common_file_comes_first_and_the_other_database_s_not_at_all() {
        let files = [
            ("0001_base.postgres.sql", "-- p\n"),
            ("0001_base.sql", "-- common\n"),
            ("0001_base.sqlite.sql", "-- s\n"),
            ("0007_more_words.sql", "-- 7\n"),
        ];
        for (dialect, sql) in
            [(Dialect::Sqlite, "-- common\n-- s\n"), (Dialect::Postgres, "-- common\n-- p\n")]
        {
            let all = all(dialect, &files);
            assert_eq!(all.iter().map(|m| m.version).collect::<Vec<_>>(), [1, 7]);
            assert_eq!(all[0].sql.as_str(), sql);
            assert_eq!(all[1].description, "more words");
        }
    }

    #[test]
    fn every_file_has_a_number_of_its_own() {
        let mut names = BTreeMap::new();
        for (file, _) in FILES {
            let stem = file.split('.').next().unwrap();
            let (number, _) = stem.split_once('_').unwrap_or_else(|| panic!("{file}: NNNN_name.sql"));
            assert!(number.len() == 4 && number.parse::<u16>().is_ok(), "{file}: four digits first");
            let other = names.insert(number.to_owned(), stem.to_owned());
            assert!(other.is_none_or(|other| other == stem), "{file}: this number is taken");
        }
    }
}
