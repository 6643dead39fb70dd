//! Which database: `sqlite:/path` or `postgres://user@host/database`. The password never stands in the URL.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sealift_common::secret::Secret;
use url::{Host, Url};

/// What may follow the `?` of a PostgreSQL URL. What sqlx does not know it only warns of.
const PARAMETERS: [&str; 5] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host"];

/// A URL that names no database we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDatabaseUrl(String);

/// Where the database is. Neither `Display` nor `Debug` shows a password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A file of this machine, for one coordinator.
    Sqlite(PathBuf),
    /// A server, for any number of coordinators.
    Postgres(PostgresUrl),
}

/// A PostgreSQL database and how to log in.
#[derive(Clone)]
pub struct PostgresUrl {
    url: Url,
    password: Option<Secret<String>>,
}

impl DatabaseUrl {
    /// The SQLite database in this file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::Sqlite(path.into())
    }

    /// Parses a URL; `password` is for PostgreSQL.
    ///
    /// # Errors
    /// [`InvalidDatabaseUrl`], which says what to write instead.
    pub fn parse(text: &str, password: Option<Secret<String>>) -> Result<Self, InvalidDatabaseUrl> {
        let bad = |problem: &str| Err(InvalidDatabaseUrl(problem.to_owned()));
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match (path, password) {
                ("", _) => bad("name the file: sqlite:/var/lib/sealift-coordinator/coordinator.db"),
                (_, Some(_)) => bad("a SQLite database has no password: leave it out"),
                (path, None) => Ok(Self::file(path)),
            };
        }
        let form = "write sqlite:/path/to/file or postgres://USER@HOST[:PORT]/DATABASE";
        let Ok(url) = Url::parse(text) else { return bad(form) };
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return bad(form);
        }
        if url.password().is_some() {
            return bad("the password is not written into the URL: refer to it by `password`");
        }
        if url.username().is_empty() || url.path().trim_matches('/').is_empty() {
            return bad("name the user and the database: postgres://USER@HOST[:PORT]/DATABASE");
        }
        if let Some((key, _)) = url.query_pairs().find(|(key, _)| !PARAMETERS.contains(&key.as_ref())) {
            return bad(&format!("{key} is not known here: there are {}", PARAMETERS.join(", ")));
        }
        Ok(Self::Postgres(PostgresUrl { url, password }))
    }
}

impl PostgresUrl {
    /// The URL to connect with, password included.
    pub(super) fn connect_url(&self) -> Url {
        let mut url = self.url.clone();
        if let Some(password) = &self.password {
            // Fails for URLs without a host only.
            let _ = url.set_password(Some(password.expose()));
        }
        if !url.query_pairs().any(|(key, _)| key == "sslmode") && !self.is_local() {
            url.query_pairs_mut().append_pair("sslmode", "verify-full");
        }
        url.query_pairs_mut().append_pair("application_name", "sealift-coordinator");
        url
    }

    /// Whether nothing leaves this machine: then TLS is not insisted on.
    fn is_local(&self) -> bool {
        if self.url.query_pairs().any(|(key, host)| key == "host" && host.starts_with('/')) {
            return true;
        }
        match self.url.host() {
            // Of a scheme that the URL standard does not know, addresses are texts.
            Some(Host::Domain(name)) => {
                name == "localhost"
                    || name.to_ascii_lowercase().starts_with("%2f")
                    || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(postgres) => postgres.url.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl From<&Path> for DatabaseUrl {
    fn from(path: &Path) -> Self {
        Self::file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_parse_and_no_password_is_shown() {
        let sqlite = DatabaseUrl::parse("sqlite:/var/lib/x.db", None).unwrap();
        assert_eq!(sqlite.to_string(), "sqlite:/var/lib/x.db");
        let password = Some(Secret::new("hunter2/@".to_owned()));
        let postgres = DatabaseUrl::parse("postgres://sealift@db.example.com/fleet", password).unwrap();
        assert!(!format!("{postgres:?} {postgres}").contains("hunter2"));
        let DatabaseUrl::Postgres(inner) = &postgres else { panic!("{postgres}") };
        assert!(!format!("{inner:?}").contains("hunter2"));
        let url = inner.connect_url();
        assert_eq!(url.password(), Some("hunter2%2F%40"));
        assert!(url.query().unwrap().contains("sslmode=verify-full"), "{url}");
    }

    #[test]
    fn tls_is_insisted_on_unless_nothing_leaves_the_machine_or_the_url_says_so() {
        for (url, mode) in [
            ("postgres://a@127.0.0.1:5432/d", None),
            ("postgres://a@[::1]/d", None),
            ("postgres://a@localhost/d", None),
            ("postgres://a@localhost/d?host=/run/postgresql", None),
            ("postgres://a@192.0.2.1/d", Some("verify-full")),
            ("postgres://a@192.0.2.1/d?sslmode=require", Some("require")),
            ("postgres://a@localhost.example.com/d", Some("verify-full")),
        ] {
            let DatabaseUrl::Postgres(parsed) = DatabaseUrl::parse(url, None).unwrap() else {
                panic!("{url}")
            };
            let connect = parsed.connect_url();
            let found = connect.query_pairs().find(|(key, _)| key == "sslmode");
            assert_eq!(found.map(|(_, value)| value.into_owned()).as_deref(), mode, "{url}");
        }
    }

    #[test]
    fn each_mistake_says_what_to_write() {
        for (url, says) in [
            ("/var/lib/x.db", "sqlite:/path"),
            ("sqlite:", "name the file"),
            ("mysql://a@b/c", "postgres://USER"),
            ("postgres://a:secret@b/c", "password"),
            ("postgres://b/c", "name the user"),
            ("postgres://a@b/", "database"),
            ("postgres://a@b/c?pasword=x", "pasword is not known"),
            ("postgres://a@b/c?password=x", "password is not known"),
        ] {
            let error = DatabaseUrl::parse(url, None).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
