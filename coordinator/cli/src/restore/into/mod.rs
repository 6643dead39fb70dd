//! Into a database, by its own client program: `psql`, `mariadb` or `mysql`; a SQLite file is put into its place whole.
//!
//! A database that was made for the restore is dropped again when the restore fails: what bears the name is whole. To add
//! a kind of database: a file here, a variant of [`Database`], an arm in [`run`], [`streams`] and [`tools`].

mod feed;
mod mysql;
mod postgres;
mod sqlite;

use sealift_common::format::manifest::{Outcome, Stream, StreamKind};
use sealift_common::restore::OpenBackup;

use super::Restored;
use super::args::{Args, Database};
use super::plan::Plan;
use crate::app::App;
use crate::error::{Error, Exit, Result};

impl Database {
    fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// For people; never a password: a URL with one is refused.
    pub fn shown(&self) -> String {
        match self {
            Self::Postgres(url) | Self::Mysql(url) => url.to_string(),
            Self::Sqlite(path) => path.display().to_string(),
        }
    }
}

/// One database of a backup, and the stream with its content.
struct Dumped<'a> {
    /// Its name when it was backed up.
    name: &'a str,
    content: &'a Stream,
}

/// The databases of a backup that are wanted.
fn dumped<'a>(backup: &'a OpenBackup, args: &Args) -> Result<Vec<Dumped<'a>>> {
    let named = |stream: &'a Stream| {
        let name = stream.attributes.get("database")?;
        let content = stream.kind == StreamKind::Dump && !stream.name.ends_with(".create.sql");
        content.then_some(Dumped { name, content: stream })
    };
    let all: Vec<Dumped<'_>> = backup.content().streams.iter().filter_map(named).collect();
    let names = all.iter().map(|database| database.name).collect::<Vec<_>>().join(", ");
    match &args.database {
        None => Ok(all),
        Some(wanted) => {
            let found = all.into_iter().filter(|database| database.name == wanted).collect::<Vec<_>>();
            if found.is_empty() {
                return Err(Error::new(
                    Exit::NotFound,
                    format!("the backup has no database {wanted:?}; it has {names}"),
                ));
            }
            Ok(found)
        }
    }
}

/// Which database of the server each dumped one goes to. A target that the URL names can take only one.
fn placed<'a>(dumped: Vec<Dumped<'a>>, target: Option<String>) -> Result<Vec<(Dumped<'a>, String)>> {
    match target {
        None => Ok(dumped
            .into_iter()
            .map(|database| (database.name.to_owned(), database))
            .map(|(n, d)| (d, n))
            .collect()),
        Some(target) if dumped.len() == 1 => {
            Ok(dumped.into_iter().map(|database| (database, target.clone())).collect())
        }
        Some(_) => {
            let names = dumped.iter().map(|database| database.name).collect::<Vec<_>>().join(", ");
            Err(Error::usage(format!(
                "the URL names one database, the backup has {names}: choose one with --database, or leave the \
                 database out of the URL to restore all under their own names"
            )))
        }
    }
}

/// The stream with roles or accounts, where it is wanted.
fn globals<'a>(backup: &'a OpenBackup, args: &Args, name: &str) -> Result<Option<&'a Stream>> {
    if !args.globals {
        return Ok(None);
    }
    backup.content().stream(name).map(Some).ok_or_else(|| {
        Error::new(Exit::NotFound, format!("the backup has no {name}: roles and accounts were not backed up"))
    })
}

/// The streams that will be restored.
pub fn streams<'a>(backup: &'a OpenBackup, args: &Args, database: &Database) -> Result<Vec<&'a Stream>> {
    let kind = backup.content().source.kind.as_str();
    if kind != database.kind() {
        return Err(Error::usage(format!(
            "this is a backup of kind {kind}: it cannot go into {}; restore it with --to DIR or --stdout",
            database.shown()
        )));
    }
    let globals = match database {
        Database::Postgres(_) => globals(backup, args, postgres::GLOBALS)?,
        Database::Mysql(_) => globals(backup, args, mysql::GLOBALS)?,
        Database::Sqlite(_) => return Ok(vec![super::chosen_stream(backup, "")?]),
    };
    let content = dumped(backup, args)?;
    let streams: Vec<&Stream> =
        globals.into_iter().chain(content.iter().map(|database| database.content)).collect();
    if streams.is_empty() {
        return Err(Error::new(Exit::NotFound, "the backup has no database in it"));
    }
    streams.iter().try_for_each(|stream| backup.check_outcome(stream, args.force))?;
    Ok(streams)
}

/// Programs that are needed on this machine.
pub fn tools(database: &Database) -> Vec<String> {
    match database {
        Database::Postgres(_) => vec!["psql".to_owned()],
        Database::Mysql(_) => vec!["mariadb or mysql".to_owned()],
        Database::Sqlite(_) => Vec::new(),
    }
}

/// Restores into a database.
pub async fn run(
    app: &App,
    args: &Args,
    database: &Database,
    backup: &OpenBackup,
    plan: &Plan,
) -> Result<Exit> {
    let streams = streams(backup, args, database)?;
    let partial = streams.iter().any(|stream| stream.outcome != Outcome::Success);
    if !matches!(database, Database::Sqlite(_)) {
        app.ui.confirm(args.change, "restore?")?;
    }
    match database {
        Database::Postgres(url) => postgres::restore(app, args, url, backup).await?,
        Database::Mysql(url) => mysql::restore(app, args, url, backup).await?,
        Database::Sqlite(path) => sqlite::restore(app, args, path, backup, plan.replaces).await?,
    }
    let restored = Restored {
        backup: backup.public().owner.backup.to_string(),
        target: database.shown(),
        written: streams.len() as u64,
        skipped: 0,
        bytes: streams.iter().map(|stream| stream.raw_len).sum(),
        partial,
        warnings: Vec::new(),
    };
    restored.report(app)
}

/// Asks before a database with something in it is dropped and made anew. Without `--force` it is refused.
fn may_replace(app: &App, args: &Args, name: &str) -> Result<()> {
    if !args.force {
        return Err(Error::usage(format!(
            "the database {name} is not empty: name another, or say --force to drop it and restore it anew"
        )));
    }
    if app.ui.terminal {
        app.ui.confirm_loss(
            args.change,
            &format!("the database {name} and all that is in it will be dropped"),
            name,
        )?;
    } else {
        app.ui.confirm(args.change, &format!("drop the database {name}?"))?;
    }
    Ok(())
}
