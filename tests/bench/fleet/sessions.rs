//! Many hosts on one coordinator.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sealift_tests::cluster::Cluster;
use sealift_tests::measure;
use sealift_tests::simulated::{Admin, Call, Fleet, Invitation, Options, Stage};
use sealift_tests::wait;

use crate::bare;
use crate::table::{line, mib, spread, time};

/// Hosts that back up all at once.
const BURST: usize = 1_000;
/// Hosts that ask for four signatures each.
const SIGNERS: usize = 2_500;
/// Signatures a second.
const SIGNATURES: u32 = 500;
/// Packs of a first backup, and signatures of one host.
const PACKS: usize = 4;
/// Runs that are started one by one.
const SINGLE: usize = 200;
/// How long hosts do nothing but send heartbeats before memory is looked at.
const IDLE: Duration = Duration::from_secs(60);
/// New hosts a second: an installer, not a restart.
const ARRIVALS: u32 = 400;

struct Load {
    cluster: Cluster,
    fleet: Fleet,
    admin: Admin,
    hosts: usize,
}

/// Prints the lines of this part.
pub fn measure(hosts: usize) {
    raise_limits(hosts);
    let mut load = enrol(hosts);
    load.idle();
    load.dispatch();
    load.burst();
    load.signatures();
    load.lists();
    load.restart("stopped (SIGTERM)", Cluster::stop_coordinator);
    load.restart("killed (SIGKILL)", Cluster::kill_coordinator);
    let figures = load.fleet.figures();
    eprintln!(
        "sessions lost, and why: {:#?}\nsteps tried again: {:#?}\nattempts without a backup: {:#?}",
        figures.lost_sessions(),
        figures.retries(),
        figures.failures()
    );
}

/// Prints the lines about coming back alone.
pub fn reconnects(hosts: usize) {
    raise_limits(hosts);
    let mut load = enrol(hosts);
    load.idle();
    load.restart("killed (SIGKILL)", Cluster::kill_coordinator);
}

/// Both processes need a descriptor for each session: the coordinator inherits what is set here.
fn raise_limits(hosts: usize) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    let needed = hosts as u64 + 500;
    assert!(hard >= needed, "{hosts} hosts need {needed} file descriptors: `ulimit -Hn` says {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("more file descriptors");
}

fn enrol(hosts: usize) -> Load {
    let cluster = Cluster::dev();
    let mut fleet = Fleet::new(Options { blocks: PACKS, ..Options::default() });
    let (burst, signers) = (BURST.min(hosts / 2), SIGNERS.min(hosts / 4));
    let started = Instant::now();
    for (group, count) in [("burst", burst), ("signers", signers), ("idle", hosts - burst - signers)] {
        fleet.enrol(&Invitation::of(&cluster, count, &[("group", group), ("role", "till")]), group, count);
    }
    let took = started.elapsed();
    line(
        format!("{hosts} hosts enrolled"),
        "–",
        format!("{} ({:.0}/s)", time(took), hosts as f64 / took.as_secs_f64()),
    );
    fleet.connect_paced(ARRIVALS);
    fleet.until_connected(hosts);
    let admin = Admin::of(&cluster);
    Load { cluster, fleet, admin, hosts }
}

impl Load {
    fn idle(&mut self) {
        spend(IDLE);
        let connected = self.fleet.figures().connected();
        assert_eq!(connected, self.hosts, "all hosts stay connected");
        assert_eq!(self.admin.status().agents_connected as usize, self.hosts);
        let pid = self.cluster.coordinator().pid();
        let (rss, peak) = (measure::rss(pid).expect("it runs"), measure::peak_rss(pid).expect("it runs"));
        let each = rss / self.hosts as u64 / 1024;
        line(
            format!("{} connected hosts, memory of the coordinator", self.hosts),
            "512 MiB",
            format!("{} (peak {}; {each} KiB a host)", mib(rss), mib(peak)),
        );
        let before = measure::cpu(pid);
        spend(IDLE / 2);
        let share = (measure::cpu(pid) - before).as_secs_f64() / (IDLE / 2).as_secs_f64();
        line(
            "… its CPU time while they only send heartbeats",
            "–",
            format!("{:.1} % of a core", share * 100.0),
        );
    }

    /// Single runs beside idle hosts: from the admin's call to the offer's arrival.
    fn dispatch(&mut self) {
        let before = self.fleet.figures().commits();
        let idle: Vec<_> = self.fleet.hosts().iter().filter(|host| host.name().starts_with("idle")).collect();
        let chosen: Vec<_> = idle.iter().step_by((idle.len() / SINGLE).max(1)).take(SINGLE).collect();
        let mut asked = Vec::new();
        for host in &chosen {
            let at = Instant::now();
            let runs = self.admin.start(&format!("{}/data", host.name()), "");
            asked.push((runs[0].id.parse().expect("a run's id"), at));
            spend(Duration::from_millis(60));
        }
        self.fleet.until_committed(before + chosen.len());
        let offers = self.fleet.figures().offers();
        let latencies = asked.into_iter().map(|(run, at)| offers[&run].duration_since(at)).collect();
        line(
            format!(
                "dispatch beside {} idle hosts: asked for, until the host has the offer",
                self.hosts - chosen.len()
            ),
            "p99 1 s",
            spread(latencies),
        );
    }

