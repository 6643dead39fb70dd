//! Child processes that die with the test, whatever ends it.
//!
//! Every child is started through `setpriv --pdeathsig KILL`, so a test that is killed takes its servers along. The
//! kernel sends that signal when the *thread* that started the child ends; so one thread that lives as long as the
//! process starts them all.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

use crate::wait;

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in queue {
                // A caller that is gone has dropped its end; its child dies with this process.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("a thread");
    Mutex::new(jobs)
});

/// Starts `command` from the thread that lives as long as this process.
fn spawn(command: Command) -> std::io::Result<Child> {
    let (answer, result) = mpsc::channel();
    SPAWNER.lock().expect("not poisoned").send((command, answer)).expect("the spawner lives");
    result.recv().expect("the spawner answers")
}

/// A command for `program` that dies with the test. Add arguments as usual.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// As [`guarded`], run as the unprivileged user of [`server_user`] where this process is root.
pub fn guarded_unprivileged(program: impl AsRef<OsStr>, wanted: &str) -> Command {
    let Some(user) = server_user(wanted) else { return guarded(program) };
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--clear-groups"]);
    command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
    command.arg("--").arg(program);
    command
}

/// Database servers refuse to run as root: then the user they run as, `wanted` or else `nobody`.
pub fn server_user(wanted: &str) -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let find = |name: &str| User::from_name(name).ok().flatten();
    Some(find(wanted).or_else(|| find("nobody")).expect("a user `nobody` on this machine"))
}

/// Makes a private directory that belongs to the user whom a server will run as.
pub fn server_dir(path: &Path, wanted: &str) {
    std::fs::create_dir_all(path).expect("directory of a server");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("mode");
    if let Some(user) = server_user(wanted) {
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("owner of the server's directory");
    }
}

/// The first of `candidates` that exists: an absolute path, or a name on PATH or in the usual sbin directories.
/// Panics with what to install where there is none.
#[track_caller]
pub fn program(candidates: &[&str], install: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = || std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    candidates
        .iter()
        .flat_map(|name| directories().map(move |directory| directory.join(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs {}: {install}", candidates.join(" or ")))
}

/// Runs a command to its end; panics with its stderr where it fails.
#[track_caller]
pub fn run(mut command: Command) -> Output {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A running child, its standard output and error in one log file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command made with [`guarded`]; the log is appended to.
    #[track_caller]
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("log file")).stderr(file);
        let shown = format!("{command:?}");
        let child = spawn(command).unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id: `setpriv` replaced itself, so this is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, where it ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("state of a child")
    }

    /// `Err` with its log where it ended although it should run.
    ///
    /// # Errors
    /// The exit status and the log's end.
    pub fn still_runs(&mut self) -> Result<(), String> {
        match self.exited() {
            None => Ok(()),
            Some(status) => Err(format!("{} ended with {status}: {}", self.name, self.log_end())),
        }
    }

    /// The last lines of the log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).unwrap_or_else(|e| panic!("signal {signal} to {}: {e}", self.name));
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            self.child.kill().expect("kill");
            self.child.wait().expect("wait");
        }
    }

    /// A signal that asks it to stop, then SIGKILL where it does not within `grace`. Its exit status.
    pub fn stop(&mut self, signal: Signal, grace: Duration) -> ExitStatus {
        if self.exited().is_none() {
            self.signal(signal);
        }
        wait::until_within(grace, &format!("{} stops", self.name), || self.exited().ok_or("it runs"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ({})\n{}", self.name, self.log.display(), self.log_end());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
