//! PostgreSQL, by `psql`: stops at the first error, and commits only when the whole dump was found right.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use percent_encoding::percent_decode_str;
use sealift_common::format::manifest::Stream;
use sealift_common::restore::OpenBackup;
use tempfile::NamedTempFile;
use url::Url;

use super::super::args::Args;
use super::feed::{Client, base_environment, find, secret_file};
use super::{Dumped, dumped, globals, may_replace, placed};
use crate::app::App;
use crate::error::{Error, Exit, Result};
use crate::restore::{blocking, verified};

/// The stream with roles and tablespaces.
pub const GLOBALS: &str = "globals.sql";
/// Roles and tablespaces of a large server are some kilobytes.
const MAX_GLOBALS: u64 = 64 << 20;
/// Anything that a dump could collide with, apart from what extensions and the template bring along.
const COUNT_OBJECTS: &str = "SELECT (SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') \
     + (SELECT count(*) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema') \
     + (SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public')) \
     + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)";

/// A server.
#[derive(Clone)]
struct Server {
    client: Client,
    /// The database to ask when no other is meant.
    maintenance: String,
}

/// Restores into the server or database of `url`.
pub async fn restore(app: &App, args: &Args, url: &Url, backup: &OpenBackup) -> Result<()> {
    let (server, target, _password) = connect(args, url)?;
    let databases = placed(dumped(backup, args)?, target)?;
    if let Some(stream) = globals(backup, args, GLOBALS)? {
        restore_globals(app, args, &server, backup, stream).await?;
    }
    for (database, target) in databases {
        app.ui.note(format!("restoring database {} as {target}", database.name));
        let made = prepare(app, args, &server, backup, &database, &target).await?;
        let result = content(app, &server, backup, database.content, &target).await;
        if result.is_err() {
            if made {
                server.run(&server.maintenance, &format!("DROP DATABASE IF EXISTS {}", quoted(&target)))?;
                app.ui.note(format!("the database {target}, made for this, was dropped again"));
            } else {
                app.ui
                    .warn(format!("the database {target} may hold a part now: drop it before you try again"));
            }
        }
        result?;
    }
    Ok(())
}

