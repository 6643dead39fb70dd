//! A whole Sealift: a coordinator, agents and the command-line tool, as users run them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::Agent;
use crate::process::{Process, guarded, run};
use crate::scratch::Scratch;
use crate::services::{Postgres, S3, free_port};
use crate::{binary, wait};

/// What one run of `sealift` gave.
#[derive(Debug)]
pub struct Answer {
    /// Exit code (docs/cli.md).
    pub code: i32,
    /// Standard output, as bytes: a restore may write anything there.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    command: String,
}

impl Answer {
    fn new(command: &Command, output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command: format!("{command:?}"),
        }
    }

    /// Panics with all that was said where the exit code is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        let said = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        assert_eq!(self.code, code, "{}\nstdout: {said}\nstderr: {}", self.command, self.stderr);
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: not JSON ({e}): {}\n{}", self.command, self.text(), self.stderr))
    }
}

/// Where an admin's identity is.
#[derive(Debug, Clone)]
pub struct AdminFiles {
    /// The coordinator's CA.
    pub ca: PathBuf,
    /// The admin's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a cluster stores.
#[derive(Debug)]
enum Storage {
    /// The server inside `sealift-coordinator dev`.
    Embedded,
    /// A server of its own.
    Server(Box<S3>),
}

/// A coordinator in a directory of its own, with a trust policy for one identity.
#[derive(Debug)]
pub struct Cluster {
    coordinator: Option<Process>,
    storage: Storage,
    /// Where the database is, unless it is a SQLite file.
    database: Option<String>,
    variables: Vec<(String, String)>,
    port: u16,
    http_port: u16,
    s3_port: u16,
    scratch: Scratch,
    /// The private key that opens this cluster's backups.
    pub identity: PathBuf,
    /// Its public half.
    pub recipient: String,
    /// Fingerprints of the root keys, for restores that ask nobody.
    pub root_pins: Vec<String>,
}

impl Cluster {
    /// `sealift-coordinator dev`: everything embedded.
    #[track_caller]
    pub fn dev() -> Self {
        Self::with_storage(Storage::Embedded, None, &[])
    }

    /// As [`Cluster::dev`], with variables in the coordinator's and the command's environment.
    #[track_caller]
    pub fn dev_with(variables: &[(&str, &str)]) -> Self {
        Self::with_storage(Storage::Embedded, None, variables)
    }

    /// `sealift-coordinator serve` with a SQLite file and the given bucket.
    #[track_caller]
    pub fn on(s3: S3) -> Self {
        Self::with_storage(Storage::Server(Box::new(s3)), None, &[])
    }

    /// `sealift-coordinator serve` with a database on a PostgreSQL server and the given bucket.
    #[track_caller]
    pub fn on_postgres(s3: S3, server: &Postgres, database: &str) -> Self {
        let password = [("SEALIFT_DATABASE_PASSWORD", server.password())];
        Self::with_storage(Storage::Server(Box::new(s3)), Some(server.url(database)), &password)
    }

    #[track_caller]
    fn with_storage(storage: Storage, database: Option<String>, variables: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new("cluster");
        let mut cluster = Self {
            coordinator: None,
            storage,
            database,
            variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            port: free_port(),
            http_port: free_port(),
            s3_port: free_port(),
            identity: scratch.join("identity.key"),
            recipient: String::new(),
            root_pins: Vec::new(),
            scratch,
        };
        if let Storage::Server(s3) = &cluster.storage {
            cluster.prepare(s3);
        }
        cluster.start_coordinator();
        cluster.recipient = cluster.new_identity("identity.key");
        cluster.set_trust(&[&cluster.recipient.clone()]);
        let token = cluster.json(&["token", "create", "--ttl", "1m"]);
        let pins = token["root_key_sha256"].as_array().expect("fingerprints of the root keys");
        cluster.root_pins = pins.iter().map(|pin| pin.as_str().expect("a fingerprint").to_owned()).collect();
        cluster
    }

    /// Generates an identity; gives its recipient.
    #[track_caller]
    pub fn new_identity(&self, file: &str) -> String {
        let path = self.scratch.join(file);
        let generated =
            self.json(&["keys", "generate", "--kind", "identity", "--out", &path.display().to_string()]);
        generated["recipient"].as_str().expect("a recipient").to_owned()
    }

