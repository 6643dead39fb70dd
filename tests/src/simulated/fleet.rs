//! Many hosts on one runtime. What is here blocks and panics, as everything in this harness does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use sealift_common::crypto::{Recipient, TrustObject};
use sealift_common::id::{Random, Sha256};
use sealift_common::tls;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use url::Url;

use super::figures::Figures;
use super::host::Host;
use super::wire;
use crate::cluster::Cluster;
use crate::wait;

/// How long a whole fleet may take to come to a state.
const LIMIT: Duration = Duration::from_secs(600);
/// Hosts that enrol at a time.
const ENROL_AT_ONCE: usize = 64;

/// How the hosts of a fleet are.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names of each host's sources.
    pub sources: Vec<String>,
    /// Blocks of a source: a first backup has so many packs, a later one stores one new one.
    pub blocks: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Each backup also refers to a byte of every pack that it may refer to. Such backups do not restore where packs were
    /// made up.
    pub refer_to_all: bool,
    /// Threads that all hosts share.
    pub threads: usize,
    /// Where ids, keys and jitter come from.
    pub random: Random,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sources: vec!["data".to_owned()],
            blocks: 2,
            block_bytes: 2_048,
            refer_to_all: false,
            threads: 2,
            random: Random::from_os(),
        }
    }
}

/// A token and what else `sealift token create` prints for a host.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// The token.
    pub token: String,
    /// Fingerprint of the CA.
    pub ca_sha256: Sha256,
    /// Where to connect, tried in this order.
    pub coordinators: Vec<Url>,
}

impl Invitation {
    /// A new token for `uses` hosts with these labels.
    #[track_caller]
    pub fn of(cluster: &Cluster, uses: usize, labels: &[(&str, &str)]) -> Self {
        let uses = uses.to_string();
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut arguments = vec!["token", "create", "--ttl", "1d", "--uses", &uses];
        labels.iter().for_each(|label| arguments.extend(["--label", label]));
        let token = cluster.json(&arguments);
        let text = |field: &str| token[field].as_str().expect("a text").to_owned();
        Self {
            token: text("token"),
            ca_sha256: text("ca_sha256").parse().expect("a fingerprint"),
            coordinators: vec![cluster.url().parse().expect("a URL")],
        }
    }
}

/// A point of a backup at which hosts can be made to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Begin was answered, and packs are sealed.
    Begun,
    /// Packs are signed for, and not sent yet.
    Signed,
}

/// What all hosts of a fleet share.
pub(super) struct World {
    pub options: Options,
    pub figures: Figures,
    pub http: reqwest::Client,
    hold: watch::Sender<Option<Stage>>,
    waiting: AtomicUsize,
    pace: Mutex<Option<Pace>>,
    recipients: Mutex<HashMap<(Sha256, String), Vec<Recipient>>>,
}

struct Pace {
    next: Instant,
    interval: Duration,
}

impl World {
    /// Waits while the fleet is held at this stage.
    pub async fn pass(&self, stage: Stage) {
        let mut hold = self.hold.subscribe();
        if *hold.borrow_and_update() != Some(stage) {
            return;
        }
        let _waits = Waits::new(&self.waiting);
        // The fleet is gone: nobody holds anybody.
        let _ = hold.wait_for(|held| *held != Some(stage)).await;
    }

    /// Waits for its turn to ask for a signature; when that was due.
    pub async fn turn(&self) -> Instant {
        let due = {
            let mut pace = self.pace.lock().expect("not poisoned");
            let Some(pace) = pace.as_mut() else { return Instant::now() };
            let due = pace.next;
            pace.next = due + pace.interval;
            due
        };
        tokio::time::sleep_until(due.into()).await;
        due
    }

