//! A private MariaDB server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{ATTEMPTS, feed, free_port, new_password};
use crate::process::{Process, guarded_unprivileged, program, run, server_dir};
use crate::scratch::Scratch;
use crate::wait;

const USER: &str = "mysql";
const INSTALL: &str = "apt-get install mariadb-server mariadb-client (make test does)";

/// What a test may want to differ.
#[derive(Debug, Clone, Default)]
pub struct MariaDbOptions {
    /// Further options of `mariadbd`, with their dashes.
    pub arguments: Vec<String>,
}

/// A running server; `root` needs a password, on loopback and on the Unix socket.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    port: u16,
    password: String,
    scratch: Scratch,
}

impl MariaDb {
    /// Starts a fresh server.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(MariaDbOptions::default())
    }

    /// Starts a fresh server with options.
    #[track_caller]
    pub fn start_with(options: MariaDbOptions) -> Self {
        let scratch = Scratch::new("my");
        server_dir(scratch.path(), USER);
        std::fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .expect("mode");
        init(&scratch);
        for _ in 0..ATTEMPTS {
            let port = free_port();
            if let Some(process) = serve(&scratch, port, &options) {
                let server = Self { process, port, password: new_password(), scratch };
                server.set_password();
                return server;
            }
        }
        panic!(
            "MariaDB does not start: {}",
            std::fs::read_to_string(scratch.join("log")).unwrap_or_default()
        );
    }

    /// The client program of that name: `mariadb`, `mariadb-dump`.
    #[track_caller]
    pub fn bin(name: &str) -> PathBuf {
        program(&[name], INSTALL)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("sock")
    }

    /// Password of `root`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// `mysql://root@127.0.0.1:PORT/DATABASE`, without the password.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A client program, told where the server is and (through its environment) the password of `root`.
    #[track_caller]
    pub fn client(&self, name: &str) -> Command {
        let mut command = client(name, &self.socket());
        command.env("MYSQL_PWD", &self.password);
        command
    }

    /// Runs SQL and gives what it printed: tab-separated, without column names, trimmed.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = self.client("mariadb");
        command.args(["--batch", "--skip-column-names", "--raw", "-e", sql, database]);
        String::from_utf8(run(command).stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Runs a script of many statements (`DELIMITER` included), from standard input.
    #[track_caller]
    pub fn script(&self, database: &str, script: &str) {
        let mut command = self.client("mariadb");
        command.arg(database);
        feed(command, script.as_bytes());
    }

    /// Creates a database.
    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.sql("mysql", &format!("CREATE DATABASE `{}`", name.replace('`', "``")));
    }

    /// A dump of one database with everything that belongs to it and no dates, for comparing.
    #[track_caller]
    pub fn dump(&self, database: &str) -> String {
        let mut command = self.client("mariadb-dump");
        command.args(["--single-transaction", "--routines", "--events", "--triggers", "--hex-blob"]);
        command.args(["--skip-dump-date", "--order-by-primary", "--default-character-set=utf8mb4", database]);
        let output = run(command);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn set_password(&self) {
        let mut command = client("mariadb", &self.socket());
        command.arg("mysql");
        let sql = format!(
            "ALTER USER 'root'@'localhost' IDENTIFIED BY '{0}';
             GRANT ALL ON *.* TO 'root'@'127.0.0.1' IDENTIFIED BY '{0}' WITH GRANT OPTION;",
            self.password
        );
        feed(command, sql.as_bytes());
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // One process without children or shared memory: nothing outlives SIGKILL.
        if self.process.exited().is_none() {
            self.process.signal(Signal::SIGKILL);
        }
    }
}

#[track_caller]
fn client(name: &str, socket: &Path) -> Command {
    let mut command = Command::new(MariaDb::bin(name));
    command.arg("--no-defaults").arg(format!("--socket={}", socket.display())).arg("--user=root");
    command
}

#[track_caller]
fn init(scratch: &Scratch) {
    let data = scratch.join("data");
    server_dir(&data, USER);
    let mut install =
        guarded_unprivileged(program(&["mariadb-install-db", "mysql_install_db"], INSTALL), USER);
    install.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        "--innodb-log-file-size=16M",
    ]);
    // A starting server removes the temporary tables of others from a shared directory.
    install.env("TMPDIR", scratch.path()).current_dir("/").stdout(Stdio::null());
    run(install);
}

/// `None` where the server ended before it answered: its port was taken, most likely.
#[track_caller]
fn serve(scratch: &Scratch, port: u16, options: &MariaDbOptions) -> Option<Process> {
    let socket = scratch.join("sock");
    let mut command = guarded_unprivileged(program(&["mariadbd", "mysqld"], INSTALL), USER);
    command.arg("--no-defaults").arg(format!("--datadir={}", scratch.join("data").display()));
    command.arg(format!("--socket={}", socket.display())).arg(format!("--port={port}"));
    command.arg(format!("--pid-file={}", scratch.join("pid").display()));
    command.args([
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--skip-log-bin",
        "--event-scheduler=OFF",
    ]);
    // Nothing in a test survives a power cut, so nothing waits for the disk.
    command.args([
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=OFF",
        "--innodb-buffer-pool-size=64M",
    ]);
    command.args(["--innodb-log-file-size=16M", "--character-set-server=utf8mb4"]);
    command.args(&options.arguments).env("TMPDIR", scratch.path()).current_dir("/");
    let mut process = Process::start("mariadbd", command, &scratch.join("log"));
    let ready = || {
        if process.exited().is_some() {
            return Ok(false);
        }
        let mut probe = client("mariadb", &socket);
        probe.args(["-e", "SELECT 1"]).stdout(Stdio::null()).stderr(Stdio::null());
        if probe.status().is_ok_and(|status| status.success()) { Ok(true) } else { Err("no answer yet") }
    };
    wait::until("MariaDB answers", ready).then_some(process)
}