    /// Signs a trust policy with exactly these recipients.
    #[track_caller]
    pub fn set_trust(&self, recipients: &[&str]) {
        let root_key = self.data_dir().join("root.key").display().to_string();
        let mut arguments = vec!["trust", "set", "--single", "--yes", "--root-key", &root_key];
        recipients.iter().for_each(|recipient| arguments.extend(["--recipient", recipient]));
        self.sealift(&arguments).expect(0);
    }

    /// Starts the coordinator on its own ports and waits until it serves.
    #[track_caller]
    pub fn start_coordinator(&mut self) {
        let mut command = guarded(binary("sealift-coordinator"));
        self.environment(&mut command);
        let listen = |port: u16| format!("127.0.0.1:{port}");
        match &self.storage {
            Storage::Embedded => {
                command.arg("dev").arg("--data-dir").arg(self.data_dir());
                command.args(["--listen", &listen(self.port), "--http-listen", &listen(self.http_port)]);
                command.args(["--s3-listen", &listen(self.s3_port)]);
            }
            Storage::Server(s3) => {
                command.arg("serve").arg("--config").arg(self.data_dir().join("coordinator.toml"));
                s3.credentials(&mut command);
            }
        }
        let log = self.scratch.join("coordinator.log");
        let ready_before = count_ready(&log);
        let mut process = Process::start("sealift-coordinator", command, &log);
        wait::until("the coordinator says ready", || {
            process.still_runs().unwrap_or_else(|ended| panic!("{ended}"));
            if count_ready(&log) > ready_before { Ok(()) } else { Err("no line `ready` yet") }
        });
        self.coordinator = Some(process);
    }

    /// The coordinator's process.
    #[track_caller]
    pub fn coordinator(&mut self) -> &mut Process {
        self.coordinator.as_mut().expect("the coordinator runs")
    }

    /// SIGKILL, and starts it again.
    #[track_caller]
    pub fn crash_coordinator(&mut self) {
        self.kill_coordinator();
        self.start_coordinator();
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill_coordinator(&mut self) {
        self.coordinator().kill();
        self.coordinator = None;
    }

    /// SIGTERM, and waits until it is gone.
    #[track_caller]
    pub fn stop_coordinator(&mut self) {
        self.coordinator().stop(Signal::SIGTERM, Duration::from_secs(60));
        self.coordinator = None;
    }

    /// The coordinator's directory.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.join("coordinator")
    }

    /// A directory of this test's own.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where agents reach the coordinator.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// What the coordinator wrote.
    pub fn coordinator_log(&self) -> String {
        std::fs::read_to_string(self.scratch.join("coordinator.log")).unwrap_or_default()
    }

    /// The `sealift` command, told where the coordinator is.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary("sealift"));
        self.environment(&mut command);
        command.env("SEALIFT_CONTEXT", self.context()).env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    /// Runs `sealift`.
    #[track_caller]
    pub fn sealift(&self, arguments: &[&str]) -> Answer {
        let mut command = self.command();
        command.args(arguments);
        let output = command.output().expect("start sealift");
        Answer::new(&command, output)
    }

    /// Runs `sealift --output json`, which must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        self.sealift(&all).expect(0).json()
    }

    /// Runs a backup to its end; the run, and the exit code of `backup run --wait`.
    #[track_caller]
    pub fn backup(&self, source: &str) -> (Value, i32) {
        let answer = self.sealift(&["--output", "json", "backup", "run", source, "--wait"]);
        let run = match answer.json() {
            Value::Array(runs) => runs.into_iter().next().expect("one run"),
            run => run,
        };
        (run, answer.code)
    }

    /// Runs a backup that must be complete; gives it as `backup show` does.
    #[track_caller]
    pub fn backup_ok(&self, source: &str) -> Value {
        let (run, code) = self.backup(source);
        assert_eq!(code, 0, "{run:#}");
        self.json(&["backup", "show", run["backup_id"].as_str().expect("a backup")])
    }

