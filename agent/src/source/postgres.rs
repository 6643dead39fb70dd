//! PostgreSQL: globals by `pg_dumpall`, each database by `pg_dump`, as plain SQL.
//!
//! Plain and uncompressed, because that deduplicates best: a row that did not change gives the same bytes every night.
//! Streams: `globals.sql` (roles, tablespaces); then for each database `db/<name>.create.sql` (the database itself: its
//! encoding, owner, settings, grants) and `db/<name>.sql` (what is in it; restores into a database of any name). Each
//! database is consistent in itself; PostgreSQL has no snapshot across databases.
//!
//! The password travels in a 0600 file only (`PGPASSFILE`).

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sealift_common::secret::Secret;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::database::{choose, rows, sql_head, stream_name};
use super::error::SourceError;
use super::process::{Tool, find_program};
use super::sink::Sink;
use super::{MAX_DATA, SourceCheck, SourceEnv, SourceSummary, system_ca};
use crate::config;
use crate::config::source::{Host, Postgres};

/// Version, its number (150004), and whether the role may read password hashes.
const SERVER_QUERY: &str = "SELECT current_setting('server_version'), current_setting('server_version_num'), \
     has_table_privilege('pg_catalog.pg_authid', 'SELECT')::int";
/// Databases that take connections. A connection limit of -2 marks what an interrupted DROP DATABASE left.
const DATABASES_QUERY: &str = "SELECT datname, pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, \
     (datconnlimit <> -2)::int, has_database_privilege(oid, 'CONNECT')::int \
     FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate";
/// What `pg_dump` would have to read and may not. Members of extensions are not dumped.
const UNREADABLE_QUERY: &str = "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'm', 'S') AND c.relpersistence <> 't' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
         AND d.objid = c.oid AND d.deptype = 'e') \
     AND NOT has_table_privilege(c.oid, 'SELECT') ORDER BY 1 LIMIT 5";

/// Dumps globals and databases.
pub async fn run(
    source: &config::Source,
    postgres: &Postgres,
    env: &SourceEnv,
    sink: &Sink,
) -> Result<SourceSummary, SourceError> {
    let server = Server::connect(source, postgres, env, sink.cancel()).await?;
    let databases = server.databases().await?;
    let mut summary = SourceSummary {
        tool_version: format!("pg_dump {}", server.tools.version),
        server_version: server.version.clone(),
        ..SourceSummary::default()
    };
    if postgres.globals {
        let passwords = if server.reads_passwords { "included" } else { "omitted" };
        summary.attributes.insert("role_passwords".to_owned(), passwords.to_owned());
        sink.begin(sql_head("globals.sql".to_owned(), [("role_passwords", passwords.to_owned())])).await?;
        server.globals_tool().stream(env, sink).await?;
        sink.end(false).await?;
    }
    for database in databases {
        if let Some(problem) = database.problem() {
            sink.warn(format!("database {}", database.name), problem).await?;
            continue;
        }
        dump_database(&server, &database, sink).await?;
    }
    Ok(summary)
}

async fn dump_database(server: &Server<'_>, database: &Database, sink: &Sink) -> Result<(), SourceError> {
    let create = server.create_tool(database).answer(server.env, sink.cancel()).await?;
    let create = database_statements(&String::from_utf8_lossy(&create));
    let name = || [("database", database.name.clone())];
    sink.begin(sql_head(stream_name(&database.name, ".create.sql"), name())).await?;
    for piece in create.as_bytes().chunks(MAX_DATA) {
        sink.data(Bytes::copy_from_slice(piece)).await?;
    }
    sink.end(false).await?;

    let properties = [
        ("database", database.name.clone()),
        ("encoding", database.encoding.clone()),
        ("lc_collate", database.collate.clone()),
        ("lc_ctype", database.ctype.clone()),
    ];
    sink.begin(sql_head(stream_name(&database.name, ".sql"), properties)).await?;
    server.dump_tool(database).stream(server.env, sink).await?;
    sink.end(false).await
}

