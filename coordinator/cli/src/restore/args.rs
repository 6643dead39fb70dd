//! The command line of `sealift restore`.

use std::ffi::OsString;
use std::path::PathBuf;

use url::Url;

use super::pins::Pins;
use super::s3::BucketArgs;
use crate::error::{Error, Result};
use crate::identity::IdentityArgs;
use crate::ui::Change;

/// `sealift restore`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sealift restore latest:store-0042/app-data --identity key.txt --to ./restored
  sealift restore store-0042/app-data@2026-11-22T03:00 --identity key.txt --to ./restored --file etc/app.toml
  sealift restore latest:store-0042/main-db --identity key.txt --stdout --stream db/shop.sql | psql shop
  sealift restore latest:store-0042/main-db --identity key.txt --into postgres://postgres@localhost/ --globals
  sealift restore latest:store-0042/till --identity key.txt --into sqlite:/var/lib/till/till.db

Without a coordinator, with S3 credentials from the usual AWS chain:
  sealift restore --offline --bucket backups --prefix shop --identity key.txt --list
  sealift restore --offline --bucket backups --prefix shop --identity key.txt --find host=store-0042
  sealift restore --offline --bucket backups --prefix shop --identity key.txt --series 0190c5e1-… --to ./restored")]
pub struct Args {
    /// Id or prefix, latest:AGENT/SOURCE, or AGENT/SOURCE@TIME (offline: the host's name for AGENT)
    #[arg(value_parser = super::backup_name)]
    pub backup: Option<String>,
    #[command(flatten)]
    pub identity: IdentityArgs,

    /// Write files below this directory
    #[arg(long, value_name = "DIR", help_heading = "Where to")]
    to: Option<PathBuf>,
    /// Write one stream to stdout; its hash is known only at the end: exit code 7 means do not use it
    #[arg(long, conflicts_with_all = ["to", "into"], help_heading = "Where to")]
    stdout: bool,
    /// Write into a database: postgres://USER@HOST/DB, mysql://USER@HOST/DB or sqlite:PATH
    #[arg(long, value_name = "URL", conflicts_with = "to", help_heading = "Where to")]
    into: Option<Url>,

    /// Which stream
    #[arg(long, value_name = "NAME", requires = "stdout", help_heading = "What")]
    stream: Option<String>,
    /// Only this file or directory; may be repeated
    #[arg(long = "file", value_name = "PATH", requires = "to", help_heading = "What")]
    pub files: Vec<OsString>,
    /// Only this database of several
    #[arg(long, requires = "into", help_heading = "What")]
    pub database: Option<String>,
    /// Restore roles or accounts first
    #[arg(long, requires = "into", help_heading = "What")]
    pub globals: bool,
    /// File whose first line is the database password
    #[arg(long, value_name = "FILE", requires = "into", help_heading = "Where to")]
    pub password_file: Option<PathBuf>,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub plan: bool,
    /// Go on with a restore that was interrupted: what is there and right is not read again
    #[arg(long, requires = "to")]
    pub resume: bool,
    /// Replace what is in the way; restore what is known to be partial
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub change: Change,
    #[command(flatten)]
    pub pins: Pins,

    /// Do without a coordinator: only the bucket and the private key
    #[arg(long, help_heading = "Without a coordinator")]
    pub offline: bool,
    #[command(flatten, next_help_heading = "Without a coordinator")]
    pub bucket: BucketArgs,
    /// List the backups in the bucket, and which of them this identity opens
    #[arg(long, requires = "offline", conflicts_with_all = ["to", "stdout", "into"], help_heading = "Without a coordinator")]
    pub list: bool,
    /// List only backups with this: host, source, kind, or an attribute; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "offline", value_parser = pair, conflicts_with_all = ["to", "stdout", "into"], help_heading = "Without a coordinator")]
    pub find: Vec<(String, String)>,
    /// Only this series; its newest backup is restored unless one is named
    #[arg(long, value_name = "ID", requires = "offline", help_heading = "Without a coordinator")]
    pub series: Option<sealift_common::id::SeriesId>,
    /// Which backup of the series
    #[arg(
        long = "backup",
        value_name = "ID",
        requires = "series",
        id = "backup-of-series",
        help_heading = "Without a coordinator"
    )]
    pub backup_id: Option<String>,
    /// What somebody saw as the newest backups: what `sealift backup list --output json` printed
    #[arg(long, value_name = "FILE", requires = "offline", help_heading = "Without a coordinator")]
    pub witness: Option<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE, like host=store-0042"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Where to restore to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Files below a directory.
    Directory(PathBuf),
    /// One stream, to stdout; empty: the only one.
    Stdout(String),
    /// A database.
    Database(Database),
}

/// A database to restore into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A PostgreSQL server or database.
    Postgres(Url),
    /// A MySQL or MariaDB server or database.
    Mysql(Url),
    /// A SQLite file.
    Sqlite(PathBuf),
}

impl Args {
    /// Where to, as the command line says.
    ///
    /// # Errors
    /// Exit code 2 where it does not say, or says it badly.
    pub fn target(&self) -> Result<Target> {
        if let Some(dir) = &self.to {
            return Ok(Target::Directory(dir.clone()));
        }
        if self.stdout {
            return Ok(Target::Stdout(self.stream.clone().unwrap_or_default()));
        }
        match &self.into {
            Some(url) => database(url).map(Target::Database),
            // A plan can be shown without saying where to.
            None if self.plan => Ok(Target::Stdout(self.stream.clone().unwrap_or_default())),
            None => Err(Error::usage("say where to: --to DIR, --stdout or --into URL")),
        }
    }
}

fn database(url: &Url) -> Result<Database> {
    if url.password().is_some() {
        return Err(Error::usage(
            "a password on the command line shows in process lists: take it out of the URL and say --password-file FILE",
        ));
    }
    match url.scheme() {
        "postgres" | "postgresql" => Ok(Database::Postgres(url.clone())),
        "mysql" | "mariadb" => Ok(Database::Mysql(url.clone())),
        "sqlite" | "sqlite3" => {
            let path = percent_encoding::percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
            match path.as_str() {
                "" | "/" => Err(Error::usage("--into sqlite: names no file: write sqlite:/path/to/file.db")),
                path => Ok(Database::Sqlite(PathBuf::from(path))),
            }
        }
        other => Err(Error::usage(format!(
            "--into {other}: is not known: write postgres://USER@HOST/DB, mysql://USER@HOST/DB or sqlite:PATH"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_told_by_their_urls() {
        let parse = |text: &str| database(&text.parse().unwrap());
        assert!(matches!(parse("postgresql://u@h:5433/db"), Ok(Database::Postgres(_))));
        assert!(matches!(parse("mariadb://u@h/"), Ok(Database::Mysql(_))));
        assert_eq!(parse("sqlite:/a/b%20c.db").unwrap(), Database::Sqlite("/a/b c.db".into()));
        assert_eq!(parse("sqlite:///a/b.db").unwrap(), Database::Sqlite("/a/b.db".into()));
        assert_eq!(parse("sqlite:rel.db").unwrap(), Database::Sqlite("rel.db".into()));
        for bad in ["postgres://u:secret@h/db", "oracle://h/db", "sqlite:"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.exit() as u8, 2);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
