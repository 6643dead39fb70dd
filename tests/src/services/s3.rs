//! S3 servers: Ceph RGW, `rclone serve s3`, and any endpoint given by environment.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};

use super::{ATTEMPTS, free_port, new_password};
use crate::gateway::Gateway;
use crate::process::{Process, guarded, program, run};
use crate::scratch::Scratch;
use crate::{binary, tool, wait, workspace};

const INSTALL_RGW: &str = "apt-get install ceph-mon ceph-osd radosgw ceph-common (make test does)";

/// One bucket of a running S3 server, and who may use it.
#[derive(Debug, Clone)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`, or what the environment says.
    pub endpoint: String,
    /// Region for signatures.
    pub region: String,
    /// An empty bucket of this test's own, or (external endpoint) the one that was given.
    pub bucket: String,
    /// A prefix of this test's own, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Session token; empty where there is none.
    pub session_token: String,
    /// PEM file with the CA to trust, where the endpoint has one of its own.
    pub ca: Option<PathBuf>,
    /// Certificate and key that a gateway wants to see.
    pub client: Option<[PathBuf; 2]>,
    _server: Option<Arc<(Process, Scratch)>>,
}

impl S3 {
    /// A bucket on the Ceph RGW that all tests of this run share; the first one to ask starts it.
    #[track_caller]
    pub fn rgw() -> Self {
        let env = shared_rgw();
        let value = |name: &str| exported(&env, name);
        let server = Self {
            endpoint: value("SEALIFT_TEST_S3_ENDPOINT"),
            region: value("SEALIFT_TEST_S3_REGION"),
            bucket: new_name("bucket"),
            prefix: new_name("p"),
            access_key: value("AWS_ACCESS_KEY_ID"),
            secret_key: value("AWS_SECRET_ACCESS_KEY"),
            session_token: String::new(),
            ca: None,
            client: None,
            _server: None,
        };
        server.aws(&["s3api", "create-bucket", "--bucket", &server.bucket]);
        server
    }

    /// A bucket on an `rclone serve s3` of this test's own. It does not verify the signed body hash.
    #[track_caller]
    pub fn rclone() -> Self {
        let scratch = Scratch::new("rclone");
        let (access_key, secret_key, bucket) = (new_name("ak"), new_password(), new_name("bucket"));
        std::fs::create_dir_all(scratch.join("data").join(&bucket)).expect("bucket directory");
        for _ in 0..ATTEMPTS {
            let port = free_port();
            let Some(process) = serve_rclone(&scratch, port, &access_key, &secret_key) else { continue };
            return Self {
                endpoint: format!("http://127.0.0.1:{port}"),
                region: "us-east-1".to_owned(),
                bucket,
                prefix: new_name("p"),
                access_key,
                secret_key,
                session_token: String::new(),
                ca: None,
                client: None,
                _server: Some(Arc::new((process, scratch))),
            };
        }
        panic!("rclone does not start: {}", std::fs::read_to_string(scratch.join("log")).unwrap_or_default());
    }

    /// A bucket on the server that is embedded in `sealift-coordinator dev`, in a process of its own.
    #[track_caller]
    pub fn embedded() -> Self {
        let scratch = Scratch::new("embedded");
        let (port, data) = (free_port(), scratch.join("data"));
        let mut command = guarded(binary("sealift-coordinator"));
        command.env("SEALIFT_LOG", "warn,s3s=off,s3s_fs=off").arg("dev").arg("--data-dir").arg(&data);
        command.args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        command.args(["--s3-listen", &format!("127.0.0.1:{port}")]);
        let mut process = Process::start("sealift-coordinator dev", command, &scratch.join("log"));
        wait::until("the embedded server is ready", || {
            process.still_runs().unwrap_or_else(|ended| panic!("{ended}"));
            if process.log().lines().any(|line| line.trim() == "ready") {
                Ok(())
            } else {
                Err("no line `ready`")
            }
        });
        let server = Self::known(&format!("http://127.0.0.1:{port}"), "sealift", &data.join("s3.env"));
        Self { prefix: new_name("p"), _server: Some(Arc::new((process, scratch))), ..server }
    }

