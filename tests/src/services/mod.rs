//! Real servers in private temporary instances.
//!
//! To add one: a file here with a type whose `start()` returns when the server answers and whose destructor ends it.

mod mariadb;
mod postgres;
mod s3;

pub use mariadb::{MariaDb, MariaDbOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use s3::S3;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::fcntl::{Flock, FlockArg};

/// Locks on the ports that this process was given: other tests of the run choose others.
static PORTS: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());

/// A free port on loopback, this process's own until it ends, so that a server can be started on it again. It lies below
/// the range from which the kernel takes ports for outgoing connections.
#[track_caller]
pub fn free_port() -> u16 {
    let locks = std::env::temp_dir().join(format!("sealift-test-ports-{}", nix::unistd::geteuid()));
    std::fs::create_dir_all(&locks).expect("directory of port locks");
    for _ in 0..1000 {
        let port = 10_000 + u16::from_le_bytes(random()) % 10_000;
        let file = File::create(locks.join(port.to_string())).expect("port lock");
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            PORTS.lock().expect("not poisoned").push(lock);
            return port;
        }
    }
    panic!("no free port between 10000 and 20000");
}

/// How often a server is started before the test gives up.
pub const ATTEMPTS: usize = 5;

/// A new random password: nothing else on the machine contains it, so tests may grep for it.
pub fn new_password() -> String {
    format!("pw{}", hex::encode(random::<12>()))
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).expect("random bytes");
    bytes
}

/// Runs a command with `input` on its standard input; panics with its stderr where it fails.
#[track_caller]
fn feed(mut command: Command, input: &[u8]) {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    // Written beside the wait, so that a child which stops reading to complain is heard.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("end of a child")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
