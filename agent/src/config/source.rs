//! `[[source]]`: what on this host can be backed up. Only the host's own configuration may say so.

use sealift_common::name::Name;
use sealift_common::secret::Secret;

use super::ConfigError;
pub use super::database::{DatabaseUrl, Databases, Host, Mysql, Postgres, Scheme, Tls, TlsMode};
use super::document::{Document, SourceTable};
pub(crate) use super::files::looks_secret;
pub use super::files::{Arguments, Command, Directory, Exclude, Sqlite, Variables};
use super::secret::{Environment, SecretRef};

/// One source.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, unique on this host.
    pub name: Name,
    /// What it is.
    pub kind: SourceKind,
    /// Its place among the database servers of the configuration, from 0: the `0` of `DB_0_PASSWORD`.
    pub(super) database_index: Option<usize>,
}

/// What a source is, and how it is read.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// A PostgreSQL server.
    Postgres(Postgres),
    /// A MySQL or MariaDB server.
    Mysql(Mysql),
    /// A SQLite database.
    Sqlite(Sqlite),
    /// A directory.
    Directory(Directory),
    /// A command's standard output.
    Command(Command),
}

/// A secret, and where it came from.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Its value.
    pub value: Secret<String>,
    /// `env:DB_0_PASSWORD`, `file:/etc/…`, `credential:…`, `config`.
    pub origin: String,
}

impl Source {
    /// Its kind as the configuration, the wire and the manifest write it.
    pub fn kind_name(&self) -> &'static str {
        match &self.kind {
            SourceKind::Postgres(_) => "postgres",
            SourceKind::Mysql(_) => "mysql",
            SourceKind::Sqlite(_) => "sqlite",
            SourceKind::Directory(_) => "directory",
            SourceKind::Command(_) => "command",
        }
    }

    /// What it is, for people; never a credential.
    pub fn detail(&self) -> String {
        match &self.kind {
            SourceKind::Postgres(Postgres { url, databases, .. })
            | SourceKind::Mysql(Mysql { url, databases, .. }) => {
                let databases =
                    databases.as_ref().map_or("all databases".to_owned(), |d| d.names().join(", "));
                format!("{databases} at {}", url.place())
            }
            SourceKind::Sqlite(sqlite) => sqlite.path.as_path().display().to_string(),
            SourceKind::Directory(directory) => directory.path.as_path().display().to_string(),
            // The program alone: arguments may say more than the fleet should know.
            SourceKind::Command(command) => command.command.program().to_owned(),
        }
    }

    /// The database password: as configured, else from `DB_<NAME>_PASSWORD`, else from `DB_<INDEX>_PASSWORD`.
    ///
    /// # Errors
    /// [`ConfigError::Secret`] where it is configured and cannot be had.
    pub fn password(&self, environment: &Environment) -> Result<Option<Credential>, ConfigError> {
        let Some(reference) = self.password_reference(environment) else { return Ok(None) };
        let value = reference.resolve(environment)?;
        Ok(Some(Credential { value, origin: reference.origin() }))
    }

    fn password_reference(&self, environment: &Environment) -> Option<SecretRef> {
        let configured = match &self.kind {
            SourceKind::Postgres(Postgres { password, .. }) | SourceKind::Mysql(Mysql { password, .. }) => {
                password
            }
            _ => return None,
        };
        let from_environment = || {
            let by_name = password_variable(&self.name);
            let by_index = self.database_index.map(|index| format!("DB_{index}_PASSWORD"));
            let mut names = [Some(by_name), by_index].into_iter().flatten();
            names.find(|name| environment.get(name).is_some()).map(SecretRef::Variable)
        };
        configured.clone().or_else(from_environment)
    }

    /// Where this source's credentials come from, for audit: never what they are.
    pub fn credential_origins(&self, environment: &Environment) -> Vec<String> {
        let mut origins: Vec<_> =
            self.password_reference(environment).iter().map(SecretRef::origin).collect();
        match &self.kind {
            SourceKind::Mysql(mysql) => {
                origins.extend(
                    mysql.config_file.iter().map(|path| format!("file:{}", path.as_path().display())),
                );
            }
            SourceKind::Command(command) => {
                let secret =
                    command.env.iter().filter(|(name, value)| !value.is_literal() || looks_secret(name));
                origins.extend(secret.map(|(_, value)| value.origin()));
            }
            _ => {}
        }
        origins
    }

    /// Whether a secret stands in the configuration itself.
    pub(super) fn holds_literal_secret(&self) -> bool {
        match &self.kind {
            SourceKind::Postgres(Postgres { password, .. }) | SourceKind::Mysql(Mysql { password, .. }) => {
                password.as_ref().is_some_and(SecretRef::is_literal)
            }
            SourceKind::Command(command) => {
                command.env.iter().any(|(name, value)| value.is_literal() && looks_secret(name))
            }
            SourceKind::Sqlite(_) | SourceKind::Directory(_) => false,
        }
    }

    /// Reads one `[[source]]`.
    pub(super) fn read<'a>(document: &Document<'a>, source: SourceTable<'a>) -> Result<Self, ConfigError> {
        let span = source.table.span();
        let table = source.table;
        let kind = match source.kind.as_str() {
            "postgres" => SourceKind::Postgres(document.read(table)?),
            "mysql" => SourceKind::Mysql(document.read(table)?),
            "sqlite" => SourceKind::Sqlite(document.read(table)?),
            "directory" => SourceKind::Directory(document.read(table)?),
            "command" => SourceKind::Command(document.read(table)?),
            other => {
                let problem = format!("kind is postgres, mysql, sqlite, directory or command, not {other:?}");
                return Err(document.invalid(span, &problem));
            }
        };
        let problem = match &kind {
            SourceKind::Postgres(Postgres { url, .. }) if url.scheme != Scheme::Postgres => {
                Some("the url of kind = \"postgres\" starts with postgres://")
            }
            SourceKind::Mysql(Mysql { url, .. }) if url.scheme != Scheme::Mysql => {
                Some("the url of kind = \"mysql\" starts with mysql:// or mariadb://")
            }
            SourceKind::Postgres(Postgres { tls, .. }) | SourceKind::Mysql(Mysql { tls, .. }) => {
                tls.problem()
            }
            _ => None,
        };
        match problem {
            Some(problem) => Err(document.invalid(span, problem)),
            None => Ok(Self { name: source.name, kind, database_index: None }),
        }
    }
}

/// `main-db` → `DB_MAIN_DB_PASSWORD`.
pub(super) fn password_variable(name: &Name) -> String {
    let upper = name.as_str().to_ascii_uppercase();
    format!("DB_{}_PASSWORD", upper.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}
