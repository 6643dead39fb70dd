//! What the tests of sources share: a configuration and a state directory of their own, and a reader of events.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sealift_agent::config::Config;
use sealift_agent::config::secret::Environment;
use sealift_agent::source::{
    self, EVENTS_AHEAD, MAX_DATA, SourceCheck, SourceEnv, SourceError, SourceEvent, SourceSummary,
    StreamHead, Warning,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A configuration with a state directory of its own.
pub struct Bench {
    pub config: Config,
    pub env: SourceEnv,
    _directory: Option<TempDir>,
}

/// Everything a source said.
#[derive(Debug, Default)]
pub struct Events {
    pub streams: Vec<Stream>,
    pub warnings: Vec<Warning>,
    pub expected: Option<u64>,
    pub summary: SourceSummary,
}

#[derive(Debug)]
pub struct Stream {
    pub head: StreamHead,
    pub data: Vec<u8>,
    pub ended: Option<bool>,
}

impl Events {
    /// The bytes of one stream.
    pub fn stream(&self, name: &str) -> &[u8] {
        &self.get(name).data
    }

    pub fn get(&self, name: &str) -> &Stream {
        let found = self.streams.iter().find(|stream| stream.head.name == name);
        found.unwrap_or_else(|| panic!("no stream {name} among {:?}", self.names()))
    }

    pub fn names(&self) -> Vec<&str> {
        self.streams.iter().map(|stream| stream.head.name.as_str()).collect()
    }

    /// All bytes.
    pub fn data(&self) -> Vec<u8> {
        self.streams.iter().flat_map(|stream| stream.data.clone()).collect()
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Begin(head) => {
                assert!(
                    self.streams.iter().all(|s| s.ended.is_some() && s.head.name != head.name),
                    "{head:?}"
                );
                self.streams.push(Stream { head, data: Vec::new(), ended: None });
            }
            SourceEvent::Data(bytes) => {
                assert!((1..=MAX_DATA).contains(&bytes.len()));
                let stream = self.streams.last_mut().filter(|s| s.ended.is_none()).expect("an open stream");
                stream.data.extend_from_slice(&bytes);
            }
            SourceEvent::End { partial } => {
                let stream = self.streams.last_mut().filter(|s| s.ended.is_none()).expect("an open stream");
                stream.ended = Some(partial);
            }
            SourceEvent::Warning(warning) => self.warnings.push(warning),
            SourceEvent::Expected(bytes) => self.expected = Some(bytes),
        }
    }
}

impl Bench {
    /// With these `[[source]]` tables.
    pub fn new(sources: &str) -> Self {
        Self::with(sources, &[])
    }

    /// With these and these environment variables.
    pub fn with(sources: &str, variables: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let bench = Self::in_directory(directory.path(), sources, variables);
        Self { _directory: Some(directory), ..bench }
    }

    /// The same in a directory that is there, and stays.
    pub fn in_directory(directory: &Path, sources: &str, variables: &[(&str, &str)]) -> Self {
        let path = directory.join("agent.toml");
        let head =
            format!("coordinators = [\"https://localhost:1\"]\nstate_dir = {:?}\n", directory.join("state"));
        fs::write(&path, format!("{head}{sources}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let environment = Environment::fixed(variables.iter().copied());
        let config = Config::load(&path, &environment).unwrap();
        let env = SourceEnv::open(&config, environment).unwrap();
        Self { config, env, _directory: None }
    }

    /// Reads a source to its end.
    pub async fn run(&self, name: &str) -> Result<Events, SourceError> {
        self.run_until(name, CancellationToken::new()).await
    }

    /// The same, until it is cancelled.
    pub async fn run_until(&self, name: &str, cancel: CancellationToken) -> Result<Events, SourceError> {
        let (events, outcome) = self.collect(name, cancel).await;
        outcome.map(|()| events)
    }

    /// What was said, also where it failed.
    pub async fn run_all(&self, name: &str) -> (Events, Result<(), SourceError>) {
        self.collect(name, CancellationToken::new()).await
    }

    async fn collect(&self, name: &str, cancel: CancellationToken) -> (Events, Result<(), SourceError>) {
        let (out, mut events) = mpsc::channel(EVENTS_AHEAD);
        let source = self.config.source(name).expect("a source of that name");
        let read = async {
            let mut all = Events::default();
            while let Some(event) = events.recv().await {
                all.take(event);
            }
            all
        };
        let (outcome, mut all) = tokio::join!(source::run(source, &self.env, out, cancel), read);
        match outcome {
            Ok(summary) => {
                assert!(all.streams.iter().all(|stream| stream.ended.is_some()), "every stream ends");
                all.summary = summary;
                (all, Ok(()))
            }
            Err(error) => (all, Err(error)),
        }
    }

    /// Tries a source.
    pub async fn test(&self, name: &str) -> SourceCheck {
        let source = self.config.source(name).expect("a source of that name");
        source::test(source, &self.env, CancellationToken::new()).await
    }

    /// What lies in the temporary directory but its lock.
    pub fn temp_files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.env.temp.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "lock").collect()
    }
}

/// Waits until `done`, for a minute at most.
pub async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let poll = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), poll)
        .await
        .unwrap_or_else(|_| panic!("not within a minute: {what}"));
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Attributes of a stream, for comparing.
pub fn attributes(head: &StreamHead) -> BTreeMap<&str, &str> {
    head.attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// Process id, arguments and environment of the children of this process whose name contains `name`.
pub fn children_of_this_process(name: &str) -> Vec<(i32, String, String)> {
    let own = std::process::id().to_string();
    let read = |pid: &str, file: &str| {
        String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default())
            .replace('\0', " ")
    };
    let entries =
        fs::read_dir("/proc").unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mine = entries.filter(|pid| pid.parse::<i32>().is_ok()).filter(|pid| {
        let stat = read(pid, "stat");
        stat.rsplit_once(") ").is_some_and(|(before, rest)| {
            before.contains(name) && rest.split(' ').nth(1) == Some(own.as_str())
        })
    });
    mine.map(|pid| (pid.parse().unwrap(), read(&pid, "cmdline"), read(&pid, "environ"))).collect()
}