    /// The endpoint of `SEALIFT_TEST_S3_ENDPOINT`, `_REGION`, `_BUCKET` and the usual AWS variables, where it is set.
    #[track_caller]
    pub fn from_environment() -> Option<Self> {
        let optional = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            optional(name)
                .unwrap_or_else(|| panic!("SEALIFT_TEST_S3_ENDPOINT is set, {name} is not: set it too"))
        };
        let endpoint = optional("SEALIFT_TEST_S3_ENDPOINT")?;
        Some(Self {
            endpoint,
            region: optional("SEALIFT_TEST_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            bucket: needed("SEALIFT_TEST_S3_BUCKET"),
            prefix: new_name("sealift-test"),
            access_key: needed("AWS_ACCESS_KEY_ID"),
            secret_key: needed("AWS_SECRET_ACCESS_KEY"),
            session_token: optional("AWS_SESSION_TOKEN").unwrap_or_default(),
            ca: None,
            client: None,
            _server: None,
        })
    }

    /// A bucket that somebody else's process serves: its keys come from a file of shell assignments.
    #[track_caller]
    pub fn known(endpoint: &str, bucket: &str, env_file: &Path) -> Self {
        let env = std::fs::read_to_string(env_file).expect("file with access keys");
        Self {
            endpoint: endpoint.to_owned(),
            region: "us-east-1".to_owned(),
            bucket: bucket.to_owned(),
            prefix: String::new(),
            access_key: exported(&env, "AWS_ACCESS_KEY_ID"),
            secret_key: exported(&env, "AWS_SECRET_ACCESS_KEY"),
            session_token: String::new(),
            ca: None,
            client: None,
            _server: None,
        }
    }

    /// The port of its endpoint.
    #[track_caller]
    pub fn port(&self) -> u16 {
        let port = self.endpoint.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok());
        port.unwrap_or_else(|| panic!("{} names no port", self.endpoint))
    }

    /// The same bucket, reached over something that lies between.
    pub fn over(self, endpoint: String, ca: Option<PathBuf>) -> Self {
        Self { endpoint, ca, ..self }
    }

    /// The same bucket with another prefix.
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// The same bucket, reached through a gateway.
    pub fn behind(self, gateway: &Gateway) -> Self {
        let files = gateway.certificates();
        let (ca, client) = (
            files.map(|files| files.ca.clone()),
            files.map(|files| [files.client.clone(), files.key.clone()]),
        );
        Self { endpoint: gateway.url(), ca, client, ..self }
    }

    /// The whole key of an object.
    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// Makes a command see this server's credentials, and no others.
    pub fn credentials(&self, command: &mut Command) {
        for name in
            ["AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_SESSION_TOKEN"]
        {
            command.env_remove(name);
        }
        command.env("AWS_ACCESS_KEY_ID", &self.access_key).env("AWS_SECRET_ACCESS_KEY", &self.secret_key);
        command.env("AWS_REGION", &self.region).env("AWS_DEFAULT_REGION", &self.region);
        command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required");
        command.env("no_proxy", "127.0.0.1,localhost").env("NO_PROXY", "127.0.0.1,localhost");
        if !self.session_token.is_empty() {
            command.env("AWS_SESSION_TOKEN", &self.session_token);
        }
    }

    /// Runs Amazon's own `aws` against this server.
    #[track_caller]
    pub fn aws(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program(&["aws"], "apt-get install awscli (make test does)"));
        self.credentials(&mut command);
        command.args(["--endpoint-url", &self.endpoint, "--output", "json"]).args(arguments);
        String::from_utf8(run(command).stdout).expect("UTF-8")
    }

    /// Names of all objects under this test's prefix, relative to it, sorted.
    #[track_caller]
    pub fn list(&self) -> Vec<String> {
        let prefix = self.key("");
        let output = self.aws(&["s3api", "list-objects-v2", "--bucket", &self.bucket, "--prefix", &prefix]);
        let listing: serde_json::Value = serde_json::from_str(&output).unwrap_or_default();
        let objects = listing["Contents"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> = objects
            .iter()
            .filter_map(|object| object["Key"].as_str()?.strip_prefix(&prefix).map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Bytes of all objects under this test's prefix.
    #[track_caller]
    pub fn stored_bytes(&self) -> u64 {
        let arguments = ["s3api", "list-objects-v2", "--bucket", &self.bucket, "--prefix", &self.key("")];
        let listing: serde_json::Value = serde_json::from_str(&self.aws(&arguments)).unwrap_or_default();
        let objects = listing["Contents"].as_array().cloned().unwrap_or_default();
        objects.iter().filter_map(|object| object["Size"].as_u64()).sum()
    }

    /// Copies one object into a file.
    #[track_caller]
    pub fn get(&self, name: &str, to: &Path) {
        let key = format!("{}/{name}", self.prefix);
        self.aws(&[
            "s3api",
            "get-object",
            "--bucket",
            &self.bucket,
            "--key",
            &key,
            &to.display().to_string(),
        ]);
    }

    /// Writes one object from a file, whatever was there.
    #[track_caller]
    pub fn put(&self, name: &str, from: &Path) {
        let (key, body) = (self.key(name), from.display().to_string());
        self.aws(&["s3api", "put-object", "--bucket", &self.bucket, "--key", &key, "--body", &body]);
    }

    /// Deletes one object.
    #[track_caller]
    pub fn delete(&self, name: &str) {
        let key = self.key(name);
        self.aws(&["s3api", "delete-object", "--bucket", &self.bucket, "--key", &key]);
    }
}

/// The value of `export NAME=…`.
#[track_caller]
fn exported(env: &str, name: &str) -> String {
    let start = format!("export {name}=");
    let value = env.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("no {name} in:\n{env}")).to_owned()
}

/// A name that no other test uses.
fn new_name(what: &str) -> String {
    format!("{what}-{}", &new_password()[2..14])
}

#[track_caller]
fn serve_rclone(scratch: &Scratch, port: u16, access_key: &str, secret_key: &str) -> Option<Process> {
    let mut command = guarded(tool("rclone"));
    command.args(["serve", "s3", "--config", "/dev/null", "--vfs-cache-mode", "off"]);
    command.arg("--addr").arg(format!("127.0.0.1:{port}"));
    // Through the environment: process lists are for everyone to read.
    command.env("RCLONE_AUTH_KEY", format!("\"{access_key},{secret_key}\"")).arg(scratch.join("data"));
    let mut process = Process::start("rclone", command, &scratch.join("log"));
    let ready = || {
        if process.exited().is_some() {
            return Ok(false);
        }
        std::net::TcpStream::connect(("127.0.0.1", port)).map(|_| true)
    };
    wait::until("rclone answers", ready).then_some(process)
}

/// The `env` file of the run's shared RGW. Tests are processes of their own under nextest: the first one starts it under
/// a file lock, and a guard ends it with the run.
#[track_caller]
fn shared_rgw() -> String {
    for name in ["ceph-mon", "ceph-osd", "radosgw", "ceph", "radosgw-admin"] {
        program(&[name], INSTALL_RGW);
    }
    let (owner, run_id) = run_owner();
    let dir = std::env::temp_dir().join(format!("slt-rgw-{run_id}"));
    let lock = File::create(dir.with_extension("lock")).expect("lock file");
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).expect("lock");
    let env = dir.join("env");
    if !env.is_file() {
        start_rgw(&dir);
        let started = start_time(owner).expect("the run's own process");
        let mut guard = Command::new("setsid");
        guard
            .arg("--fork")
            .arg(workspace().join("tests/tools/guard.sh"))
            .arg(owner.to_string())
            .arg(started)
            .arg(&dir);
        guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(guard.status().expect("start guard.sh").success(), "guard.sh does not start");
    }
    std::fs::read_to_string(env).expect("env of rgw.sh")
}

