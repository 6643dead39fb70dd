//! Sources that are database servers: where they are, how they are reached, what of them is dumped.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::secret::SecretRef;
use super::values::AbsolutePath;

/// Most databases that one source may name.
const MAX_DATABASES: usize = 10_000;
/// Longest name of a database, in bytes: MySQL's 64 characters of up to four bytes (PostgreSQL's are 63 bytes).
const MAX_DATABASE_NAME: usize = 256;

/// `kind = "postgres"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Where the server is.
    pub url: DatabaseUrl,
    /// The role's password; else `DB_<NAME>_PASSWORD` or `DB_<INDEX>_PASSWORD`; else none is sent.
    pub password: Option<SecretRef>,
    /// The databases to dump; all that take connections where this is absent.
    pub databases: Option<Databases>,
    /// Databases to leave out.
    #[serde(default)]
    pub exclude_databases: Databases,
    /// Whether roles and tablespaces are dumped too.
    #[serde(default = "yes")]
    pub globals: bool,
    /// TLS towards the server.
    #[serde(default)]
    pub tls: Tls,
    /// Where `pg_dump`, `pg_dumpall` and `psql` are; found by themselves where this is absent.
    pub bin_dir: Option<AbsolutePath>,
}

/// `kind = "mysql"`: MySQL and MariaDB.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mysql {
    /// Where the server is.
    pub url: DatabaseUrl,
    /// The user's password; else `DB_<NAME>_PASSWORD` or `DB_<INDEX>_PASSWORD`; else none is sent.
    pub password: Option<SecretRef>,
    /// An option file of the user's own, read before what this source says; may hold the password.
    pub config_file: Option<AbsolutePath>,
    /// The databases to dump; all but the server's own where this is absent.
    pub databases: Option<Databases>,
    /// Databases to leave out.
    #[serde(default)]
    pub exclude_databases: Databases,
    /// Whether users and grants are dumped too.
    #[serde(default = "yes")]
    pub users: bool,
    /// TLS towards the server.
    #[serde(default)]
    pub tls: Tls,
    /// Where `mariadb-dump` and `mariadb` (or `mysqldump` and `mysql`) are; found by themselves where this is absent.
    pub bin_dir: Option<AbsolutePath>,
}

fn yes() -> bool {
    true
}

/// Names of databases.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Databases(Vec<String>);

impl Databases {
    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|own| own == name)
    }
}

impl TryFrom<Vec<String>> for Databases {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        if names.len() > MAX_DATABASES {
            return Err(format!("{} databases, at most {MAX_DATABASES}", names.len()));
        }
        for (at, name) in names.iter().enumerate() {
            if name.is_empty() || name.len() > MAX_DATABASE_NAME || name.contains(['\0', '\n', '\r']) {
                return Err(format!("{name:?} is not the name of a database"));
            }
            if names[..at].contains(name) {
                return Err(format!("the database {name:?} is named twice"));
            }
        }
        Ok(Self(names))
    }
}

/// TLS towards a database server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// How much is demanded; see [`Tls::mode`] for the default.
    mode: Option<TlsMode>,
    /// PEM file with the CA of the server; the system's own where this is absent.
    pub ca: Option<AbsolutePath>,
    /// PEM file with a client certificate.
    pub certificate: Option<AbsolutePath>,
    /// PEM file with its key.
    pub key: Option<AbsolutePath>,
}

/// How much TLS is demanded, in libpq's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS where the server offers it.
    Prefer,
    /// TLS, with whomever.
    Require,
    /// TLS with a server whose certificate the CA signed.
    VerifyCa,
    /// The same, and the certificate is for this host name.
    VerifyFull,
}

impl TlsMode {
    /// As libpq's `sslmode` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Whether the server's certificate is checked against a CA.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

impl Tls {
    /// What is demanded of the server at `url`: by default the full check, and `prefer` on this very machine.
    pub fn mode(&self, url: &DatabaseUrl) -> TlsMode {
        self.mode.unwrap_or(if url.is_local() { TlsMode::Prefer } else { TlsMode::VerifyFull })
    }

    /// What is wrong with the section as a whole.
    pub(super) fn problem(&self) -> Option<&'static str> {
        (self.certificate.is_some() != self.key.is_some()).then_some("tls needs certificate and key together")
    }
}

/// Which server a URL is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `postgres://`, `postgresql://`.
    Postgres,
    /// `mysql://`, `mariadb://`.
    Mysql,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Where the client library looks by itself: its default socket.
    Default,
    /// A host name or address.
    Network(String),
    /// A Unix socket: for PostgreSQL its directory, for MySQL the socket itself.
    Socket(PathBuf),
}

/// The address of a database server: `postgres://USER@HOST:PORT/DATABASE`, or `…/?socket=/path`; never a password.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DatabaseUrl {
    /// Which server.
    pub scheme: Scheme,
    /// Where.
    pub host: Host,
    /// The port, where it is not the usual one.
    pub port: Option<u16>,
    /// The user; the operating system's where this is absent.
    pub user: Option<String>,
    /// The database to connect to first.
    pub database: Option<String>,
}

