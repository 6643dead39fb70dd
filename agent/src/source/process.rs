//! Child processes: argument arrays without a shell, an empty environment plus what is needed, a process group of their
//! own that is killed as a whole, standard error kept within bounds, low priority.
//!
//! A [`Tool`] is a value until it [runs](Tool::stream). Dropping the future kills the group.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rustix::process::{Pid, Signal, kill_process_group};
use sealift_common::secret::Secret;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::SourceError;
use super::sink::Sink;
use super::{MAX_DATA, SourceEnv, priority};
use crate::config::secret::Environment;

/// How much of a tool's standard error is kept, in bytes: its end.
pub const MAX_STDERR: usize = 16 * 1024;
/// Kept beyond that while it runs, so that a secret at the cut is still recognised.
const STDERR_MARGIN: usize = 64 * 1024;
/// A buffer with less room than this, in bytes, is replaced.
const MIN_ROOM: usize = 64 * 1024;
/// Largest answer that is taken from a tool as a whole, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long a group that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long standard error is waited for once the tool has ended: a grandchild may hold it open.
const STDERR_GRACE: Duration = Duration::from_secs(2);
/// Where programs are looked for when the agent itself has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to be run once.
#[derive(Debug)]
pub struct Tool {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Secret<String>)>,
    secrets: Vec<Secret<String>>,
}

impl Tool {
    /// `program`, called by its file name in errors.
    pub fn new(program: &Path) -> Self {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        Self {
            name,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            secrets: Vec::new(),
        }
    }

    /// Adds an argument. Everybody on the host may read it.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), Secret::new(value.into())));
        self
    }

    /// A text that must not appear in what is kept of its standard error.
    pub fn redact(mut self, secret: &Secret<String>) -> Self {
        self.secrets.push(secret.clone());
        self
    }

    /// Runs it and sends its standard output as data of the open stream. Returns how many bytes that was.
    ///
    /// # Errors
    /// Where it cannot be started, fails, stalls, or the backup is cancelled: then its group is gone.
    pub async fn stream(self, env: &SourceEnv, sink: &Sink) -> Result<u64, SourceError> {
        let mut running = Running::start(self, env).await?;
        let mut total = 0;
        while let Some(bytes) = running.read(sink.cancel()).await? {
            total += bytes.len() as u64;
            if let Err(error) = sink.data(bytes).await {
                running.end_group().await;
                return Err(error);
            }
        }
        running.finish(sink.cancel()).await?;
        Ok(total)
    }

    /// Runs it and returns its standard output as a whole.
    ///
    /// # Errors
    /// As [`Tool::stream`], and where it says more than 64 MiB.
    pub async fn answer(self, env: &SourceEnv, cancel: &CancellationToken) -> Result<Vec<u8>, SourceError> {
        let mut running = Running::start(self, env).await?;
        let mut answer = Vec::new();
        while let Some(bytes) = running.read(cancel).await? {
            answer.extend_from_slice(&bytes);
            if answer.len() > MAX_ANSWER {
                let problem = format!("more than {MAX_ANSWER} bytes");
                return Err(SourceError::ToolAnswer { tool: running.name.clone(), problem });
            }
        }
        running.finish(cancel).await?;
        Ok(answer)
    }
}

/// Finds `name` in `bin_dir`, or else on the agent's `PATH`.
pub fn find_program(name: &str, bin_dir: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
    if let Some(directory) = bin_dir {
        return Some(directory.join(name)).filter(|path| is_program(path));
    }
    std::env::split_paths(&search_path(environment)).map(|dir| dir.join(name)).find(|path| is_program(path))
}

