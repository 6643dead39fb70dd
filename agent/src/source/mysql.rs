//! MySQL and MariaDB: each database by `mariadb-dump` or `mysqldump` in a single transaction, as plain SQL.
//!
//! Streams: `users.sql` (accounts, roles, grants; where this user may read them); then for each
//! database `db/<name>.sql`, which restores into a database of any name. Each database is consistent in itself; they are
//! dumped one after the other, each with a snapshot of its own, so that one can be restored without the rest. Tables
//! whose engine knows no transactions are in the dump, but nothing protects them from being written to meanwhile: they
//! are named, and make the backup partial.
//!
//! The password travels in a 0600 option file only, first on the command line.

mod options;
mod users;

use std::path::PathBuf;

use bytes::Bytes;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::database::{choose, sql_head, stream_name};
use super::error::SourceError;
use super::process::{Tool, find_program};
use super::sink::Sink;
use super::{MAX_DATA, SourceCheck, SourceEnv, SourceSummary};
use crate::config;
use crate::config::source::Mysql;

/// Databases of the server's own.
const SYSTEM: &str = "('information_schema', 'performance_schema', 'mysql', 'sys')";
/// Engines whose tables show rows that live elsewhere: dump tools leave those rows out.
const ELSEWHERE: [&str; 8] =
    ["MRG_MYISAM", "MRG_ISAM", "CONNECT", "OQGRAPH", "SPIDER", "VP", "FEDERATED", "BLACKHOLE"];

/// Dumps accounts and databases.
pub async fn run(
    source: &config::Source,
    mysql: &Mysql,
    env: &SourceEnv,
    sink: &Sink,
) -> Result<SourceSummary, SourceError> {
    let server = Server::connect(source, mysql, env, sink.cancel()).await?;
    let databases = server.databases().await?;
    let mut summary = SourceSummary {
        tool_version: server.tools.display(),
        server_version: server.version.clone(),
        ..SourceSummary::default()
    };
    if !server.sees_triggers().await? {
        sink.warn("triggers", "this user may not see them, so they may be missing: GRANT TRIGGER").await?;
    }
    if mysql.users {
        let dumped = users::dump(&server).await?;
        summary
            .attributes
            .insert("users".to_owned(), if dumped.is_some() { "included" } else { "omitted" }.to_owned());
        if let Some(sql) = dumped {
            sink.begin(sql_head("users.sql".to_owned(), [])).await?;
            for piece in sql.as_bytes().chunks(MAX_DATA) {
                sink.data(Bytes::copy_from_slice(piece)).await?;
            }
            sink.end(false).await?;
        }
    }
    for database in databases {
        dump_database(&server, &database, sink).await?;
    }
    Ok(summary)
}

async fn dump_database(server: &Server<'_>, database: &Database, sink: &Sink) -> Result<(), SourceError> {
    let tables = server.tables(&database.name).await?;
    let mut partial = false;
    for table in &tables {
        if let Some(problem) = table.problem() {
            sink.warn(format!("table {}.{}", database.name, table.name), problem).await?;
            partial = true;
        }
    }
    let properties = [
        ("database", database.name.clone()),
        ("character_set", database.character_set.clone()),
        ("collation", database.collation.clone()),
    ];
    sink.begin(sql_head(stream_name(&database.name, ".sql"), properties)).await?;
    let versioned = tables.iter().any(|table| table.versioned);
    if versioned && !server.tools.keep_history() {
        let problem =
            "the history of its versioned tables is not dumped: install mariadb-dump 10.11 or newer";
        sink.warn(format!("database {}", database.name), problem).await?;
        partial = true;
    }
    server.dump_tool(&database.name, versioned).stream(server.env, sink).await?;
    sink.end(partial).await
}

/// Whether a backup would work: connects, and looks what would be missing.
pub async fn test(
    source: &config::Source,
    mysql: &Mysql,
    env: &SourceEnv,
    cancel: &CancellationToken,
) -> Result<SourceCheck, SourceError> {
    let server = Server::connect(source, mysql, env, cancel).await?;
    let databases = server.databases().await?;
    let mut problems = Vec::new();
    if !server.sees_triggers().await? {
        problems.push("triggers would be missing: GRANT TRIGGER".to_owned());
    }
    for database in &databases {
        for table in server.tables(&database.name).await? {
            problems.extend(
                table.problem().map(|problem| format!("table {}.{}: {problem}", database.name, table.name)),
            );
        }
    }
    let names = databases.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
    let users = match mysql.users && users::dump(&server).await?.is_none() {
        true => "; without accounts and grants, which this user may not read",
        false => "",
    };
    Ok(SourceCheck {
        ok: problems.is_empty(),
        detail: if problems.is_empty() { format!("databases {names}{users}") } else { problems.join("; ") },
        tool_version: server.tools.display(),
        server_version: server.version.clone(),
    })
}

/// A database of the server.
struct Database {
    name: String,
    character_set: String,
    collation: String,
}

