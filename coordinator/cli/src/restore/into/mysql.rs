//! MySQL and MariaDB, by `mariadb` or `mysql`: stops at the first error. DDL commits as it goes there, so a database that was
//! made for the restore is dropped again when it fails.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::Ordering;

use percent_encoding::percent_decode_str;
use sealift_common::format::manifest::Stream;
use sealift_common::restore::OpenBackup;
use tempfile::NamedTempFile;
use url::Url;

use super::super::args::Args;
use super::feed::{Client, base_environment, find, secret_file};
use super::{dumped, globals, may_replace, placed};
use crate::app::App;
use crate::error::{Error, Result};
use crate::restore::{blocking, verified};

/// The stream with accounts, roles and grants.
pub const GLOBALS: &str = "users.sql";

/// Restores into the server or database of `url`.
pub async fn restore(app: &App, args: &Args, url: &Url, backup: &OpenBackup) -> Result<()> {
    let (client, target, _password) = connect(args, url)?;
    let databases = placed(dumped(backup, args)?, target)?;
    if let Some(stream) = globals(backup, args, GLOBALS)? {
        app.ui.note("restoring accounts; those that are there stay as they are");
        feed(app, &client, backup, stream, None).await?;
    }
    for (database, target) in databases {
        app.ui.note(format!("restoring database {} as {target}", database.name));
        let made = prepare(app, args, &client, database.content, &target)?;
        let result = feed(app, &client, backup, database.content, Some(&target)).await;
        if result.is_err() {
            if made {
                ask(&client, &format!("DROP DATABASE IF EXISTS {}", quoted(&target)))?;
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

/// How the client reaches the server, the database that the URL names, and the option file for as long as it is needed.
fn connect(args: &Args, url: &Url) -> Result<(Client, Option<String>, Option<NamedTempFile>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let program = find(&["mariadb", "mysql"], &[]).ok_or_else(|| {
        Error::failed(
            "neither mariadb nor mysql is installed here: install a client (Debian: mariadb-client)",
        )
    })?;
    let escaped = |password: &str| password.replace('\\', "\\\\").replace('"', "\\\"");
    let password = args.password_file.as_deref();
    let password =
        password.map(|file| secret_file(file, |p| format!("[client]\npassword=\"{}\"\n", escaped(p))));
    let password = password.transpose()?;
    let mut arguments = Vec::new();
    if let Some(file) = &password {
        // Must come first.
        arguments.push(format!("--defaults-extra-file={}", file.path().display()));
    }
    arguments.extend(
        [
            "--batch",
            "--binary-mode",
            "--default-character-set=utf8mb4",
            "--max-allowed-packet=1G",
            "--connect-timeout=30",
        ]
        .map(str::to_owned),
    );
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        arguments.push(format!("--host={}", decoded(host).trim_start_matches('[').trim_end_matches(']')));
        if url.port().is_some() || host != "localhost" {
            arguments.push("--protocol=tcp".to_owned());
        }
    }
    arguments.extend(url.port().map(|port| format!("--port={port}")));
    if !url.username().is_empty() {
        arguments.push(format!("--user={}", decoded(url.username())));
    }
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "socket" | "ssl-ca" | "ssl-cert" | "ssl-key" => arguments.push(format!("--{key}={value}")),
            other => return Err(Error::usage(format!("{other:?} is not known in a MySQL URL here"))),
        }
    }
    let target = Some(decoded(url.path().trim_start_matches('/'))).filter(|name| !name.is_empty());
    Ok((Client { program, arguments, environment: base_environment() }, target, password))
}

fn ask(client: &Client, sql: &str) -> Result<String> {
    client.ask(&[OsStr::new("--skip-column-names"), &OsString::from(format!("--execute={sql}"))])
}

fn quoted(identifier: &str) -> String {
    format!("`{}`", identifier.replace('`', "``"))
}

/// As hexadecimal: whatever the server's SQL mode, nothing in it ends the literal.
fn literal(text: &str) -> String {
    format!("CONVERT(X'{}' USING utf8)", hex::encode(text))
}

/// Sees to an empty database of this name; whether it was made.
fn prepare(app: &App, args: &Args, client: &Client, stream: &Stream, target: &str) -> Result<bool> {
    let name = literal(target);
    let known = format!("SELECT COUNT(*) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {name}");
    if ask(client, &known)?.trim() != "0" {
        let objects = format!(
            "SELECT (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {name}) + \
             (SELECT COUNT(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {name}) + \
             (SELECT COUNT(*) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {name})"
        );
        if ask(client, &objects)?.trim() == "0" {
            return Ok(false);
        }
        may_replace(app, args, target)?;
        ask(client, &format!("DROP DATABASE {}", quoted(target)))?;
    }
    let mut create = format!("CREATE DATABASE {}", quoted(target));
    for (attribute, keyword) in [("character_set", "CHARACTER SET"), ("collation", "COLLATE")] {
        let word = |value: &&String| {
            !value.is_empty() && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        if let Some(value) = stream.attributes.get(attribute).filter(word) {
            create.push_str(&format!(" {keyword} {value}"));
        }
    }
    ask(client, &create)?;
    Ok(true)
}

async fn feed(
    app: &App,
    client: &Client,
    backup: &OpenBackup,
    stream: &Stream,
    target: Option<&str>,
) -> Result<()> {
    let (client, reader) = (client.clone(), verified(backup, stream)?);
    let database = target.map(|target| OsString::from(format!("--database={target}")));
    let (total, counters) = (stream.raw_len, backup.counters().clone());
    let start = counters.raw_bytes.load(Ordering::Relaxed);
    let work = move || {
        let more: Vec<&OsStr> = database.as_deref().into_iter().collect();
        client.feed(&more, "", reader, "")
    };
    let read = || (counters.raw_bytes.load(Ordering::Relaxed).saturating_sub(start), total);
    blocking(app, "restoring", work, read).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_end_their_quotes() {
        assert_eq!(quoted("a`b"), "`a``b`");
        assert_eq!(literal("it's"), "CONVERT(X'69742773' USING utf8)");
    }
}
