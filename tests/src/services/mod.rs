//! Real servers in private temporary instances.
//!
//! To add one: a file here with a type whose `start()` returns when the server answers and whose destructor ends it.

mod mariadb;
mod postgres;
mod s3;

pub use mariadb::{MariaDb, MariaDbOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use s3::S3;

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

/// A free port on loopback. Between this call and the server's own bind another process may take it: servers are
/// started again with another port where that happened ([`ATTEMPTS`]).
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// How often a server is started before the test gives up.
pub const ATTEMPTS: usize = 5;

/// A new random password: nothing else on the machine contains it, so tests may grep for it.
pub fn new_password() -> String {
    let mut random = [0_u8; 12];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").expect("random source"), &mut random)
        .expect("random bytes");
    format!("pw{}", hex::encode(random))
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