impl DatabaseUrl {
    /// Whether the server is on this machine, as far as the address says.
    pub fn is_local(&self) -> bool {
        match &self.host {
            Host::Default | Host::Socket(_) => true,
            Host::Network(name) => {
                name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        }
    }

    /// For people: `localhost:5432`, `/run/postgresql`.
    pub fn place(&self) -> String {
        let host = match &self.host {
            Host::Default => "the default socket".to_owned(),
            Host::Network(name) => name.clone(),
            Host::Socket(path) => path.display().to_string(),
        };
        self.port.map_or(host.clone(), |port| format!("{host}:{port}"))
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        // The text itself stays out of the errors: it may hold a password by mistake.
        let help = "write postgres://USER@HOST:PORT/ or mysql://USER@HOST:PORT/";
        // Clients allow an empty host after a user, the URL standard does not.
        let (text, hostless) = match text.split_once("@/") {
            Some((before, after)) if !before.contains("/?") => (format!("{before}@localhost/{after}"), true),
            _ => (text, false),
        };
        let url: Url = text.parse().map_err(|e| format!("the address cannot be read ({e}): {help}"))?;
        let scheme = match url.scheme() {
            "postgres" | "postgresql" => Scheme::Postgres,
            "mysql" | "mariadb" => Scheme::Mysql,
            other => return Err(format!("unknown kind of address {other}:// - {help}")),
        };
        if url.password().is_some() {
            return Err("no password in the address: use password = \"${VAR}\" or \"file:/path\"".to_owned());
        }
        let mut this = Self {
            scheme,
            host: match url.host_str().map(decode).transpose()? {
                Some(_) if hostless => Host::Default,
                Some(host) if host.starts_with('/') => Host::Socket(host.into()),
                Some(host) if !host.is_empty() => Host::Network(host.trim_matches(['[', ']']).to_owned()),
                _ => Host::Default,
            },
            port: url.port(),
            user: Some(decode(url.username())?).filter(|user| !user.is_empty()),
            database: Some(decode(url.path().trim_start_matches('/'))?).filter(|name| !name.is_empty()),
        };
        for (key, value) in url.query_pairs() {
            match &*key {
                "host" | "socket" => {
                    this.host =
                        Host::Socket(AbsolutePath::try_from(value.into_owned())?.as_path().to_owned());
                }
                "port" => this.port = Some(value.parse().map_err(|_| format!("{value:?} is not a port"))?),
                other => {
                    return Err(format!(
                        "unknown parameter {other:?} in the address: TLS is set by tls = {{ … }}"
                    ));
                }
            }
        }
        let fields = [this.user.as_deref(), this.database.as_deref()];
        if fields.into_iter().flatten().any(|field| field.contains(['\0', '\n', '\r'])) {
            return Err("the address must not contain line breaks".to_owned());
        }
        Ok(this)
    }
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| "the address is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<DatabaseUrl, String> {
        DatabaseUrl::try_from(text.to_owned())
    }

    #[test]
    fn addresses_are_read_as_their_clients_do() {
        let parsed = url("postgres://backup@db.example.com:5433/main").unwrap();
        assert_eq!(parsed.host, Host::Network("db.example.com".to_owned()));
        assert_eq!(
            (parsed.port, parsed.user.as_deref(), parsed.database.as_deref()),
            (Some(5433), Some("backup"), Some("main"))
        );
        assert!(!parsed.is_local());
        for local in [
            "postgres://backup@localhost/",
            "postgres:///",
            "postgresql://backup@/",
            "postgres://b@[::1]/",
            "postgres://backup@%2Frun%2Fpostgresql/x",
            "postgres://backup@/?host=/run/postgresql&port=5433",
            "mysql://root@localhost/?socket=/run/mysqld/mysqld.sock",
            "mariadb://127.0.0.1:3307",
        ] {
            assert!(url(local).unwrap().is_local(), "{local}");
        }
        assert_eq!(url("postgres://backup@/?host=/run/pg").unwrap().host, Host::Socket("/run/pg".into()));
        assert_eq!(url("postgres://backup@/").unwrap().host, Host::Default);
        assert_eq!(url("mysql://a%40b@h/").unwrap().user.as_deref(), Some("a@b"));
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for bad in [
            "postgres://u:hunter2@h/",
            "oracle://u:hunter2@h/",
            "postgres://u:hunter2@h:port/",
            "mysql://h/?ssl=hunter2x",
        ] {
            let error = url(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn tls_is_strict_towards_other_machines() {
        let tls = Tls::default();
        assert_eq!(tls.mode(&url("postgres://b@localhost/").unwrap()), TlsMode::Prefer);
        assert_eq!(tls.mode(&url("postgres://b@db.example.com/").unwrap()), TlsMode::VerifyFull);
    }
}
