//! Feeds SQL to a client program: argument arrays, an environment of its own, what it complains about kept.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sealift_common::restore::{RestoreError, VerifiedReader};

use crate::error::{Error, Exit, Result, because};

/// What of a program's complaints is kept, in bytes.
const STDERR_KEPT: usize = 16 * 1024;

/// A client program, and how it reaches its server.
#[derive(Debug, Clone)]
pub struct Client {
    /// The program.
    pub program: PathBuf,
    /// Arguments that are always given.
    pub arguments: Vec<String>,
    /// Variables of its environment; there are no others.
    pub environment: Vec<(String, std::ffi::OsString)>,
}

/// The first of these programs that is found, in `PATH` or in one of `directories`.
pub fn find(names: &[&str], directories: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(directories.iter().cloned()).collect();
    let candidates = names.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

/// Variables that every client gets: where programs are, whose configuration counts, which language messages are in.
pub fn base_environment() -> Vec<(String, std::ffi::OsString)> {
    let given = ["PATH", "HOME", "USER", "TZ"].into_iter();
    let mut all: Vec<_> =
        given.filter_map(|name| std::env::var_os(name).map(|value| (name.to_owned(), value))).collect();
    all.push(("LC_ALL".to_owned(), "C.UTF-8".into()));
    all
}

impl Client {
    fn command(&self, more: &[&OsStr]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(more).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Asks one question and gives what it prints.
    ///
    /// # Errors
    /// Exit code 6 where the server cannot be reached, else 1, with what the program said.
    pub fn ask(&self, more: &[&OsStr]) -> Result<String> {
        let output = self.command(more).stdin(Stdio::null()).output();
        let output =
            output.map_err(because(Exit::Failed, format!("cannot start {}", self.program.display())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self.failed(&String::from_utf8_lossy(&output.stderr)))
    }

    /// Feeds `before`, the stream and `after`. `after` is sent only once the stream was found right, so where it is the
    /// COMMIT, nothing else is committed.
    ///
    /// # Errors
    /// What the program said, or what is wrong with the stream.
    pub fn feed(&self, more: &[&OsStr], before: &str, stream: VerifiedReader, after: &str) -> Result<()> {
        self.feed_with(more, |stdin| {
            stdin.write_all(before.as_bytes()).map_err(Fed::Pipe)?;
            let mut stream = stream;
            while let Some(bytes) = stream.next_bytes() {
                stdin.write_all(&bytes.map_err(Fed::Stream)?).map_err(Fed::Pipe)?;
            }
            stdin.write_all(after.as_bytes()).map_err(Fed::Pipe)
        })
    }

    /// Feeds a text.
    ///
    /// # Errors
    /// What the program said.
    pub fn feed_text(&self, more: &[&OsStr], text: &str) -> Result<()> {
        self.feed_with(more, |stdin| stdin.write_all(text.as_bytes()).map_err(Fed::Pipe))
    }

    fn feed_with(
        &self,
        more: &[&OsStr],
        write: impl FnOnce(&mut dyn Write) -> Result<(), Fed>,
    ) -> Result<()> {
        let mut command = self.command(more);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child =
            child.map_err(because(Exit::Failed, format!("cannot start {}", self.program.display())))?;
        let mut child = Running(child);
        let stderr = child.0.stderr.take().map(|stderr| std::thread::spawn(move || tail(stderr)));
        let fed = match child.0.stdin.take() {
            Some(mut stdin) => write(&mut stdin),
            None => Ok(()),
        };
        if let Err(Fed::Stream(error)) = fed {
            // Killed before its input ends: it must not take what it has for all there is.
            drop(child);
            return Err(error.into());
        }
        let status =
            child.0.wait().map_err(because(Exit::Failed, format!("lost {}", self.program.display())))?;
        let said = stderr.and_then(|thread| thread.join().ok()).unwrap_or_default();
        match fed {
            Ok(()) if status.success() => Ok(()),
            Err(Fed::Pipe(error)) if status.success() => {
                Err(because(Exit::Failed, format!("cannot write to {}", self.name()))(error))
            }
            _ => Err(self.failed(&said)),
        }
    }

    fn failed(&self, said: &str) -> Error {
        let unreachable = [
            "could not connect",
            "connection to server",
            "Can't connect",
            "Lost connection",
            "Unknown server host",
        ];
        let exit =
            if unreachable.iter().any(|text| said.contains(text)) { Exit::Unreachable } else { Exit::Failed };
        let said = complaint(said);
        let said = crate::ui::printable(said.trim());
        Error::new(
            exit,
            format!("{} failed: {}", self.name(), if said.is_empty() { "it said nothing" } else { &said }),
        )
    }
}

/// What a program complains about, on one line, without the statements that it repeats: they may hold somebody's data, or
/// the hash of a password.
fn complaint(said: &str) -> String {
    let mut quoting = false;
    let mut lines = Vec::new();
    for line in said.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("----") {
            quoting = !quoting;
        } else if !quoting
            && !line.starts_with("LINE ")
            && !line.starts_with('^')
            && !line.starts_with("CONTEXT:")
        {
            lines.push(line);
        }
    }
    lines.join(" | ")
}

/// Why feeding stopped.
enum Fed {
    /// The program does not read on: what it said tells why.
    Pipe(io::Error),
    /// The stream is not right.
    Stream(RestoreError),
}

/// A child that does not outlive us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The last bytes of what a program says.
fn tail(mut from: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * STDERR_KEPT {
            kept.drain(..kept.len() - STDERR_KEPT);
        }
    }
    String::from_utf8_lossy(&kept[kept.len().saturating_sub(STDERR_KEPT)..]).into_owned()
}

/// The password of `--password-file` in a file that only we may read, worded by `line`.
///
/// # Errors
/// Exit code 2 where it cannot be read, 1 where no temporary file can be written.
pub fn secret_file(from: &Path, line: impl FnOnce(&str) -> String) -> Result<tempfile::NamedTempFile> {
    let password = crate::identity::first_line(from)
        .map_err(because(Exit::Usage, format!("cannot read the password file {}", from.display())))?;
    let text = sealift_common::secret::Secret::new(line(password.expose()));
    let failed = "cannot write a temporary file for the password";
    // tempfile makes it 0600.
    let mut file = tempfile::NamedTempFile::new().map_err(because(Exit::Failed, failed))?;
    file.write_all(text.expose().as_bytes()).map_err(because(Exit::Failed, failed))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Client {
        Client {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: base_environment(),
        }
    }

    #[test]
    fn what_a_program_says_is_in_the_error() {
        let error = shell("echo 'no such role' >&2; exit 3").feed_text(&[], "select 1;").unwrap_err();
        assert!(error.to_string().contains("no such role"), "{error}");
        let error = shell("echo 'could not connect' >&2; exit 2").ask(&[]).unwrap_err();
        assert_eq!(error.exit(), Exit::Unreachable);
        assert_eq!(shell("echo yes").ask(&[]).unwrap(), "yes\n");
        assert!(shell("cat > /dev/null").feed_text(&[], "select 1;").is_ok());
    }

    #[test]
    fn statements_are_not_repeated() {
        let said = "--------------\nCREATE USER x IDENTIFIED BY PASSWORD '*AB'\n--------------\n\nERROR 1959 at line 1: no\n";
        assert_eq!(complaint(said), "ERROR 1959 at line 1: no");
        let said = "ERROR:  syntax error at or near \"x\"\nLINE 1: ALTER ROLE a PASSWORD 'md5'\n        ^\nHINT:  try\n";
        assert_eq!(complaint(said), "ERROR:  syntax error at or near \"x\" | HINT:  try");
    }

    #[test]
    fn only_the_end_of_long_complaints_is_kept() {
        let said = tail(format!("{}end", "x".repeat(100_000)).as_bytes());
        assert!(said.len() <= STDERR_KEPT && said.ends_with("end"));
    }

    #[test]
    fn passwords_go_into_private_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let given = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(given.path(), "hun:ter2\n").unwrap();
        let file = secret_file(given.path(), |password| format!("*:{password}")).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "*:hun:ter2");
        assert_eq!(file.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