    /// Whom backups of `scope` are sealed to, by the policy with this hash, which is the newest of `chain`.
    pub fn recipients(
        &self,
        sha256: Sha256,
        scope: &str,
        chain: &[Vec<u8>],
    ) -> Result<Vec<Recipient>, String> {
        let mut known = self.recipients.lock().expect("not poisoned");
        let key = (sha256, scope.to_owned());
        if let Some(recipients) = known.get(&key) {
            return Ok(recipients.clone());
        }
        let newest = chain.last().ok_or("the coordinator sent no trust policy")?;
        let object = TrustObject::parse(newest).map_err(|error| wire::chain(&error))?;
        if object.sha256() != sha256 {
            return Err("the newest trust policy is not the one in force".to_owned());
        }
        let recipients = object.policy().recipients_for(scope).unwrap_or_default();
        known.insert(key, recipients.clone());
        Ok(recipients)
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Many simulated hosts. They end with it.
pub struct Fleet {
    world: Arc<World>,
    hosts: Vec<Arc<Host>>,
    runtime: Option<Runtime>,
}

impl Fleet {
    /// A fleet without hosts.
    #[track_caller]
    pub fn new(options: Options) -> Self {
        tls::install_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads)
            .thread_name("hosts")
            .enable_all()
            .build()
            .expect("a runtime");
        let http = reqwest::Client::builder().http1_only().pool_max_idle_per_host(64).tcp_nodelay(true);
        let world = World {
            options,
            figures: Figures::default(),
            http: http.build().expect("an HTTP client"),
            hold: watch::Sender::new(None),
            waiting: AtomicUsize::new(0),
            pace: Mutex::new(None),
            recipients: Mutex::default(),
        };
        Self { world: Arc::new(world), hosts: Vec::new(), runtime: Some(runtime) }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("there until dropped")
    }

    /// Enrols `count` hosts, called `prefix-0000` and following, with one token. None is connected yet.
    #[track_caller]
    pub fn enrol(&mut self, invitation: &Invitation, prefix: &str, count: usize) {
        let first = self.hosts.len();
        let names = (0..count).map(|n| (first + n, format!("{prefix}-{n:04}")));
        let config = tls::pinned_client_config(invitation.ca_sha256).expect("TLS");
        let (world, handle) = (&self.world, self.runtime().handle());
        let enrol = |(number, name): (usize, String)| {
            let (config, invitation, world) = (config.clone(), invitation.clone(), world.clone());
            async move {
                let coordinator = &invitation.coordinators[0];
                let channel = wire::connect(coordinator, config, wire::address(number)).await?;
                let enrolled = wire::enrol(channel, &invitation.token, &name, &world.options.random).await?;
                Ok::<_, String>(Arc::new(Host::new(enrolled, number, invitation.coordinators, world)))
            }
        };
        let all = futures::stream::iter(names.map(|name| handle.spawn(enrol(name)))).buffered(ENROL_AT_ONCE);
        let hosts: Vec<_> = self.runtime().block_on(all.collect());
        for host in hosts {
            let host = host.expect("a task that does not panic");
            self.hosts.push(host.unwrap_or_else(|error| panic!("a host cannot enrol: {error}")));
        }
    }

    /// Starts all hosts that do not run.
    pub fn connect(&self) {
        let _in = self.runtime().enter();
        self.hosts.iter().for_each(|host| host.start());
    }

    /// As [`Fleet::connect`], so many a second.
    pub fn connect_paced(&self, per_second: u32) {
        let interval = Duration::from_secs(1) / per_second;
        self.runtime().block_on(async {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            for host in &self.hosts {
                ticks.tick().await;
                host.start();
            }
        });
    }

    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// The hosts, in the order in which they enrolled.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// One host.
    #[track_caller]
    pub fn host(&self, number: usize) -> Handle<'_> {
        Handle { host: &self.hosts[number], fleet: self }
    }

    /// What the fleet saw.
    pub fn figures(&self) -> &Figures {
        &self.world.figures
    }

    /// Waits until at least `count` hosts have a session; how long that took.
    #[track_caller]
    pub fn until_connected(&self, count: usize) -> Duration {
        let figures = self.figures();
        let started = Instant::now();
        wait::until_within(LIMIT, &format!("{count} hosts are connected"), || {
            let connected = figures.connected();
            if connected >= count {
                return Ok(());
            }
            Err(format!("{connected} are; lost: {:?}", figures.lost_sessions()))
        });
        started.elapsed()
    }

    /// Waits until at least `count` backups are committed; how long that took.
    #[track_caller]
    pub fn until_committed(&self, count: usize) -> Duration {
        let figures = self.figures();
        let started = Instant::now();
        wait::until_within(LIMIT, &format!("{count} backups are committed"), || {
            let commits = figures.commits();
            if commits >= count {
                return Ok(());
            }
            Err(format!("{commits} are; failures: {:?}", figures.failures()))
        });
        started.elapsed()
    }

    /// Makes every attempt wait at `stage` from now on; `None` lets them go on.
    pub fn hold(&self, stage: Option<Stage>) {
        self.world.hold.send_replace(stage);
    }

    /// Attempts that wait where the fleet is held.
    pub fn waiting(&self) -> usize {
        self.world.waiting.load(Ordering::SeqCst)
    }

    /// Signatures are asked for at this rate from now on, whether or not earlier ones were answered; `None`: as they come.
    pub fn pace(&self, per_second: Option<u32>) {
        let pace = per_second
            .map(|rate| Pace { next: Instant::now(), interval: Duration::from_secs(1) / rate.max(1) });
        *self.world.pace.lock().expect("not poisoned") = pace;
    }

    /// Waits for a future on the fleet's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime().block_on(future)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.hosts.iter().for_each(|host| host.crash());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One host of a fleet, to do things to.
#[derive(Clone, Copy)]
pub struct Handle<'a> {
    host: &'a Arc<Host>,
    fleet: &'a Fleet,
}

impl Handle<'_> {
    /// Starts its process, where it does not run.
    pub fn start(self) {
        let _in = self.fleet.runtime().enter();
        self.host.start();
    }

    /// Ends its process, as SIGKILL does. Its source and its journal stay.
    pub fn crash(self) {
        self.host.crash();
    }

    /// Cuts its connection; the process goes on.
    pub fn cut(self) {
        self.host.cut();
    }
}

impl std::ops::Deref for Handle<'_> {
    type Target = Host;
    fn deref(&self) -> &Host {
        self.host
    }
}
