//! The agent's configuration: strict TOML, one file per section.
//!
//! Unknown keys, bad values and too open permissions are refused with file and line; what is loaded is well-formed.
//! Sources may stand in the file itself and in `sources.d/*.toml` beside it. `${VAR}` works in every value.
//!
//! To add a section: a file in `sections/`, a field in [`Config`] and in `Sections`.

mod database;
mod document;
mod error;
mod files;
pub mod secret;
pub mod sections;
pub mod source;
pub mod values;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::document::Document;
pub use self::error::ConfigError;
use self::secret::Environment;
pub use self::source::{Source, SourceKind};
use self::values::{AbsolutePath, Endpoint};

/// Most sources of one host.
const MAX_SOURCES: usize = 1_000;
/// Most coordinators of one host.
const MAX_COORDINATORS: usize = 16;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the coordinators are; each will do.
    pub coordinators: Vec<Endpoint>,
    /// Identity, series secrets, index cache, journal.
    pub state_dir: AbsolutePath,
    /// What can be backed up, in the order of the files.
    pub sources: Vec<Source>,
    /// TLS towards S3.
    pub s3: sections::S3,
    /// The way out, where there is a proxy.
    pub proxy: sections::Proxy,
    /// Limits of uploading.
    pub upload: sections::Upload,
    /// Where packs wait for a slow store.
    pub spool: sections::Spool,
    /// Limits and compression of a backup.
    pub backup: sections::Backup,
    /// Priorities.
    pub process: sections::Process,
    /// The host's own log.
    pub log: sections::Log,
    /// Where traces go.
    pub telemetry: sections::Telemetry,
    /// What works but should be put right, for `check` and the log.
    pub warnings: Vec<String>,
}

/// The main file without its sources.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    coordinators: Vec<Endpoint>,
    #[serde(default = "default_state_dir")]
    state_dir: AbsolutePath,
    #[serde(default)]
    s3: sections::S3,
    #[serde(default)]
    proxy: sections::Proxy,
    #[serde(default)]
    upload: sections::Upload,
    #[serde(default)]
    spool: sections::Spool,
    #[serde(default)]
    backup: sections::Backup,
    #[serde(default)]
    process: sections::Process,
    #[serde(default)]
    log: sections::Log,
    #[serde(default)]
    telemetry: sections::Telemetry,
}

/// A file of `sources.d`: nothing but sources.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[allow(clippy::expect_used)] // a constant that a test reads
fn default_state_dir() -> AbsolutePath {
    AbsolutePath::try_from("/var/lib/sealift-agent".to_owned()).expect("a good path")
}

impl Config {
    /// Reads `path` and `sources.d/*.toml` beside it.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let main = ConfigFile::read(path, &mut warnings)?;
        let mut document = Document::parse(path, &main.text, environment)?;
        let mut sources = main.sources(&mut document)?;
        let sections: Sections = document.read_rest()?;
        let whole = |problem: &str| document.invalid(0..0, problem);
        if sections.coordinators.is_empty() || sections.coordinators.len() > MAX_COORDINATORS {
            return Err(whole("coordinators names 1 to 16 addresses: [\"https://backup.example.com:7443\"]"));
        }
        if let Some(problem) = sections.s3.problem() {
            return Err(whole(problem));
        }
        if let Some(problem) = sections.proxy.problem() {
            return Err(whole(&problem));
        }
        if sections.proxy.holds_literal_secret() {
            main.require_private()?;
        }
        for path in source_files(path)? {
            let file = ConfigFile::read(&path, &mut warnings)?;
            let mut document = Document::parse(&path, &file.text, environment)?;
            sources.extend(file.sources(&mut document)?);
            document.read_rest::<Nothing>()?;
        }
        number_databases(&mut sources);
        if let Some(problem) = find_conflict(&sources) {
            return Err(whole(&problem));
        }
        let Sections { coordinators, state_dir, s3, proxy, upload, spool, backup, process, log, telemetry } =
            sections;
        Ok(Self {
            coordinators,
            state_dir,
            sources,
            s3,
            proxy,
            upload,
            spool,
            backup,
            process,
            log,
            telemetry,
            warnings,
        })
    }

    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }
}

/// A file of the configuration, read.
struct ConfigFile {
    path: PathBuf,
    mode: u32,
    text: String,
}

impl ConfigFile {
    /// Reads a file; who may write it may run commands as the agent, so that not everybody may.
    fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let fail = |source| ConfigError::Read { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let mode = metadata.mode() & 0o7777;
        if metadata.len() > document::MAX_FILE {
            return Err(fail(std::io::Error::other("the file is larger than 1 MiB")));
        }
        if mode & 0o002 != 0 && metadata.is_file() {
            let problem = "everybody may change it, and with it what the agent runs";
            return Err(ConfigError::Permissions { path: path.to_owned(), mode, problem, wanted: "0640" });
        }
        if mode & 0o137 != 0 {
            warnings.push(format!(
                "{} has mode {mode:04o}, looser than 0640: run `chmod 0640 {0}`",
                path.display()
            ));
        }
        let mut text = String::new();
        file.take(document::MAX_FILE).read_to_string(&mut text).map_err(fail)?;
        Ok(Self { path: path.to_owned(), mode, text })
    }

    fn sources<'a>(&'a self, document: &mut Document<'a>) -> Result<Vec<Source>, ConfigError> {
        let tables = document.take_sources()?;
        let sources: Vec<_> =
            tables.into_iter().map(|table| Source::read(document, table)).collect::<Result<_, _>>()?;
        if sources.iter().any(Source::holds_literal_secret) {
            self.require_private()?;
        }
        Ok(sources)
    }

    fn require_private(&self) -> Result<(), ConfigError> {
        if self.mode & 0o077 == 0 {
            return Ok(());
        }
        let problem = "holds a secret: refer to it as ${VAR}, file:/path or credential:name, or";
        Err(ConfigError::Permissions { path: self.path.clone(), mode: self.mode, problem, wanted: "0600" })
    }
}

/// The files of `sources.d` beside the main file, in the order of their names.
fn source_files(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let directory = main.with_file_name("sources.d");
    let fail = |source| ConfigError::Read { path: directory.clone(), source };
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(fail)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

fn number_databases(sources: &mut [Source]) {
    let servers =
        sources.iter_mut().filter(|s| matches!(s.kind, SourceKind::Postgres(_) | SourceKind::Mysql(_)));
    servers.enumerate().for_each(|(index, source)| source.database_index = Some(index));
}

/// What is wrong with the sources taken together.
fn find_conflict(sources: &[Source]) -> Option<String> {
    if sources.len() > MAX_SOURCES {
        return Some(format!("{} sources, at most {MAX_SOURCES}", sources.len()));
    }
    for (at, source) in sources.iter().enumerate() {
        let mut earlier = sources[..at].iter();
        if earlier.clone().any(|other| other.name == source.name) {
            return Some(format!(
                "two sources are named {:?}: names are unique on a host",
                source.name.as_str()
            ));
        }
        // `a-b` and `a.b` would silently share one variable.
        let variable = source::password_variable(&source.name);
        let clash = |other: &&Source| {
            source.database_index.is_some()
                && other.database_index.is_some()
                && source::password_variable(&other.name) == variable
        };
        if let Some(other) = earlier.find(clash) {
            let (a, b) = (source.name.as_str(), other.name.as_str());
            return Some(format!("sources {a:?} and {b:?} would both take {variable}: rename one"));
        }
    }
    None
}

#[cfg(test)]
mod tests;