/// A table that needs a second look.
struct Table {
    name: String,
    engine: String,
    transactional: bool,
    versioned: bool,
}

impl Table {
    /// Why the dump does not vouch for it.
    fn problem(&self) -> Option<String> {
        let engine = &self.engine;
        if ELSEWHERE.contains(&engine.to_ascii_uppercase().as_str()) {
            // There is nothing in a black hole that could be missing.
            let empty = engine.eq_ignore_ascii_case("BLACKHOLE");
            return (!empty)
                .then(|| format!("engine {engine} shows rows that live elsewhere: they are not dumped"));
        }
        (!self.transactional).then(|| {
            format!(
                "engine {engine} knows no transactions: what was written during the dump may be there in part"
            )
        })
    }
}

/// A server that answered, and the tools to ask and dump it.
struct Server<'a> {
    mysql: &'a Mysql,
    env: &'a SourceEnv,
    cancel: &'a CancellationToken,
    tools: Tools,
    options: Options,
    version: String,
}

/// The option file, for as long as it is needed.
struct Options {
    file: NamedTempFile,
    password: Option<config::source::Credential>,
}

impl Options {
    /// The one argument that must come first, and what must not be repeated in errors.
    fn apply(&self, program: &std::path::Path) -> Tool {
        let tool = Tool::new(program).arg(format!("--defaults-extra-file={}", self.file.path().display()));
        match &self.password {
            Some(password) => tool.redact(&password.value),
            None => tool,
        }
    }
}

impl<'a> Server<'a> {
    async fn connect(
        source: &config::Source,
        mysql: &'a Mysql,
        env: &'a SourceEnv,
        cancel: &'a CancellationToken,
    ) -> Result<Self, SourceError> {
        let tools = Tools::find(mysql, env, cancel).await?;
        let password = source.password(&env.environment).map_err(SourceError::Config)?;
        let file = options::write(mysql, password.as_ref().map(|p| &p.value), tools.mariadb, env)?;
        let options = Options { file, password };
        let mut this = Self { mysql, env, cancel, tools, options, version: String::new() };
        let [version] = this.one_row("SELECT HEX(VERSION())").await?;
        this.version = version;
        Ok(this)
    }

    fn client(&self) -> Tool {
        let tool = self.options.apply(&self.tools.client).args(["--batch", "--skip-column-names"]);
        tool.args(["--connect-timeout=30", "--default-character-set=utf8mb4"])
    }

    /// Runs a query of which every field is a hexadecimal number, so that nothing in a name can be mistaken.
    async fn query<const N: usize>(&self, sql: &str) -> Result<Vec<[String; N]>, SourceError> {
        let tool = self.options.apply(&self.tools.client).args([
            "--batch",
            "--skip-column-names",
            "--connect-timeout=30",
        ]);
        let tool = tool.args(["--default-character-set=utf8mb4", "--execute"]).arg(sql);
        let answer = tool.answer(self.env, self.cancel).await?;
        let odd = || SourceError::ToolAnswer {
            tool: self.tools.client_name(),
            problem: "not the fields asked for".to_owned(),
        };
        let row = |line: &str| -> Option<[String; N]> {
            let fields: Option<Vec<_>> = line.split('\t').map(unhex).collect();
            fields?.try_into().ok()
        };
        let text = String::from_utf8_lossy(&answer);
        text.lines().map(|line| row(line).ok_or_else(odd)).collect()
    }

    async fn one_row<const N: usize>(&self, sql: &str) -> Result<[String; N], SourceError> {
        let odd =
            || SourceError::ToolAnswer { tool: self.tools.client_name(), problem: "no answer".to_owned() };
        self.query(sql).await?.into_iter().next().ok_or_else(odd)
    }

    async fn databases(&self) -> Result<Vec<Database>, SourceError> {
        let all = "SELECT HEX(SCHEMA_NAME), HEX(DEFAULT_CHARACTER_SET_NAME), HEX(DEFAULT_COLLATION_NAME) \
                   FROM information_schema.SCHEMATA";
        // Who names a database of the server's own gets it.
        let sql = match self.mysql.databases {
            Some(_) => all.to_owned(),
            None => format!("{all} WHERE SCHEMA_NAME NOT IN {SYSTEM}"),
        };
        let found = self.query(&sql).await?.into_iter();
        let found = found.map(|[name, character_set, collation]| Database { name, character_set, collation });
        let Mysql { url, databases, exclude_databases, .. } = self.mysql;
        choose(found.collect(), |d| &d.name, databases.as_ref(), exclude_databases, &url.place())
    }