    /// Starts a run and does not wait; its id.
    #[track_caller]
    pub fn start_backup(&self, source: &str) -> String {
        let answer = self.json(&["backup", "run", source]);
        let run = answer.get(0).unwrap_or(&answer);
        run["id"].as_str().expect("a run's id").to_owned()
    }

    /// A run, as `run show` has it.
    #[track_caller]
    pub fn run(&self, id: &str) -> Value {
        self.json(&["run", "show", id])
    }

    /// Waits until a run has ended, whatever way.
    #[track_caller]
    pub fn wait_for_end(&self, id: &str) -> Value {
        wait::until("the run ends", || {
            let run = self.run(id);
            match run["state"].as_str() {
                Some("succeeded" | "partial" | "failed" | "cancelled") => Ok(run),
                _ => Err(run.to_string()),
            }
        })
    }

    /// All backups of a source, newest first.
    #[track_caller]
    pub fn backups(&self, source: &str) -> Vec<Value> {
        self.json(&["backup", "list", source]).as_array().expect("an array").clone()
    }

    /// Restores a backup into a new directory, online; gives the directory.
    #[track_caller]
    pub fn restore(&self, backup: &str, to: &str) -> PathBuf {
        let target = self.scratch.join(to);
        self.restore_to(backup, &target, &[]).expect(0);
        target
    }

    /// `sealift restore BACKUP --identity … --to TARGET`, with further arguments.
    #[track_caller]
    pub fn restore_to(&self, backup: &str, target: &Path, more: &[&str]) -> Answer {
        let (identity, target) = (self.identity.display().to_string(), target.display().to_string());
        let mut arguments = vec!["restore", backup, "--identity", &identity, "--to", &target, "--yes"];
        arguments.extend(more);
        self.sealift(&arguments)
    }

    /// `sealift restore --offline …`: bucket and key alone. The coordinator may be gone.
    #[track_caller]
    pub fn restore_offline(&self, identity: &Path, arguments: &[&str]) -> Answer {
        let mut command = Command::new(binary("sealift"));
        self.environment(&mut command);
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        command.args(["restore", "--offline", "--identity"]).arg(identity);
        let s3 = self.s3();
        s3.credentials(&mut command);
        command.args(["--endpoint", &s3.endpoint, "--region", &s3.region, "--bucket", &s3.bucket]);
        if !s3.prefix.is_empty() {
            command.args(["--prefix", &s3.prefix]);
        }
        for pin in &self.root_pins {
            command.args(["--root-key-sha256", pin]);
        }
        command.args(arguments);
        let output = command.output().expect("start sealift");
        Answer::new(&command, output)
    }

    /// Enrols a host and starts its agent with these sources (TOML, `[[source]]` tables).
    #[track_caller]
    pub fn agent(&self, name: &str, sources: &str) -> Agent {
        self.agent_with(name, sources, &[], None)
    }

    /// As [`Cluster::agent`], with variables in its environment and, where named, as another user.
    #[track_caller]
    pub fn agent_with(
        &self,
        name: &str,
        sources: &str,
        variables: &[(&str, &str)],
        user: Option<&str>,
    ) -> Agent {
        let dir = self.scratch.private_dir(&format!("agent-{name}"));
        let mut agent = Agent::new(name, self.url(), dir, variables, user);
        agent.write_config(sources);
        agent.enrol(&self.json(&["token", "create", "--name", name]));
        agent.start();
        self.wait_until_connected(name);
        agent
    }

    /// A host with a directory of its own, not enrolled yet.
    #[track_caller]
    pub fn host(&self, name: &str, variables: &[(&str, &str)]) -> Agent {
        let dir = self.scratch.private_dir(&format!("agent-{name}"));
        Agent::new(name, self.url(), dir, variables, None)
    }

    /// Waits until an agent's session is open.
    #[track_caller]
    pub fn wait_until_connected(&self, name: &str) {
        wait::until(&format!("{name} is connected"), || {
            let agent = self.json(&["agent", "show", name]);
            if agent["connected"] == true { Ok(()) } else { Err(agent.to_string()) }
        });
    }

