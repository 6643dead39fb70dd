//! A command on a terminal of its own: util-linux's `script` gives it one, the test reads and types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::process::program;
use crate::wait;

/// A command that believes somebody is looking.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
    /// What was there when something was last waited for.
    seen: usize,
}

impl Terminal {
    /// Starts `command` on a terminal.
    #[track_caller]
    pub fn start(command: &Command) -> Self {
        let quoted = |text: &std::ffi::OsStr| {
            format!("'{}'", text.to_str().expect("a UTF-8 argument").replace('\'', "'\\''"))
        };
        let line: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        let mut script = Command::new(program(&["script"], "apt-get install bsdutils"));
        script.args(["--quiet", "--return", "--flush", "--command"]).arg(line.join(" ")).arg("/dev/null");
        script.env_clear();
        script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        script.env("TERM", "xterm").env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = script.spawn().expect("start script");
        let keyboard = child.stdin.take();
        let mut output = child.stdout.take().expect("piped");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                shown.lock().expect("not poisoned").extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, keyboard, screen, seen: 0 }
    }

    /// All that was ever on the screen.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("not poisoned")).into_owned()
    }

    /// Waits until something new on the screen contains `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let seen = self.seen;
        self.seen = wait::until(&format!("{text:?} is on the screen"), || {
            let screen = self.screen();
            let at = screen.get(seen..).and_then(|new| new.find(text));
            at.map(|at| seen + at + text.len()).ok_or(screen)
        });
    }

    /// Types a line.
    #[track_caller]
    pub fn type_line(&mut self, line: &str) {
        let keyboard = self.keyboard.as_mut().expect("the keyboard is there");
        writeln!(keyboard, "{line}").and_then(|()| keyboard.flush()).expect("type");
    }

    /// Waits until the terminal shows nothing of what is typed, then types a line. The question comes a moment before.
    #[track_caller]
    pub fn type_secret(&mut self, line: &str) {
        let tty = self.tty();
        wait::until("what is typed is not shown", || match tcgetattr(&tty) {
            Ok(settings) if !settings.local_flags.contains(LocalFlags::ECHO) => Ok(()),
            settings => Err(format!("{settings:?}")),
        });
        self.type_line(line);
    }

    /// The command's own terminal: its standard input.
    #[track_caller]
    fn tty(&self) -> File {
        let script = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{script}/task/{script}/children"));
        let children = children.expect("the children of script");
        let command = children.split_whitespace().next().expect("the command runs");
        let mut open = File::options();
        open.read(true).custom_flags(OFlag::O_NOCTTY.bits());
        open.open(format!("/proc/{command}/fd/0")).expect("its terminal")
    }

    /// Waits for the end; the exit code.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let status = wait::until("the command ends", || {
            self.child.try_wait().expect("state of a child").ok_or_else(|| self.screen())
        });
        (status.code().unwrap_or(-1), self.screen())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // What runs on the terminal hangs up with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
