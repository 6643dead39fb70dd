//! The tools that are compared, each with a repository of its own on the same server.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use sealift_tests::agent::Agent;
use sealift_tests::cluster::Cluster;
use sealift_tests::measure::{self, Cost};
use sealift_tests::process::run;
use sealift_tests::scratch::Scratch;
use sealift_tests::services::{S3, new_password};

/// A backup tool.
pub trait Tool {
    /// For the table.
    fn name(&self) -> String;
    /// Where it stores.
    fn s3(&self) -> S3;
    /// Backs up one file as if it were a dump tool's output.
    fn back_up(&mut self, file: &Path) -> Cost;
    /// Restores the newest backup into a file, or into nothing.
    fn restore(&mut self, to: Option<&Path>) -> Cost;
    /// Memory of a resident process that waits for work; none where there is none.
    fn idle_rss(&self) -> Option<u64> {
        None
    }
}

/// Stands for the dump tool, the same for every tool: what it costs is nobody's own.
fn dump(file: &Path) -> Child {
    let mut cat = Command::new("/bin/cat");
    cat.arg(file).stdout(Stdio::piped()).spawn().expect("start cat")
}

fn output(to: Option<&Path>) -> Stdio {
    File::create(to.unwrap_or(Path::new("/dev/null"))).expect("output").into()
}

/// `None`, with a word, where a program is not installed.
fn installed(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("{program} is not installed: left out");
    }
    found
}