    /// The tables of a database that are not plainly protected by a transaction, or keep their history.
    async fn tables(&self, database: &str) -> Result<Vec<Table>, SourceError> {
        let sql = format!(
            "SELECT HEX(t.TABLE_NAME), HEX(t.ENGINE), HEX(COALESCE(e.TRANSACTIONS, 'NO')), HEX(t.TABLE_TYPE) \
             FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
             WHERE t.TABLE_SCHEMA = CONVERT(0x{} USING utf8mb4) AND t.ENGINE IS NOT NULL \
             AND t.TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') \
             AND (COALESCE(e.TRANSACTIONS, 'NO') <> 'YES' OR t.TABLE_TYPE = 'SYSTEM VERSIONED') ORDER BY t.TABLE_NAME",
            hex::encode(database)
        );
        let rows = self.query(&sql).await?.into_iter();
        Ok(rows
            .map(|[name, engine, transactions, kind]| Table {
                name,
                engine,
                transactional: transactions == "YES",
                versioned: kind == "SYSTEM VERSIONED",
            })
            .collect())
    }

    /// Without the privilege, servers show no triggers and say nothing: the dump would lack them silently.
    async fn sees_triggers(&self) -> Result<bool, SourceError> {
        let tool = self.client().arg("--raw").arg("--execute").arg("SHOW GRANTS");
        let answer = tool.answer(self.env, self.cancel).await?;
        let grants = String::from_utf8_lossy(&answer);
        Ok(grants.contains("ALL PRIVILEGES") || grants.contains("TRIGGER"))
    }

    fn dump_tool(&self, database: &str, versioned: bool) -> Tool {
        let tool = self.options.apply(&self.tools.dump);
        let tool = tool.args([
            "--single-transaction",
            "--quick",
            "--routines",
            "--events",
            "--triggers",
            "--hex-blob",
        ]);
        let tool = tool.args([
            "--default-character-set=utf8mb4",
            "--skip-dump-date",
            "--no-tablespaces",
            "--tz-utc",
        ]);
        let tool = match (self.tools.mariadb, versioned && self.tools.keep_history()) {
            (true, true) => tool.arg("--dump-history"),
            (true, false) => tool,
            // Replication state is no data; and servers before 8 have no such statistics.
            (false, _) => tool.args(["--set-gtid-purged=OFF", "--loose-column-statistics=0"]),
        };
        tool.arg("--").arg(database)
    }
}

/// The dump tool and the client beside it.
struct Tools {
    dump: PathBuf,
    client: PathBuf,
    /// MariaDB's tools, not MySQL's: their options differ.
    mariadb: bool,
    version: String,
}

impl Tools {
    async fn find(mysql: &Mysql, env: &SourceEnv, cancel: &CancellationToken) -> Result<Self, SourceError> {
        let bin_dir = mysql.bin_dir.as_ref().map(|dir| dir.as_path());
        let find = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| find_program(name, bin_dir, &env.environment));
            found.ok_or_else(|| SourceError::ToolMissing {
                tool: names.join(" or "),
                hint: match bin_dir {
                    Some(dir) => format!("it is not in bin_dir {}", dir.display()),
                    None => "install mariadb-client or mysql-client, or set bin_dir".to_owned(),
                },
            })
        };
        let (dump, client) = (find(["mariadb-dump", "mysqldump"])?, find(["mariadb", "mysql"])?);
        let answer = Tool::new(&dump).arg("--version").answer(env, cancel).await?;
        let (mariadb, version) = read_version(&String::from_utf8_lossy(&answer));
        Ok(Self { dump, client, mariadb, version })
    }

    /// Whether the tool knows `--dump-history`.
    fn keep_history(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|number| number.parse::<u32>().ok());
        self.mariadb && (numbers.next(), numbers.next()) >= (Some(10), Some(11))
    }

    fn display(&self) -> String {
        let name = self.dump.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} {}", self.version)
    }

    fn client_name(&self) -> String {
        self.client.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// `mariadb-dump  Ver 10.19 Distrib 10.11.6-MariaDB, for …`, `mariadb-dump from 11.4.2-MariaDB, client …`,
/// `mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)`: whether it is MariaDB's, and its version.
fn read_version(text: &str) -> (bool, String) {
    let words: Vec<&str> = text.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
    if let Some(word) = words.iter().find(|word| word.contains("-MariaDB")) {
        return (true, word.trim_end_matches("-MariaDB").to_owned());
    }
    let after_ver = words.iter().position(|word| *word == "Ver").and_then(|at| words.get(at + 1));
    (false, after_ver.map_or(String::new(), |word| (*word).to_owned()))
}

fn unhex(field: &str) -> Option<String> {
    // NULL, where a column has no value.
    if field == "NULL" {
        return Some(String::new());
    }
    String::from_utf8(hex::decode(field).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (text, mariadb, version) in [
            (
                "mariadb-dump  Ver 10.19 Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)",
                true,
                "10.11.6",
            ),
            ("mysqldump from 11.4.2-MariaDB, client 10.19 for Linux (x86_64)", true, "11.4.2"),
            ("mysqldump  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)", false, "8.0.36"),
        ] {
            assert_eq!(read_version(text), (mariadb, version.to_owned()));
        }
    }

    #[test]
    fn fields_are_hexadecimal() {
        assert_eq!(unhex("73686F70").as_deref(), Some("shop"));
        assert_eq!(unhex("").as_deref(), Some(""));
        assert_eq!(unhex("shop"), None);
    }
}