    fn burst(&mut self) {
        let before = self.fleet.figures().commits();
        let at = Instant::now();
        let runs = self.admin.start("", "group=burst");
        let count = runs.len();
        let asked: Vec<_> = runs.iter().map(|run| run.id.parse().expect("a run's id")).collect();
        self.fleet.until_committed(before + count);
        let committed = at.elapsed();
        let offers = self.fleet.figures().offers();
        let last = asked.iter().map(|run| offers[run].duration_since(at)).max().unwrap_or_default();
        line(
            format!("{count} runs asked for at once: all started"),
            "60 s",
            format!("{} ({:.0} a minute)", time(last), count as f64 / last.as_secs_f64() * 60.0),
        );
        line(
            format!("… all committed, {PACKS} packs each"),
            "–",
            format!("{} ({:.0} a minute)", time(committed), count as f64 / committed.as_secs_f64() * 60.0),
        );
        for call in [Call::Begin, Call::Sign, Call::Put, Call::Confirm, Call::Prepare, Call::Commit] {
            line(format!("… {call:?} meanwhile"), "–", spread(self.fleet.figures().latencies(call)));
        }
    }

    /// Signatures at a fixed rate, each for another pack; nothing is sent to the store meanwhile.
    fn signatures(&mut self) {
        let before = self.fleet.figures().commits();
        self.fleet.hold(Some(Stage::Begun));
        let count = self.admin.start("", "group=signers").len();
        self.until_waiting(count);
        self.fleet.figures().forget_latencies();
        self.fleet.pace(Some(SIGNATURES));
        let started = Instant::now();
        self.fleet.hold(Some(Stage::Signed));
        wait::until("all packs are signed for", || match self.fleet.figures().latencies(Call::Sign).len() {
            signed if signed >= count * PACKS => Ok(()),
            signed => Err(signed),
        });
        let rate = (count * PACKS) as f64 / started.elapsed().as_secs_f64();
        line(
            format!(
                "{SIGNATURES} signatures a second asked for ({rate:.0} given), each from when it was due"
            ),
            "p99 10 ms",
            spread(self.fleet.figures().latencies(Call::Sign)),
        );
        let file = self.cluster.scratch().join("bare.db");
        line(
            "… as many one-row commits on SQLite alone, for comparison",
            "–",
            spread(bare::commits(&file, (count * PACKS) as u32, SIGNATURES)),
        );
        self.fleet.pace(None);
        self.fleet.hold(None);
        let took = self.fleet.until_committed(before + count);
        line(format!("… their {count} backups stored and committed after that"), "–", time(took));
    }

    fn until_waiting(&self, count: usize) {
        wait::until(&format!("{count} attempts wait"), || match self.fleet.waiting() {
            waiting if waiting == count => Ok(()),
            waiting => Err(format!("{waiting} do; {:?}", self.fleet.figures().failures())),
        });
    }

    fn lists(&mut self) {
        for arguments in
            [&["status"][..], &["agent", "list"], &["source", "list"], &["backup", "list"], &["run", "list"]]
        {
            let mut all: Vec<Duration> = (0..10).map(|_| self.timed(arguments)).collect();
            all.remove(0);
            line(format!("`sealift {}`, the process included", arguments.join(" ")), "200 ms", spread(all));
        }
    }

    fn timed(&self, arguments: &[&str]) -> Duration {
        let started = Instant::now();
        self.cluster.sealift(arguments).expect(0);
        started.elapsed()
    }

    fn restart(&mut self, how: &str, end: impl Fn(&mut Cluster)) {
        end(&mut self.cluster);
        wait::until_true("all sessions are lost", || self.fleet.figures().connected() == 0);
        self.cluster.start_coordinator();
        let took = self.fleet.until_connected(self.hosts);
        line(
            format!("coordinator {how} and started: all {} reconnected after `ready`", self.hosts),
            "30 s",
            time(took),
        );
        let pid = self.cluster.coordinator().pid();
        let peak = measure::peak_rss(pid).expect("it runs");
        line("… peak memory of the coordinator meanwhile", "–", mib(peak));
    }
}

/// Time that is part of what is measured, not a wait for something.
#[allow(clippy::disallowed_methods)]
pub fn spend(time: Duration) {
    std::thread::sleep(time);
}