    /// Only what every program here should see: nothing of the caller's own cloud settings.
    fn environment(&self, command: &mut Command) {
        let kept = ["PATH", "LANG", "TZ", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];
        let kept: Vec<_> = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        command.env_clear().envs(kept).env("HOME", self.scratch.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// The bucket, for a look at what is stored and for tampering with it.
    #[track_caller]
    pub fn s3(&self) -> S3 {
        match &self.storage {
            Storage::Server(s3) => (**s3).clone(),
            Storage::Embedded => {
                let endpoint = format!("http://127.0.0.1:{}", self.s3_port);
                S3::known(&endpoint, "sealift", &self.data_dir().join("s3.env"))
            }
        }
    }

    /// Where the embedded server keeps its objects as files, named as in docs/format.md.
    #[track_caller]
    pub fn objects(&self) -> PathBuf {
        assert!(matches!(self.storage, Storage::Embedded), "only the embedded server's objects are files");
        self.data_dir().join("s3/sealift")
    }

    /// For a bucket of its own: the root key, the config file, and an admin's certificate. `dev` makes them by itself.
    #[track_caller]
    fn prepare(&self, s3: &S3) {
        self.scratch.private_dir("coordinator");
        let root_key = self.data_dir().join("root.key").display().to_string();
        let root = self.json(&["keys", "generate", "--kind", "root", "--out", &root_key]);
        let text = |value: &str| format!("{value:?}");
        let dir = |name: &str| text(&self.data_dir().join(name).display().to_string());
        let database = match &self.database {
            None => format!(
                "url = {}",
                text(&format!("sqlite:{}", self.data_dir().join("coordinator.db").display()))
            ),
            Some(url) => format!("url = {}\npassword = \"${{SEALIFT_DATABASE_PASSWORD}}\"", text(url)),
        };
        let mut config = format!(
            "[listen]\ngrpc = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\n[public]\ncoordinators = [{}]\n\n\
             [database]\n{}\n\n[ca]\ndir = {}\n\n[trust]\nroot_sha256 = [{}]\n\n\
             [storage]\nendpoint = {}\nregion = {}\nbucket = {}\nprefix = {}\nallow_http = true\n\
             access_key_id = \"${{AWS_ACCESS_KEY_ID}}\"\nsecret_access_key = \"${{AWS_SECRET_ACCESS_KEY}}\"\n",
            self.port,
            self.http_port,
            text(&self.url()),
            database,
            dir("ca"),
            root["root_key_sha256"],
            text(&s3.endpoint),
            text(&s3.region),
            text(&s3.bucket),
            text(&s3.prefix),
        );
        if let Some(ca) = &s3.ca {
            config += &format!("ca_file = {:?}\n", ca.display().to_string());
        }
        if !s3.session_token.is_empty() {
            config += "session_token = \"${AWS_SESSION_TOKEN}\"\n";
        }
        if let Some(files) = &s3.client {
            let [certificate, key] = files.each_ref().map(|path| path.display().to_string());
            config += &format!("client_certificate = {certificate:?}\nclient_key = \"file:{key}\"\n");
        }
        let config = self.scratch.file("coordinator/coordinator.toml", config, 0o600);
        let mut admin = Command::new(binary("sealift-coordinator"));
        self.environment(&mut admin);
        s3.credentials(&mut admin);
        admin
            .arg("admin")
            .arg("--config")
            .arg(config)
            .args(["--name", "admin", "--out"])
            .arg(self.data_dir().join("admin"));
        run(admin);
    }

    /// The files with which the cluster's commands connect.
    pub fn admin_files(&self) -> AdminFiles {
        let (dir, ca) = match self.storage {
            Storage::Embedded => (self.data_dir(), "ca/ca.pem"),
            Storage::Server(_) => (self.data_dir().join("admin"), "ca.pem"),
        };
        AdminFiles { ca: dir.join(ca), certificate: dir.join("admin.pem"), key: dir.join("admin.key") }
    }

    fn context(&self) -> PathBuf {
        match self.storage {
            Storage::Embedded => self.data_dir().join("context.toml"),
            Storage::Server(_) => self.data_dir().join("admin/context.toml"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.kill();
        }
    }
}

fn count_ready(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.trim() == "ready").count()
}