/// Whether a backup would work: connects, and looks whether everything may be read.
pub async fn test(
    source: &config::Source,
    postgres: &Postgres,
    env: &SourceEnv,
    cancel: &CancellationToken,
) -> Result<SourceCheck, SourceError> {
    let server = Server::connect(source, postgres, env, cancel).await?;
    let databases = server.databases().await?;
    let mut problems = Vec::new();
    for database in &databases {
        if let Some(problem) = database.problem() {
            problems.push(format!("database {}: {problem}", database.name));
            continue;
        }
        let unreadable = rows::<1>("psql", &server.query(&database.name, UNREADABLE_QUERY).await?, 0)?;
        if !unreadable.is_empty() {
            let names = unreadable.iter().map(|[name]| name.as_str()).collect::<Vec<_>>().join(", ");
            problems.push(format!(
                "database {}: no permission to read {names}: GRANT pg_read_all_data",
                database.name
            ));
        }
    }
    let names = databases.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    let passwords = match (postgres.globals, server.reads_passwords) {
        (true, false) => "; roles without their passwords, which this role may not read",
        _ => "",
    };
    Ok(SourceCheck {
        ok: problems.is_empty(),
        detail: if problems.is_empty() {
            format!("databases {names}{passwords}")
        } else {
            problems.join("; ")
        },
        tool_version: format!("pg_dump {}", server.tools.version),
        server_version: server.version.clone(),
    })
}

/// A database of the server.
struct Database {
    name: String,
    encoding: String,
    collate: String,
    ctype: String,
    valid: bool,
    may_connect: bool,
}

impl Database {
    /// Why it cannot be dumped.
    fn problem(&self) -> Option<&'static str> {
        if !self.valid {
            Some("is what an interrupted DROP DATABASE left: drop it")
        } else if !self.may_connect {
            Some("this role may not connect: GRANT CONNECT ON DATABASE, or name it in exclude_databases")
        } else {
            None
        }
    }
}

/// A server that answered, and the tools that fit it.
struct Server<'a> {
    postgres: &'a Postgres,
    env: &'a SourceEnv,
    cancel: &'a CancellationToken,
    connection: Connection,
    tools: Tools,
    psql: PathBuf,
    first_database: String,
    version: String,
    reads_passwords: bool,
}

impl<'a> Server<'a> {
    async fn connect(
        source: &config::Source,
        postgres: &'a Postgres,
        env: &'a SourceEnv,
        cancel: &'a CancellationToken,
    ) -> Result<Self, SourceError> {
        let connection = Connection::prepare(source, postgres, env)?;
        let found = installed(postgres, env, cancel).await?;
        let first_database = first_database(postgres);
        // Any psql will do to ask; the oldest tools are no worse at it.
        let psql = found.iter().map(|tools| tools.dir.join("psql")).find(|psql| psql.is_file());
        let psql = psql.ok_or_else(|| missing("psql", postgres))?;
        let answer =
            query_tool(&psql, &connection, &first_database, SERVER_QUERY).answer(env, cancel).await?;
        let facts = rows::<3>("psql", &answer, 0)?;
        let odd = || SourceError::ToolAnswer {
            tool: "psql".to_owned(),
            problem: "no version of the server".to_owned(),
        };
        let [version, number, reads_passwords] = facts.into_iter().next().ok_or_else(odd)?;
        let major = number.parse::<u32>().map_err(|_| odd())? / 10_000;
        let tools = fitting(found, major).map_err(|newest| SourceError::ToolOutdated {
            tool: "pg_dump".to_owned(),
            tool_version: newest,
            server_version: major.to_string(),
        })?;
        let reads_passwords = reads_passwords == "1";
        Ok(Self { postgres, env, cancel, connection, tools, psql, first_database, version, reads_passwords })
    }

    async fn query(&self, database: &str, sql: &str) -> Result<Vec<u8>, SourceError> {
        query_tool(&self.psql, &self.connection, database, sql).answer(self.env, self.cancel).await
    }

    async fn databases(&self) -> Result<Vec<Database>, SourceError> {
        let found = rows::<6>("psql", &self.query(&self.first_database, DATABASES_QUERY).await?, 0)?;
        let found = found.into_iter().map(|[name, encoding, collate, ctype, valid, may_connect]| Database {
            name,
            encoding,
            collate,
            ctype,
            valid: valid == "1",
            may_connect: may_connect == "1",
        });
        let Postgres { url, databases, exclude_databases, .. } = self.postgres;
        choose(found.collect(), |d| &d.name, databases.as_ref(), exclude_databases, &url.place())
    }

    fn globals_tool(&self) -> Tool {
        let tool = Tool::new(&self.tools.dir.join("pg_dumpall")).args(["--globals-only", "--no-password"]);
        let tool = tool.arg("--database").arg(&self.first_database);
        let tool = if self.reads_passwords { tool } else { tool.arg("--no-role-passwords") };
        self.connection.apply(tool)
    }

    /// The database itself, without what is in it.
    fn create_tool(&self, database: &Database) -> Tool {
        let tool =
            Tool::new(&self.tools.dir.join("pg_dump")).args(["--format=plain", "--no-password", "--create"]);
        let tool = tool.args(["--schema-only", "--exclude-schema=*", "--no-blobs"]);
        self.connection.apply(tool.arg("--dbname").arg(connection_string(&database.name)))
    }

