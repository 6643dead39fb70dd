//! SQLite and PostgreSQL have the same tables, columns, nullability, keys and indices.

use std::collections::BTreeSet;

use sealift_coordinator::store::{Row, Store, flag};
use sqlx::{AssertSqlSafe, Row as _};

use crate::support::database::Database;

async fn rows<T: Ord>(store: &Store, sql: &str, decode: impl Fn(&Row) -> T) -> BTreeSet<T> {
    let mut reader = store.reader().await.unwrap();
    let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut *reader).await.unwrap();
    assert!(!rows.is_empty(), "nothing found by {sql}");
    rows.iter().map(decode).collect()
}

fn text(row: &Row, column: &str) -> String {
    row.try_get(column).unwrap()
}

/// Table, column, type, whether it may be NULL.
fn columns(row: &Row) -> (String, String, String, bool) {
    let kind = match text(row, "kind").as_str() {
        "text" | "TEXT" => "text",
        "bigint" | "BIGINT" | "INTEGER" => "bigint",
        "boolean" | "INT" => "boolean",
        "bytea" | "BLOB" => "bytes",
        other => panic!("{}.{}: no column is {other}", text(row, "t"), text(row, "c")),
    };
    (text(row, "t"), text(row, "c"), kind.to_owned(), flag(row, "nullable").unwrap())
}

/// Table, name (of those that have one in the migrations), columns, unique, partial.
fn indices(row: &Row) -> (String, String, String, bool, bool) {
    (
        text(row, "t"),
        text(row, "i"),
        text(row, "cols"),
        flag(row, "uniq").unwrap(),
        flag(row, "partial").unwrap(),
    )
}

const OURS: &str =
    "m.type = 'table' AND m.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND m.name <> '_sqlx_migrations'";

#[tokio::test]
async fn both_databases_have_the_same_schema() {
    let dir = tempfile::tempdir().unwrap();
    let on = Database::postgres();
    let sqlite = Store::open(&Database::Sqlite.url(dir.path())).await.unwrap();
    let postgres = Store::open(&on.url(dir.path())).await.unwrap();

    let sql = format!(
        "SELECT m.name AS t, c.name AS c, c.type AS kind, (c.\"notnull\" = 0 AND c.pk = 0) AS nullable
         FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE {OURS}"
    );
    let here = rows(&sqlite, &sql, columns).await;
    let sql = "SELECT table_name::TEXT AS t, column_name::TEXT AS c, data_type::TEXT AS kind, is_nullable = 'YES' AS nullable
         FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'";
    assert_eq!(here, rows(&postgres, sql, columns).await, "columns");

    let sql = format!(
        "SELECT m.name AS t, CASE i.origin WHEN 'c' THEN i.name ELSE '' END AS i, i.\"unique\" AS uniq, i.partial AS partial,
            (SELECT group_concat(COALESCE(x.name, '?')) FROM pragma_index_info(i.name) x) AS cols
         FROM sqlite_master m JOIN pragma_index_list(m.name) i WHERE {OURS}"
    );
    let mut here = rows(&sqlite, &sql, indices).await;
    // The key of a COUNTER is the table itself.
    let sql = format!(
        "SELECT m.name AS t, c.name AS c FROM sqlite_master m JOIN pragma_table_info(m.name) c
         WHERE {OURS} AND c.type = 'INTEGER'"
    );
    let counters = rows(&sqlite, &sql, |row| (text(row, "t"), text(row, "c"))).await;
    here.extend(counters.into_iter().map(|(table, column)| (table, String::new(), column, true, false)));
    let sql = "SELECT t.relname::TEXT AS t, i.indisunique AS uniq, i.indpred IS NOT NULL AS partial,
            CASE WHEN EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))
                THEN '' ELSE x.relname::TEXT END AS i,
            (SELECT string_agg(COALESCE(a.attname::TEXT, '?'), ',' ORDER BY k.place)
               FROM unnest(i.indkey::INT2[]) WITH ORDINALITY k (attnum, place)
               LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS cols
         FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
         WHERE t.relnamespace = 'public'::REGNAMESPACE AND t.relname <> '_sqlx_migrations'";
    assert_eq!(here, rows(&postgres, sql, indices).await, "indices");

    let reference = |row: &Row| (text(row, "t"), text(row, "cols"), text(row, "other"));
    let sql = format!(
        "SELECT m.name AS t, group_concat(f.\"from\") AS cols, f.\"table\" AS other
         FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE {OURS} GROUP BY m.name, f.id"
    );
    let here = rows(&sqlite, &sql, reference).await;
    let sql = "SELECT conrelid::REGCLASS::TEXT AS t, confrelid::REGCLASS::TEXT AS other,
            (SELECT string_agg(a.attname::TEXT, ',' ORDER BY k.place) FROM unnest(conkey) WITH ORDINALITY k (attnum, place)
               JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = k.attnum) AS cols
         FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(here, rows(&postgres, sql, reference).await, "references");

    // Texts are compared byte by byte on both, whatever the database's own collation.
    let sql = "SELECT COUNT(*) AS n FROM information_schema.columns WHERE table_schema = 'public'
         AND table_name <> '_sqlx_migrations' AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'";
    let foreign = rows(&postgres, sql, |row| row.try_get::<i64, _>("n").unwrap()).await;
    assert_eq!(foreign, [0].into());
}