/// How `psql` reaches the server, the database that the URL names, and the file with the password for as long as it is needed.
fn connect(args: &Args, url: &Url) -> Result<(Server, Option<String>, Option<NamedTempFile>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut environment = base_environment();
    let mut set = |name: &str, value: String| environment.push((name.to_owned(), OsString::from(value)));
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        set("PGHOST", decoded(host).trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    if let Some(port) = url.port() {
        set("PGPORT", port.to_string());
    }
    if !url.username().is_empty() {
        set("PGUSER", decoded(url.username()));
    }
    set("PGAPPNAME", "sealift".to_owned());
    set("PGCONNECT_TIMEOUT", "30".to_owned());
    set("PGCLIENTENCODING", "UTF8".to_owned());
    let known = [
        ("host", "PGHOST"),
        ("port", "PGPORT"),
        ("user", "PGUSER"),
        ("sslmode", "PGSSLMODE"),
        ("sslrootcert", "PGSSLROOTCERT"),
        ("sslcert", "PGSSLCERT"),
        ("sslkey", "PGSSLKEY"),
    ];
    for (key, value) in url.query_pairs() {
        let Some((_, name)) = known.iter().find(|(known, _)| *known == key) else {
            return Err(Error::usage(format!("{key:?} is not known in a PostgreSQL URL here")));
        };
        set(name, value.into_owned());
    }
    let escaped = |password: &str| password.replace('\\', "\\\\").replace(':', "\\:");
    let password =
        args.password_file.as_deref().map(|file| secret_file(file, |p| format!("*:*:*:*:{}\n", escaped(p))));
    let password = password.transpose()?;
    match &password {
        Some(file) => environment.push(("PGPASSFILE".to_owned(), file.path().into())),
        // What psql itself would use.
        None => environment.extend(
            ["PGPASSFILE", "PGPASSWORD"]
                .into_iter()
                .filter_map(|n| std::env::var_os(n).map(|v| (n.to_owned(), v))),
        ),
    }
    let program = find(&["psql"], &versions()).ok_or_else(|| {
        Error::failed("psql is not installed here: install the PostgreSQL client (Debian: postgresql-client)")
    })?;
    let arguments =
        ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"].map(str::to_owned).to_vec();
    let target = Some(decoded(url.path().trim_start_matches('/'))).filter(|name| !name.is_empty());
    let server =
        Server { client: Client { program, arguments, environment }, maintenance: "postgres".to_owned() };
    let replaced_itself = target.as_deref() == Some("postgres");
    let server =
        if replaced_itself { Server { maintenance: "template1".to_owned(), ..server } } else { server };
    Ok((server, target, password))
}

/// Where Debian keeps the versions of the client, newest first.
fn versions() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    found.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

impl Server {
    fn run(&self, database: &str, sql: &str) -> Result<String> {
        let (db, sql) = (connection(database), OsString::from(format!("--command={sql}")));
        self.client.ask(&[OsStr::new("--tuples-only"), OsStr::new("--no-align"), &db, &sql])
    }

    fn lines(&self, database: &str, sql: &str) -> Result<HashSet<String>> {
        Ok(self.run(database, sql)?.lines().map(str::to_owned).collect())
    }
}

/// `dbname='…'`: a bare name with `=` in it would be taken for a whole connection string.
fn connection(database: &str) -> OsString {
    let escaped = database.replace('\\', "\\\\").replace('\'', "\\'");
    OsString::from(format!("--dbname=dbname='{escaped}'"))
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Sees to an empty database of this name; whether it was made.
async fn prepare(
    app: &App,
    args: &Args,
    server: &Server,
    backup: &OpenBackup,
    database: &Dumped<'_>,
    target: &str,
) -> Result<bool> {
    let known = server.lines(&server.maintenance, "SELECT datname FROM pg_catalog.pg_database")?;
    if known.contains(target) {
        if server.run(target, COUNT_OBJECTS)?.trim() == "0" {
            return Ok(false);
        }
        may_replace(app, args, target)?;
        server.run(&server.maintenance, &format!("DROP DATABASE {}", quoted(target)))?;
    }
    let create = database.content.name.strip_suffix(".sql").map(|stem| format!("{stem}.create.sql"));
    let create = create.and_then(|name| backup.content().stream(&name)).filter(|_| target == database.name);
    match create {
        // As it was: encoding, owner, settings, grants.
        Some(stream) => {
            let (client, reader) = (server.client.clone(), verified(backup, stream)?);
            let at = connection(&server.maintenance);
            let made =
                blocking(app, "creating", move || client.feed(&[&at], "", reader, ""), || (0, 0)).await;
            if made.is_err() && !known.contains(target) {
                // Whatever of it was made is of no use.
                server.run(&server.maintenance, &format!("DROP DATABASE IF EXISTS {}", quoted(target)))?;
            }
            made.map_err(hint)?;
        }
        None => {
            server.run(&server.maintenance, &create_statement(target, database.content))?;
        }
    }
    Ok(true)
}

fn create_statement(target: &str, stream: &Stream) -> String {
    let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", quoted(target));
    for (attribute, keyword) in
        [("encoding", "ENCODING"), ("lc_collate", "LC_COLLATE"), ("lc_ctype", "LC_CTYPE")]
    {
        if let Some(value) = stream.attributes.get(attribute).filter(|value| !value.is_empty()) {
            sql.push_str(&format!(" {keyword} {}", literal(value)));
        }
    }
    sql
}

async fn content(
    app: &App,
    server: &Server,
    backup: &OpenBackup,
    stream: &Stream,
    target: &str,
) -> Result<()> {
    let (client, reader) = (server.client.clone(), verified(backup, stream)?);
    let (at, total, counters) = (connection(target), stream.raw_len, backup.counters().clone());
    let start = counters.raw_bytes.load(Ordering::Relaxed);
    // Without the COMMIT at the end, everything is rolled back. Dumps with large objects commit in between; those are why
    // a database that was made for this is dropped when it fails.
    let work = move || client.feed(&[&at], "BEGIN;\n", reader, "\nCOMMIT;\n");
    let read = || (counters.raw_bytes.load(Ordering::Relaxed).saturating_sub(start), total);
    blocking(app, "restoring", work, read).await.map_err(hint)
}

/// The one thing that people forget.
fn hint(error: Error) -> Error {
    let text = error.to_string();
    if text.contains("role \"") && text.contains("does not exist") {
        return Error::new(error.exit(), format!("{text}: say --globals to restore the roles first"));
    }
    error
}

async fn restore_globals(
    app: &App,
    args: &Args,
    server: &Server,
    backup: &OpenBackup,
    stream: &Stream,
) -> Result<()> {
    if stream.raw_len > MAX_GLOBALS {
        return Err(Error::new(
            Exit::Verification,
            format!("{GLOBALS} has {} bytes: that is no list of roles", stream.raw_len),
        ));
    }
    let reader = verified(backup, stream)?;
    let read = move || {
        let mut sql = Vec::new();
        reader.copy_to(&mut sql, std::path::Path::new(GLOBALS)).map(|()| sql)
    };
    let sql = blocking(app, "restoring roles", read, || (0, 0)).await?;
    let me = server.run(&server.maintenance, "SELECT current_user")?.trim_end_matches('\n').to_owned();
    let known = server.lines(&server.maintenance, "SELECT rolname FROM pg_catalog.pg_roles")?;
    let sql = without_known_roles(&String::from_utf8_lossy(&sql), &me, &known, args.force)?;
    app.ui.note(format!("restoring roles; {me}, who does this, stays as it is"));
    let (client, at) = (server.client.clone(), connection(&server.maintenance));
    blocking(app, "restoring roles", move || client.feed_text(&[&at], &sql), || (0, 0)).await
}

/// Leaves out what creates or changes the role that restores, and what creates roles that are there already.
fn without_known_roles(sql: &str, me: &str, known: &HashSet<String>, force: bool) -> Result<String> {
    let mut out = String::with_capacity(sql.len());
    for line in sql.split_inclusive('\n') {
        let created = role_of(line, "CREATE ROLE ");
        if let Some(role) = &created
            && known.contains(role)
        {
            if role != me && !force {
                return Err(Error::usage(format!(
                    "the role {role} is there already: say --force to keep it and give it the backup's settings, or leave out --globals"
                )));
            }
            continue;
        }
        if role_of(line, "ALTER ROLE ").is_some_and(|role| role == me) {
            continue;
        }
        out.push_str(line);
    }
    Ok(out)
}

/// The role that a line of `pg_dumpall --globals-only` is about.
fn role_of(line: &str, start: &str) -> Option<String> {
    let rest = line.strip_prefix(start)?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([' ', ';', '\n'])?;
        return Some(rest[..end].to_owned());
    };
    let mut name = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('"', Some('"')) => {
                chars.next();
                name.push('"');
            }
            ('"', _) => return Some(name),
            (c, _) => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connecting_role_stays_and_others_that_exist_are_not_touched_unasked() {
        let sql = "CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER PASSWORD 'x';\nCREATE ROLE \"od\"\"d\";\n\
                   ALTER ROLE \"od\"\"d\" WITH LOGIN;\nCREATE ROLE app;\n";
        let known = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
        let out = without_known_roles(sql, "postgres", &known(&["postgres"]), false).unwrap();
        assert_eq!(out, "CREATE ROLE \"od\"\"d\";\nALTER ROLE \"od\"\"d\" WITH LOGIN;\nCREATE ROLE app;\n");
        let refused =
            without_known_roles(sql, "postgres", &known(&["postgres", "od\"d"]), false).unwrap_err();
        assert!(refused.to_string().contains("od\"d"), "{refused}");
        let forced = without_known_roles(sql, "postgres", &known(&["postgres", "od\"d"]), true).unwrap();
        assert_eq!(forced, "ALTER ROLE \"od\"\"d\" WITH LOGIN;\nCREATE ROLE app;\n");
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(connection("it's=1"), "--dbname=dbname='it\\'s=1'");
    }
}