    fn dump_tool(&self, database: &Database) -> Tool {
        let tool = Tool::new(&self.tools.dir.join("pg_dump")).args(["--format=plain", "--no-password"]);
        self.connection.apply(tool.arg("--dbname").arg(connection_string(&database.name)))
    }
}

fn query_tool(psql: &Path, connection: &Connection, database: &str, sql: &str) -> Tool {
    let flags = ["--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align"];
    let tool = Tool::new(psql).args(flags).args(["--field-separator-zero", "--record-separator-zero"]);
    let tool = tool.arg("--dbname").arg(connection_string(database)).arg("--command").arg(sql);
    connection.apply(tool).env("PGCLIENTENCODING", "UTF8")
}

/// `dbname='…'`: a bare name with `=` in it would be taken for a whole connection string.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The database to ask first: as the URL says, else the first that is named, else `postgres`.
fn first_database(postgres: &Postgres) -> String {
    let named = postgres.databases.as_ref().and_then(|databases| databases.names().first());
    postgres.url.database.as_ref().or(named).cloned().unwrap_or_else(|| "postgres".to_owned())
}

/// How the tools reach the server: variables of their environment, and a password file for as long as this lives.
struct Connection {
    variables: Vec<(&'static str, String)>,
    password: Option<(Secret<String>, NamedTempFile)>,
}

impl Connection {
    fn prepare(source: &config::Source, postgres: &Postgres, env: &SourceEnv) -> Result<Self, SourceError> {
        let Postgres { url, tls, .. } = postgres;
        let mut variables =
            vec![("PGCONNECT_TIMEOUT", "30".to_owned()), ("PGAPPNAME", "sealift-agent".to_owned())];
        match &url.host {
            Host::Default => {}
            Host::Network(name) => variables.push(("PGHOST", name.clone())),
            Host::Socket(path) => variables.push(("PGHOST", path.display().to_string())),
        }
        variables.extend(url.port.map(|port| ("PGPORT", port.to_string())));
        variables.extend(url.user.clone().map(|user| ("PGUSER", user)));
        let mode = tls.mode(url);
        variables.push(("PGSSLMODE", mode.as_str().to_owned()));
        let ca = tls.ca.as_ref().map(|path| path.as_path()).or_else(|| system_ca(mode));
        for (name, path) in [
            ("PGSSLROOTCERT", ca),
            ("PGSSLCERT", tls.certificate.as_ref().map(|path| path.as_path())),
            ("PGSSLKEY", tls.key.as_ref().map(|path| path.as_path())),
        ] {
            variables.extend(path.map(|path| (name, path.display().to_string())));
        }
        let credential = source.password(&env.environment).map_err(SourceError::Config)?;
        let password =
            credential.map(|c| password_file(&c.value, env).map(|file| (c.value, file))).transpose()?;
        Ok(Self { variables, password })
    }

