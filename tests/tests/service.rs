//! What a service manager hears (sd_notify) and says (signals).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use sealift_tests::cluster::Cluster;
use sealift_tests::scratch::Scratch;
use sealift_tests::wait;

/// The service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _scratch: Scratch,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new("notify");
        let path = scratch.join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(wait::LIMIT)).unwrap();
        Self { socket, path: path.display().to_string(), _scratch: scratch }
    }

    /// Waits for a message with this line; what came before it is passed over.
    #[track_caller]
    fn hears(&self, line: &str) {
        let mut buffer = [0; 4096];
        loop {
            let n = self.socket.recv(&mut buffer).unwrap_or_else(|e| panic!("did not hear {line}: {e}"));
            let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if message.lines().any(|heard| heard == line) {
                return;
            }
        }
    }
}

#[test]
fn the_agent_says_when_it_is_ready_reloads_and_stops() {
    let (cluster, manager) = (Cluster::dev(), Manager::new());
    let source = |name: &str| {
        format!("[[source]]\nname = {name:?}\nkind = \"command\"\ncommand = [\"/bin/echo\", \"x\"]\n")
    };
    let variables = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let mut agent = cluster.agent_with("store-1", &source("one"), &variables, None);
    manager.hears("READY=1");

    agent.write_config(&(source("one") + &source("two")));
    agent.process().signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    wait::until_true("the coordinator hears of the new source", || {
        let sources = cluster.json(&["source", "list"]);
        sources.as_array().unwrap().iter().any(|source| source["source"] == "two")
    });
    // A bad configuration is told of, and changes nothing.
    agent.write_config("nonsense = true");
    agent.process().signal(Signal::SIGHUP);
    manager.hears("READY=1");
    wait::until_true("the log says so", || agent.log().contains("nonsense"));
    cluster.backup_ok("store-1/two");

    let status = agent.process().stop(Signal::SIGTERM, Duration::from_secs(60));
    assert!(status.success(), "{status}");
    manager.hears("STOPPING=1");

    // A watchdog that is meant for this very process is kept quiet.
    agent.write_config(&source("one"));
    agent.wrap(&["sh", "-c", "export WATCHDOG_PID=$$; exec \"$@\"", "sh"]);
    agent.start();
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
}

#[test]
fn the_coordinator_says_when_it_is_ready_and_stops() {
    let manager = Manager::new();
    let mut cluster = Cluster::dev_with(&[("NOTIFY_SOCKET", &manager.path)]);
    manager.hears("READY=1");
    cluster.stop_coordinator();
    manager.hears("STOPPING=1");
}