#[track_caller]
fn start_rgw(dir: &Path) {
    let script = workspace().join("tests/tools/rgw.sh");
    let log = dir.with_extension("log");
    for _ in 0..ATTEMPTS {
        let _ = std::fs::remove_dir_all(dir);
        let mut command = Command::new(&script);
        command.arg(dir).arg(free_range().to_string());
        // The servers it leaves running must not hold this test's own output open.
        let output = File::create(&log).expect("log of rgw.sh");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("log")).stderr(output);
        if command.status().expect("start rgw.sh").success() {
            let _ = std::fs::remove_file(&log);
            return;
        }
    }
    panic!("Ceph RGW does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
}

/// The process whose end is the run's end, and the run's name: nextest's, or this process itself under `cargo test`.
fn run_owner() -> (u32, String) {
    match std::env::var("NEXTEST_RUN_ID") {
        Ok(id) => (std::os::unix::process::parent_id(), id),
        Err(_) => (std::process::id(), std::process::id().to_string()),
    }
}

/// When a process started, as /proc says: with its id, this names it beyond doubt.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// First of 41 ports that are free now, below the range that the kernel hands out by itself.
fn free_range() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let candidate = || 20_000 + u16::from_le_bytes(super::random()) % 12_000;
    (0..200)
        .map(|_| candidate())
        .find(|first| (*first..=*first + 40).all(free))
        .expect("41 free ports in a row")
}