    fn apply(&self, tool: Tool) -> Tool {
        let tool = self.variables.iter().fold(tool, |tool, (name, value)| tool.env(name, value));
        match &self.password {
            Some((value, file)) => tool.env("PGPASSFILE", file.path().display().to_string()).redact(value),
            None => tool,
        }
    }
}

fn password_file(password: &Secret<String>, env: &SourceEnv) -> Result<NamedTempFile, SourceError> {
    let mut file = env.temp.file("pgpass-")?;
    let escaped = Secret::new(password.expose().replace('\\', "\\\\").replace(':', "\\:"));
    let line = Secret::new(format!("*:*:*:*:{}\n", escaped.expose()));
    file.write_all(line.expose().as_bytes()).map_err(SourceError::io("write", file.path()))?;
    Ok(file)
}

/// One installed set of tools.
#[derive(Debug, Clone)]
struct Tools {
    dir: PathBuf,
    version: String,
    major: u32,
}

/// The sets of tools on this host, oldest first.
async fn installed(
    postgres: &Postgres,
    env: &SourceEnv,
    cancel: &CancellationToken,
) -> Result<Vec<Tools>, SourceError> {
    let mut found = Vec::new();
    for dir in tool_dirs(postgres, env) {
        let answer = Tool::new(&dir.join("pg_dump")).arg("--version").answer(env, cancel).await?;
        let text = String::from_utf8_lossy(&answer);
        // "pg_dump (PostgreSQL) 15.4 (Debian 15.4-1)"; "16beta1" before a release.
        let version = text.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        if let Ok(major) = digits.parse() {
            found.push(Tools { dir, version, major });
        }
    }
    found.sort_by_key(|tools| tools.major);
    if found.is_empty() { Err(missing("pg_dump", postgres)) } else { Ok(found) }
}

/// Directories with a `pg_dump`: as configured, or where distributions put each version, and the `PATH`.
fn tool_dirs(postgres: &Postgres, env: &SourceEnv) -> Vec<PathBuf> {
    let dir_of = |program: PathBuf| program.parent().map(Path::to_owned);
    if let Some(dir) = &postgres.bin_dir {
        return find_program("pg_dump", Some(dir.as_path()), &env.environment)
            .and_then(dir_of)
            .into_iter()
            .collect();
    }
    let debian = subdirectories("/usr/lib/postgresql", "");
    let red_hat = subdirectories("/usr", "pgsql-");
    let versioned = debian.chain(red_hat).map(|dir| dir.join("bin"));
    let on_path = find_program("pg_dump", None, &env.environment).and_then(dir_of);
    // Debian's /usr/bin/pg_dump is a wrapper around the versioned ones: only where there is nothing else.
    let mut dirs: Vec<_> = versioned.filter(|dir| dir.join("pg_dump").is_file()).collect();
    if dirs.is_empty() {
        dirs.extend(on_path);
    }
    dirs
}

fn subdirectories(parent: &str, prefix: &'static str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
}

/// The oldest tools that are no older than the server; else the version of the newest.
fn fitting(found: Vec<Tools>, server_major: u32) -> Result<Tools, String> {
    let newest = found.last().map(|tools| tools.version.clone()).unwrap_or_default();
    found.into_iter().find(|tools| tools.major >= server_major).ok_or(newest)
}

fn missing(tool: &str, postgres: &Postgres) -> SourceError {
    let hint = match &postgres.bin_dir {
        Some(dir) => format!("it is not in bin_dir {}", dir.as_path().display()),
        None => "install postgresql-client, or set bin_dir".to_owned(),
    };
    SourceError::ToolMissing { tool: tool.to_owned(), hint }
}

/// Keeps of a `pg_dump --create` what concerns the database itself. Extensions come along although their schemas do not,
/// and belong to the other stream.
fn database_statements(dump: &str) -> String {
    let mut out = String::with_capacity(dump.len());
    let mut keep = true;
    for section in dump.split_inclusive("\n--\n-- ") {
        let title = section.lines().next().unwrap_or_default();
        if let Some(entry) = title.strip_prefix("Name: ") {
            keep = entry.starts_with("DATABASE ") || entry.contains("; Type: DATABASE");
        } else {
            keep = keep || title.starts_with("PostgreSQL database dump");
        }
        if keep {
            out.push_str(section);
        }
    }
    // A section that was left out may have held the end of psql's restricted mode.
    let last =
        out.lines().rev().find(|line| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict "));
    if let Some(token) = last.and_then(|line| line.strip_prefix("\\restrict ")) {
        out = format!("{out}\\unrestrict {token}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_cannot_become_connection_strings() {
        assert_eq!(connection_string("a=b"), "dbname='a=b'");
        assert_eq!(connection_string(r"it's \ here"), r"dbname='it\'s \\ here'");
    }

    #[test]
    fn the_oldest_tools_that_fit_are_taken() {
        let tools = |major: u32| Tools { dir: PathBuf::new(), version: format!("{major}.1"), major };
        let found = || vec![tools(13), tools(15), tools(17)];
        assert_eq!(fitting(found(), 14).unwrap().major, 15);
        assert_eq!(fitting(found(), 17).unwrap().major, 17);
        assert_eq!(fitting(found(), 18).unwrap_err(), "17.1");
    }

    #[test]
    fn only_the_database_itself_is_kept() {
        let dump = "--\n-- PostgreSQL database dump\n--\n\n\\restrict T\n\nSET a;\n\n--\n-- Name: x; Type: DATABASE; Schema: -\n--\n\n\
            CREATE DATABASE x;\n\n--\n-- Name: trgm; Type: EXTENSION; Schema: -\n--\n\nCREATE EXTENSION trgm;\n\n--\n\
            -- Name: DATABASE x; Type: ACL; Schema: -\n--\n\nGRANT CONNECT ON DATABASE x TO r;\n\n--\n\
            -- Name: e; Type: EXTENSION; Schema: -\n--\n\nCREATE EXTENSION e;\n\n\\unrestrict T\n\n--\n-- PostgreSQL database dump complete\n--\n";
        let kept = database_statements(dump);
        let statements: Vec<_> =
            kept.lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
        assert_eq!(
            statements,
            [
                "\\restrict T",
                "SET a;",
                "CREATE DATABASE x;",
                "GRANT CONNECT ON DATABASE x TO r;",
                "\\unrestrict T",
            ]
        );
    }
}
