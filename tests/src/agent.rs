//! One host of the fleet: the real agent, in a directory of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binary;
use crate::process::{Process, guarded, guarded_unprivileged, run, server_dir, server_user};

/// A host of the fleet.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    name: String,
    coordinators: Vec<String>,
    dir: PathBuf,
    user: Option<String>,
    wrapper: Vec<String>,
    variables: BTreeMap<String, String>,
    program: &'static str,
}

impl Agent {
    /// A host that is not enrolled yet, with a directory of its own.
    #[track_caller]
    pub fn new(
        name: &str,
        url: String,
        dir: PathBuf,
        variables: &[(&str, &str)],
        user: Option<&str>,
    ) -> Self {
        if let Some(user) = user {
            server_dir(&dir, user);
        }
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let user = user.map(str::to_owned);
        Self {
            process: None,
            name: name.to_owned(),
            coordinators: vec![url],
            dir,
            user,
            wrapper: Vec::new(),
            variables,
            program: "sealift-agent",
        }
    }

    /// From now on it is started as a build of before, which speaks up to this version of the protocol and can do only this;
    /// `None`: as what it is.
    pub fn set_build(&mut self, of_before: Option<(&str, &str)>) {
        self.program = if of_before.is_some() { "sealift-agent-of-before" } else { "sealift-agent" };
        if let Some((newest, can)) = of_before {
            self.variables.insert("SPEAKS".to_owned(), newest.to_owned());
            self.variables.insert("CAN".to_owned(), can.to_owned());
        }
    }

    /// Other addresses of coordinators; for what is written and done from now on.
    pub fn set_coordinators(&mut self, coordinators: Vec<String>) {
        self.coordinators = coordinators;
    }

    /// Its name in the fleet.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `NAME/SOURCE`.
    pub fn source(&self, source: &str) -> String {
        format!("{}/{source}", self.name)
    }

    /// Its own directory: config, state, log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Its process.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent runs")
    }

    /// Its process id, where it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Replaces its sources; takes effect at the next start or reload.
    #[track_caller]
    pub fn write_config(&self, sources: &str) {
        let config = format!(
            "coordinators = {:?}\nstate_dir = {:?}\n\n{sources}\n",
            self.coordinators,
            self.dir.join("state").display().to_string()
        );
        let path = self.dir.join("agent.toml");
        std::fs::write(&path, config).expect("config");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        self.give(&path);
    }

    /// Exchanges a token (as `token create` prints it) for an identity.
    #[track_caller]
    pub fn enrol(&self, token: &Value) {
        let token_file = self.dir.join("token");
        std::fs::write(&token_file, token["token"].as_str().expect("a token")).expect("token file");
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).expect("mode");
        self.give(&token_file);
        let mut command = self.program();
        command.arg("enroll");
        for url in &self.coordinators {
            command.args(["--coordinator", url]);
        }
        command.arg("--token-file").arg(&token_file);
        command.args(["--ca-sha256", token["ca_sha256"].as_str().expect("a fingerprint")]);
        for root in token["root_key_sha256"].as_array().expect("fingerprints") {
            command.args(["--root-key-sha256", root.as_str().expect("a fingerprint")]);
        }
        command.arg("--state-dir").arg(self.dir.join("state"));
        run(command);
    }

    /// From now on it is started by this command, which its own is appended to.
    pub fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&mut self) {
        let mut command = self.program();
        command.arg("run").arg("--config").arg(self.dir.join("agent.toml"));
        let name = format!("sealift-agent {}", self.name);
        self.process = Some(Process::start(&name, command, &self.dir.join("agent.log")));
    }

    /// SIGKILL, and starts it again.
    #[track_caller]
    pub fn crash(&mut self) {
        self.kill();
        self.start();
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// SIGTERM, and waits until it is gone.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process().stop(Signal::SIGTERM, Duration::from_secs(90));
        self.process = None;
    }

    /// `sealift-agent` as this host runs it, without arguments.
    pub fn program(&self) -> Command {
        let program = binary(self.program);
        let mut command = match (&self.user, self.wrapper.split_first()) {
            (Some(user), _) => guarded_unprivileged(program, user),
            (None, None) => guarded(program),
            (None, Some((wrapper, arguments))) => {
                let mut command = guarded(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        let kept = ["PATH", "LANG", "TZ", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"];
        let kept: Vec<_> = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect();
        command.env_clear().envs(kept).env("HOME", &self.dir).envs(&self.variables).current_dir(&self.dir);
        command
    }

    /// Files of an agent that runs as another user belong to that user.
    fn give(&self, path: &Path) {
        let user = self.user.as_deref().and_then(server_user);
        if let Some(user) = user {
            nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("owner");
        }
    }
}