/// Version, as the program says.
fn version(program: &str) -> String {
    let output = run({
        let mut command = Command::new(program);
        command.arg(if program == "restic" { "version" } else { "--version" });
        command
    });
    String::from_utf8_lossy(&output.stdout).split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Sealift, agent and coordinator as in production.
pub struct Sealift {
    // Dropped first: the agent must not outlive its coordinator's directory.
    agent: Agent,
    cluster: Cluster,
    input: PathBuf,
}

impl Sealift {
    /// Starts a coordinator and an agent whose one source is whatever `input` points at.
    pub fn start(s3: S3) -> Self {
        let cluster = Cluster::on(s3);
        let input = cluster.scratch().join("input");
        let source = format!(
            "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {:?}]\n[process]\nnice = 0\nio = \"normal\"\n",
            input.display().to_string()
        );
        let agent = cluster.agent("host", &source);
        Self { agent, cluster, input }
    }
}

impl Tool for Sealift {
    fn name(&self) -> String {
        format!("sealift {}", env!("CARGO_PKG_VERSION"))
    }

    fn s3(&self) -> S3 {
        self.cluster.s3()
    }

    fn back_up(&mut self, file: &Path) -> Cost {
        let _ = std::fs::remove_file(&self.input);
        std::os::unix::fs::symlink(file, &self.input).expect("link");
        let pid = self.agent.process().pid();
        measure::forget_peak(pid);
        let (before, started) = (measure::own_cpu(pid), Instant::now());
        self.cluster.backup_ok("host/dump");
        let wall = started.elapsed();
        Cost {
            wall,
            cpu: measure::own_cpu(pid) - before,
            peak_rss: measure::peak_rss(pid).expect("the agent runs"),
        }
    }

    fn restore(&mut self, to: Option<&Path>) -> Cost {
        let mut command = self.cluster.command();
        command.args([
            "restore",
            "latest:host/dump",
            "--yes",
            "--stdout",
            "--stream",
            "stdout",
            "--identity",
        ]);
        command.arg(&self.cluster.identity).stdout(output(to));
        let started = Instant::now();
        measure::finish(started, vec![command.spawn().expect("start sealift")])
    }

    fn idle_rss(&self) -> Option<u64> {
        self.agent.pid().and_then(measure::rss)
    }
}

/// restic.
pub struct Restic {
    s3: S3,
    password: String,
    cache: Scratch,
}

impl Restic {
    /// A new repository, where restic is installed.
    pub fn find(s3: S3) -> Option<Self> {
        installed("restic").then(|| {
            let tool = Self { s3, password: new_password(), cache: Scratch::new("restic") };
            run(tool.command(&["init"]));
            tool
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("restic");
        self.s3.credentials(&mut command);
        command.env("RESTIC_PASSWORD", &self.password).env("RESTIC_CACHE_DIR", self.cache.path());
        command.env(
            "RESTIC_REPOSITORY",
            format!("s3:{}/{}/{}", self.s3.endpoint, self.s3.bucket, self.s3.prefix),
        );
        command.args(["--quiet"]).args(arguments).stdout(Stdio::null());
        command
    }
}

impl Tool for Restic {
    fn name(&self) -> String {
        version("restic")
    }

    fn s3(&self) -> S3 {
        self.s3.clone()
    }

    fn back_up(&mut self, file: &Path) -> Cost {
        let mut command = self.command(&["backup", "--stdin", "--stdin-filename", "dump.sql"]);
        let started = Instant::now();
        let mut dump = dump(file);
        let cost = measure::finish(started, vec![piped(&mut command, &mut dump)]);
        measure::finish(started, vec![dump]);
        cost
    }

    fn restore(&mut self, to: Option<&Path>) -> Cost {
        let mut command = self.command(&["dump", "latest", "/dump.sql"]);
        command.stdout(output(to));
        let started = Instant::now();
        measure::finish(started, vec![command.spawn().expect("start restic")])
    }
}

/// rustic.
pub struct Rustic {
    s3: S3,
    password: String,
    home: Scratch,
}

impl Rustic {
    /// A new repository, where rustic is installed.
    pub fn find(s3: S3) -> Option<Self> {
        installed("rustic").then(|| {
            let tool = Self { s3, password: new_password(), home: Scratch::new("rustic") };
            run(tool.command(&["init"]));
            tool
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("rustic");
        self.s3.credentials(&mut command);
        command.env("HOME", self.home.path()).env("RUSTIC_CACHE_DIR", self.home.join("cache"));
        command.env("RUSTIC_REPOSITORY", "opendal:s3").env("RUSTIC_PASSWORD", &self.password);
        for (name, value) in [
            ("BUCKET", self.s3.bucket.as_str()),
            ("ROOT", &self.s3.prefix),
            ("ENDPOINT", &self.s3.endpoint),
            ("REGION", &self.s3.region),
            ("ACCESS_KEY_ID", &self.s3.access_key),
            ("SECRET_ACCESS_KEY", &self.s3.secret_key),
        ] {
            command.env(format!("OPENDAL_{name}"), value);
        }
        command.args(["--no-progress", "--log-level", "error"]).args(arguments).stdout(Stdio::null());
        command
    }
}

impl Tool for Rustic {
    fn name(&self) -> String {
        version("rustic")
    }

    fn s3(&self) -> S3 {
        self.s3.clone()
    }

    fn back_up(&mut self, file: &Path) -> Cost {
        // Unforced it skips changed standard input, silently.
        let mut command = self.command(&["backup", "--force", "--stdin-filename", "dump.sql", "-"]);
        let started = Instant::now();
        let mut dump = dump(file);
        let cost = measure::finish(started, vec![piped(&mut command, &mut dump)]);
        measure::finish(started, vec![dump]);
        cost
    }

    fn restore(&mut self, to: Option<&Path>) -> Cost {
        let mut command = self.command(&["dump", "latest:dump.sql"]);
        command.stdout(output(to));
        let started = Instant::now();
        measure::finish(started, vec![command.spawn().expect("start rustic")])
    }
}

/// `zstd -1 -T2 | age | aws s3 cp`: what people write by hand.
pub struct Pipe {
    s3: S3,
    keys: Scratch,
    recipient: String,
    backups: usize,
}

impl Pipe {
    /// A new key, where all three are installed.
    pub fn find(s3: S3) -> Option<Self> {
        (installed("zstd") && installed("age") && installed("aws")).then(|| {
            let keys = Scratch::new("pipe");
            let mut keygen = Command::new("age-keygen");
            keygen.arg("-o").arg(keys.join("key"));
            let said = String::from_utf8(run(keygen).stderr).expect("UTF-8");
            let recipient = said.split_whitespace().last().expect("a recipient").to_owned();
            Self { s3, keys, recipient, backups: 0 }
        })
    }

    fn object(&self) -> String {
        format!("s3://{}/{}/{}", self.s3.bucket, self.s3.prefix, self.backups)
    }

    fn aws(&self, from: &str, to: &str) -> Command {
        let mut command = Command::new("aws");
        self.s3.credentials(&mut command);
        command.args([
            "--endpoint-url",
            &self.s3.endpoint,
            "s3",
            "cp",
            "--quiet",
            "--expected-size",
            "2000000000",
            from,
            to,
        ]);
        command
    }
}

/// Starts `command` with its input from the process before.
fn piped(command: &mut Command, before: &mut Child) -> Child {
    command.stdin(before.stdout.take().expect("piped")).spawn().expect("start a process of the pipe")
}

impl Tool for Pipe {
    fn name(&self) -> String {
        "pipe (zstd -1, age, aws)".to_owned()
    }

    fn s3(&self) -> S3 {
        self.s3.clone()
    }

    fn back_up(&mut self, file: &Path) -> Cost {
        self.backups += 1;
        let started = Instant::now();
        let mut zstd = Command::new("zstd");
        let mut dump = dump(file);
        let mut zstd = piped(zstd.args(["-q", "-1", "-T2", "-c"]).stdout(Stdio::piped()), &mut dump);
        let mut age =
            piped(Command::new("age").args(["-r", &self.recipient]).stdout(Stdio::piped()), &mut zstd);
        let aws = piped(&mut self.aws("-", &self.object()), &mut age);
        let cost = measure::finish(started, vec![zstd, age, aws]);
        measure::finish(started, vec![dump]);
        cost
    }

    fn restore(&mut self, to: Option<&Path>) -> Cost {
        let started = Instant::now();
        let mut aws = self.aws(&self.object(), "-").stdout(Stdio::piped()).spawn().expect("start aws");
        let mut age = Command::new("age");
        let mut age =
            piped(age.args(["-d", "-i"]).arg(self.keys.join("key")).stdout(Stdio::piped()), &mut aws);
        let zstd = piped(Command::new("zstd").args(["-q", "-d", "-c"]).stdout(output(to)), &mut age);
        measure::finish(started, vec![aws, age, zstd])
    }
}