fn search_path(environment: &Environment) -> String {
    environment.get("PATH").map_or(DEFAULT_PATH.to_owned(), |path| path.expose().clone())
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A started tool.
struct Running {
    name: String,
    child: Child,
    group: Option<Pid>,
    stdout: ChildStdout,
    stderr: Captured,
    buffer: BytesMut,
    stall_timeout: Duration,
}

impl Running {
    async fn start(tool: Tool, env: &SourceEnv) -> Result<Self, SourceError> {
        let name = tool.name.clone();
        let fail = |source| SourceError::ToolStart { tool: name.clone(), source };
        let mut command = tokio::process::Command::new(&tool.program);
        command
            .args(&tool.arguments)
            .env_clear()
            .env("PATH", search_path(&env.environment))
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", env.temp.path())
            .env("TMPDIR", env.temp.path())
            .envs(tool.environment.iter().map(|(name, value)| (name, value.expose())))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        priority::prepare_child(&mut command, env.process);
        let mut child = spawn_from_lasting_thread(command).await.map_err(fail)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(fail(std::io::Error::other("it has no output")));
        };
        // A larger pipe halves the wake-ups; where the system refuses, the usual 64 KiB do.
        let _ = rustix::pipe::fcntl_setpipe_size(stdout.as_fd(), MAX_DATA);
        let stderr = Captured::start(stderr, tool.secrets);
        let stall_timeout = env.stall_timeout;
        Ok(Self { name, child, group, stdout, stderr, buffer: BytesMut::new(), stall_timeout })
    }

    /// The next piece of standard output; `None` at its end.
    async fn read(&mut self, cancel: &CancellationToken) -> Result<Option<Bytes>, SourceError> {
        if self.buffer.capacity() < MIN_ROOM {
            self.buffer.reserve(MAX_DATA);
        }
        let mut room = (&mut self.buffer).limit(MAX_DATA);
        let read = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            read = tokio::time::timeout(self.stall_timeout, self.stdout.read_buf(&mut room)) => Some(read),
        };
        match read {
            None => {
                self.end_group().await;
                Err(SourceError::Cancelled)
            }
            Some(Err(_)) => {
                self.end_group().await;
                let (tool, after) = (self.name.clone(), self.stall_timeout);
                Err(SourceError::ToolStalled { tool, after, stderr: self.stderr.text().await })
            }
            Some(Ok(Err(source))) => Err(SourceError::ToolStart { tool: self.name.clone(), source }),
            Some(Ok(Ok(0))) => Ok(None),
            Some(Ok(Ok(_))) => Ok(Some(self.buffer.split().freeze())),
        }
    }

    /// Waits for the tool's end, after its output has ended.
    async fn finish(mut self, cancel: &CancellationToken) -> Result<(), SourceError> {
        let waited = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            waited = tokio::time::timeout(self.stall_timeout, self.child.wait()) => Some(waited),
        };
        let tool = self.name.clone();
        match waited {
            Some(Ok(Ok(status))) => {
                self.group = None;
                let stderr = self.stderr.text().await;
                if status.success() {
                    if !stderr.is_empty() {
                        tracing::info!(tool, stderr, "the tool had something to say");
                    }
                    return Ok(());
                }
                Err(SourceError::ToolFailed { tool, status: describe(status), stderr })
            }
            Some(Ok(Err(source))) => Err(SourceError::ToolStart { tool, source }),
            Some(Err(_)) => {
                self.end_group().await;
                Err(SourceError::ToolStalled {
                    tool,
                    after: self.stall_timeout,
                    stderr: self.stderr.text().await,
                })
            }
            None => {
                self.end_group().await;
                Err(SourceError::Cancelled)
            }
        }
    }

    /// Asks the group to end, and kills what has not after a grace.
    async fn end_group(&mut self) {
        let Some(group) = self.group else { return };
        let _ = kill_process_group(group, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, wait_unreaped(group)).await;
        // The leader is not reaped yet, so that the id cannot have gone to a stranger.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait().await;
        self.group = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits until the leader of `group` has ended, without taking its status away.
async fn wait_unreaped(group: Pid) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let wait = move || waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let _ = tokio::task::spawn_blocking(wait).await;
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit status".to_owned(),
    }
}

/// Starts a child from a thread that lives as long as this process: its end would be taken for the parent's death.
async fn spawn_from_lasting_thread(mut command: tokio::process::Command) -> std::io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static THREAD: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = THREAD.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let _ = std::thread::Builder::new()
            .name("spawn".to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let (reply, answer) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let job = Box::new(move || {
        let _entered = runtime.enter();
        // Nobody waiting any more: the child is dropped here, and killed with that.
        let _ = reply.send(command.spawn());
    });
    let gone = || std::io::Error::other("the thread that starts programs is gone");
    jobs.send(job).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// The end of a tool's standard error.
struct Captured {
    kept: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
    secrets: Vec<Secret<String>>,
}

impl Captured {
    fn start(mut stderr: ChildStderr, secrets: Vec<Secret<String>>) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let into = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut piece).await {
                let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(piece.iter().take(read));
                let excess = kept.len().saturating_sub(MAX_STDERR + STDERR_MARGIN);
                kept.drain(..excess);
            }
        });
        Self { kept, reader, secrets }
    }

    /// What was said until now, redacted.
    async fn text(&mut self) -> String {
        let _ = tokio::time::timeout(STDERR_GRACE, &mut self.reader).await;
        self.reader.abort();
        let kept =
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect::<Vec<_>>();
        redacted_end(&String::from_utf8_lossy(&kept), &self.secrets)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The last [`MAX_STDERR`] bytes of `text`, without `secrets` and without control characters that terminals obey.
fn redacted_end(text: &str, secrets: &[Secret<String>]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.expose().is_empty()) {
        text = text.replace(secret.expose().as_str(), "[redacted]");
    }
    text.retain(|c| !c.is_control() || c == '\n' || c == '\t');
    let start = text.len().saturating_sub(MAX_STDERR);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.split_off(start).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_without_secrets() {
        let secrets = [Secret::new("hunter2".to_owned()), Secret::new(String::new())];
        assert_eq!(
            redacted_end("password hunter2 is wrong\u{1b}[31m\n", &secrets),
            "password [redacted] is wrong[31m"
        );
        let long = format!("{}hunter2 end", "ü".repeat(MAX_STDERR));
        let kept = redacted_end(&long, &secrets);
        assert!(kept.len() <= MAX_STDERR && kept.ends_with("[redacted] end"));
    }
}
