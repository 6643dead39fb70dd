//! A private PostgreSQL server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{ATTEMPTS, free_port, new_password};
use crate::process::{Process, guarded_unprivileged, program, run, server_dir};
use crate::scratch::Scratch;
use crate::wait;

const USER: &str = "postgres";
const INSTALL: &str = "apt-get install postgresql (make test does)";

/// What a test may want to differ.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Further lines of `postgresql.conf`: name and value.
    pub settings: Vec<(String, String)>,
    /// Lines of `pg_hba.conf`, instead of a password for everyone.
    pub hba: Vec<String>,
    /// Files to put into the data directory (name, content; mode 0600): a server's key and certificate, say.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A running server with one superuser, `postgres`, that needs a password (SCRAM). Loopback and a Unix socket.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    password: String,
    options: PostgresOptions,
    scratch: Scratch,
}

impl Postgres {
    /// Starts a fresh server.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(PostgresOptions::default())
    }

    /// Starts a fresh server with options.
    #[track_caller]
    pub fn start_with(options: PostgresOptions) -> Self {
        let scratch = Scratch::new("pg");
        let password = new_password();
        init(&scratch, &password, &options);
        for _ in 0..ATTEMPTS {
            let port = free_port();
            if let Some(process) = serve(&scratch, port, &options) {
                return Self { process, port, password, options, scratch };
            }
        }
        panic!(
            "PostgreSQL does not start: {}",
            std::fs::read_to_string(scratch.join("log")).unwrap_or_default()
        );
    }

    /// The program of that name (`pg_dump`, `psql`, …) of the newest installed version.
    #[track_caller]
    pub fn bin(name: &str) -> PathBuf {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        versions.sort_by_key(|path| {
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok())
        });
        let newest =
            versions.into_iter().rev().map(|path| path.join("bin").join(name)).find(|path| path.is_file());
        newest.unwrap_or_else(|| program(&[name], INSTALL))
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Password of the superuser `postgres`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// `postgres://postgres@127.0.0.1:PORT/DATABASE`, without the password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends the server at once, as a power cut would: whoever is connected is cut off.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.stop(Signal::SIGQUIT, wait::LIMIT);
    }

    /// Starts it again on its own port, with what it had.
    #[track_caller]
    pub fn start_again(&mut self) {
        let started = serve(&self.scratch, self.port, &self.options);
        self.process =
            started.unwrap_or_else(|| panic!("PostgreSQL does not start again: {}", self.process.log_end()));
    }

    /// A client program, told where the server is and (through its environment) the superuser's password.
    #[track_caller]
    pub fn client(&self, name: &str) -> Command {
        let mut command = Command::new(Self::bin(name));
        command.env("PGPASSWORD", &self.password).env("PGCONNECT_TIMEOUT", "30");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(self.port.to_string());
        command
    }

    /// Runs SQL and gives what it printed: unaligned, tuples only, trimmed.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        String::from_utf8(run(command).stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Runs a script of many statements, from standard input.
    #[track_caller]
    pub fn script(&self, database: &str, script: &str) {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]);
        super::feed(command, script.as_bytes());
    }

    /// Creates a database.
    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")));
    }

    /// A plain dump of one database, without the random token that newer `pg_dump`s write: for comparing.
    #[track_caller]
    pub fn dump(&self, database: &str) -> String {
        let mut command = self.client("pg_dump");
        command.args(["--no-sync", "-d", database]);
        comparable(&run(command).stdout)
    }

    /// Roles and tablespaces as `pg_dumpall --globals-only` writes them, for comparing.
    #[track_caller]
    pub fn globals(&self) -> String {
        let mut command = self.client("pg_dumpall");
        command.args(["--globals-only", "--no-sync"]);
        comparable(&run(command).stdout)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.exited().is_none() {
            // Immediate shutdown: the postmaster ends its own children; SIGKILL would leave them to notice.
            self.process.signal(Signal::SIGQUIT);
            wait::until("PostgreSQL ends", || self.process.exited().ok_or("it runs"));
        }
    }
}

/// `\restrict` and `\unrestrict` carry a token that differs in every dump.
fn comparable(dump: &[u8]) -> String {
    let text = String::from_utf8_lossy(dump);
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict "));
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn init(scratch: &Scratch, password: &str, options: &PostgresOptions) {
    let data = scratch.join("data");
    server_dir(&data, USER);
    // The socket lies in the scratch directory itself, which the server's user must be able to write.
    server_dir(scratch.path(), USER);
    std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .expect("mode");
    let password_file = scratch.file("initial-password", password, 0o644);
    let mut initdb = guarded_unprivileged(Postgres::bin("initdb"), USER);
    initdb.arg("-D").arg(&data).args([
        "-U",
        "postgres",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    ]);
    initdb
        .arg("--no-sync")
        .arg(format!("--pwfile={}", password_file.display()))
        .current_dir("/")
        .stdout(Stdio::null());
    run(initdb);
    std::fs::remove_file(password_file).expect("password file");
    if !options.hba.is_empty() {
        std::fs::write(data.join("pg_hba.conf"), options.hba.join("\n") + "\n").expect("pg_hba.conf");
    }
    for (name, content) in &options.files {
        let path = data.join(name);
        std::fs::write(&path, content).expect("file of the server");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        if let Some(user) = crate::process::server_user(USER) {
            nix::unistd::chown(&path, Some(user.uid), Some(user.gid)).expect("owner");
        }
    }
}

/// `None` where the server ended before it answered: its port was taken, most likely.
#[track_caller]
fn serve(scratch: &Scratch, port: u16, options: &PostgresOptions) -> Option<Process> {
    let mut command = guarded_unprivileged(Postgres::bin("postgres"), USER);
    command.arg("-D").arg(scratch.join("data")).arg("-p").arg(port.to_string()).current_dir("/");
    // Nothing in a test survives a power cut, so nothing waits for the disk; but what was committed survives a kill.
    for setting in [
        "fsync=off",
        "synchronous_commit=on",
        "full_page_writes=off",
        "shared_buffers=64MB",
        "max_wal_size=4GB",
    ] {
        command.arg("-c").arg(setting);
    }
    command.arg("-c").arg("listen_addresses=127.0.0.1");
    command.arg("-c").arg(format!("unix_socket_directories={}", scratch.path().display()));
    for (name, value) in &options.settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let mut process = Process::start("postgres", command, &scratch.join("log"));
    let ready = || {
        if process.exited().is_some() {
            return Ok(false);
        }
        let mut probe = Command::new(Postgres::bin("pg_isready"));
        probe.args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(port.to_string());
        if probe.status().is_ok_and(|status| status.success()) { Ok(true) } else { Err("no answer yet") }
    };
    wait::until("PostgreSQL answers", ready).then_some(process)
}
