//! Faults on demand: moments of a backup to kill something at, and stored objects that are not what they were.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sealift_proto::format::ManifestPublic;

use crate::cluster::Cluster;
use crate::scratch::Scratch;
use crate::{services, tree, wait};

/// Small numbers from a seed, printed with a failure so that it can be repeated (`SEALIFT_TEST_SEED`).
#[derive(Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// From the environment, or a new seed; prints it.
    pub fn new() -> Self {
        let given = std::env::var("SEALIFT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from_le_bytes(services::random()));
        println!("SEALIFT_TEST_SEED={seed}");
        Self { state: seed }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let bytes = tree::noise(self.state, 16);
        self.state = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes")) % bound
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

/// A `command` source that says so much, and then waits for the test's word.
#[derive(Debug)]
pub struct Gate {
    scratch: Scratch,
}

impl Gate {
    /// A gate behind which nothing is; before it, `bytes` that nothing else contains.
    #[track_caller]
    pub fn new(bytes: usize) -> Self {
        let scratch = Scratch::new("gate");
        let dir = scratch.path().display();
        let script = format!(
            "#!/bin/sh\ncat {dir}/data\necho $$ > {dir}/new\nmv {dir}/new {dir}/pid\n\
             while [ ! -e {dir}/open ]; do\n  if [ -e {dir}/broken ]; then echo 'the gate is broken' >&2; exit 1; fi\n  \
             sleep 0.05\ndone\n"
        );
        scratch.file("script", script, 0o700);
        let seed = u64::from_le_bytes(services::random());
        scratch.file("data", tree::noise(seed, bytes), 0o600);
        Self { scratch }
    }

    /// `[[source]]` of that name.
    pub fn source(&self, name: &str) -> String {
        let script = self.scratch.join("script").display().to_string();
        format!("[[source]]\nname = {name:?}\nkind = \"command\"\ncommand = [{script:?}]\n")
    }

    /// Waits until the source has said all and stands at the gate; its process id.
    #[track_caller]
    pub fn wait_until_reached(&self) -> u32 {
        wait::until("the source stands at the gate", || {
            std::fs::read_to_string(self.scratch.join("pid")).map(|pid| pid.trim().parse().expect("a pid"))
        })
    }

    /// Lets the source end well.
    pub fn open(&self) {
        self.scratch.file("open", "", 0o600);
    }

    /// Lets the source fail: `the gate is broken`.
    pub fn break_it(&self) {
        self.scratch.file("broken", "", 0o600);
    }

    /// As it was before anybody stood at it.
    pub fn close(&self) {
        for file in ["open", "broken", "pid"] {
            let _ = std::fs::remove_file(self.scratch.join(file));
        }
    }
}

/// Whether a process of this id runs.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A `command` source whose output is known and whose progress can be seen: it notes each block that it wrote.
#[derive(Debug)]
pub struct Feed {
    scratch: Scratch,
    blocks: u64,
}

const BLOCK: usize = 4 << 20;

impl Feed {
    /// A feed of `blocks` blocks of 4 MiB.
    #[track_caller]
    pub fn new(blocks: u64) -> Self {
        let scratch = Scratch::new("feed");
        let dir = scratch.path().display();
        let script = format!(
            "#!/bin/sh\nset -e\necho >> {dir}/runs\ni=0\nwhile [ $i -lt {blocks} ]; do\n  dd if={dir}/data bs=4M skip=$i count=1 status=none\n  \
             i=$((i + 1))\n  echo $i > {dir}/progress.new\n  mv {dir}/progress.new {dir}/progress\ndone\n"
        );
        scratch.file("script", script, 0o700);
        Self { scratch, blocks }
    }

    /// New content, of which nothing was stored before.
    #[track_caller]
    pub fn renew(&self, seed: u64) {
        let len = usize::try_from(self.blocks).expect("small") * BLOCK;
        self.scratch.file("data", tree::noise(seed, len), 0o600);
        let _ = std::fs::remove_file(self.scratch.join("progress"));
    }

    /// `[[source]]` of that name.
    pub fn source(&self, name: &str) -> String {
        let script = self.scratch.join("script").display().to_string();
        format!("[[source]]\nname = {name:?}\nkind = \"command\"\ncommand = [{script:?}]\n")
    }

    /// What the backup must give back.
    pub fn content(&self) -> Vec<u8> {
        std::fs::read(self.scratch.join("data")).expect("data")
    }

    /// Blocks written since the content was renewed, by the newest run of the command.
    pub fn progress(&self) -> u64 {
        let text = std::fs::read_to_string(self.scratch.join("progress")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// How often the command was run.
    pub fn runs(&self) -> usize {
        std::fs::read_to_string(self.scratch.join("runs")).unwrap_or_default().lines().count()
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// A moment of a backup that can be seen from outside.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// The source has written this many blocks.
    Read(u64),
    /// This many packs more than before are in the bucket.
    Stored(usize),
    /// Everything is read, and the manifest is on its way or there.
    Committing,
}

impl Moment {
    /// Twenty moments (or `count`) spread over a whole backup, the exact places by chance.
    pub fn spread(count: u64, feed: &Feed, packs: u64, chance: &mut Chance) -> Vec<Self> {
        (0..count)
            .map(|i| match i % 5 {
                0..=2 => {
                    let slice = feed.blocks().div_ceil(count);
                    Self::Read((i * slice + chance.below(slice.max(1))).min(feed.blocks()))
                }
                3 => Self::Stored(usize::try_from(1 + chance.below(packs)).expect("small")),
                _ => Self::Committing,
            })
            .collect()
    }

    /// Waits for this moment. Ends early where the run is over before it was seen.
    #[track_caller]
    pub fn wait(self, cluster: &Cluster, feed: &Feed, packs_before: usize, manifests_before: usize) {
        wait::until(&format!("{self:?}"), || {
            let (packs, manifests) = (packs(cluster).len() - packs_before, manifests(cluster).len());
            let reached = match self {
                Self::Read(blocks) => feed.progress() >= blocks,
                Self::Stored(count) => packs >= count,
                // The last block is read; packs are being finished, then the manifest.
                Self::Committing => feed.progress() == feed.blocks() && packs > 0,
            };
            if reached || manifests > manifests_before {
                Ok(())
            } else {
                Err(format!("{} blocks read, {packs} packs stored", feed.progress()))
            }
        });
    }
}

/// Names of the packs in the embedded server's bucket, relative to the prefix.
pub fn packs(cluster: &Cluster) -> BTreeSet<String> {
    objects(cluster, "/packs/")
}

/// Names of the manifests in the embedded server's bucket, relative to the prefix.
pub fn manifests(cluster: &Cluster) -> BTreeSet<String> {
    objects(cluster, "/manifests/")
}

/// Names of the packs that the newest manifest refers to.
#[track_caller]
pub fn referred(cluster: &Cluster) -> BTreeSet<String> {
    let newest = manifests(cluster).into_iter().next_back().expect("a manifest");
    let bytes = std::fs::read(cluster.objects().join(&newest)).expect("the manifest");
    let len = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")) as usize;
    let public: ManifestPublic = prost::Message::decode(&bytes[12..12 + len]).expect("a public part");
    let folder = newest.split("manifests/").next().expect("a folder");
    public.packs.iter().map(|pack| format!("{folder}packs/{}", hex::encode(&pack.sha256))).collect()
}

/// Names of all objects of the repository in the embedded server's bucket; without the coordinator's own marks, which come at
/// times of their own.
pub fn all_objects(cluster: &Cluster) -> BTreeSet<String> {
    let mut all = objects(cluster, "");
    all.retain(|name| !name.starts_with("coordinator/"));
    all
}

fn objects(cluster: &Cluster, kind: &str) -> BTreeSet<String> {
    let root = cluster.objects();
    let mut found = Vec::new();
    visit(&root, &mut found);
    let relative = found.iter().filter_map(|path| path.strip_prefix(&root).ok()?.to_str());
    relative.filter(|name| name.contains(kind)).map(str::to_owned).collect()
}

fn visit(dir: &Path, found: &mut Vec<PathBuf>) {
    // Objects come and go while this looks.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            visit(&path, found);
        } else if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            found.push(path);
        }
    }
}

/// An object of the embedded server, changed for as long as this lives.
#[derive(Debug)]
pub struct Tampered {
    path: PathBuf,
    original: Option<Vec<u8>>,
}

impl Tampered {
    /// Replaces an object's bytes by what `change` makes of them.
    #[track_caller]
    pub fn new(cluster: &Cluster, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let path = cluster.objects().join(name);
        let original = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut bytes = original.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).expect("write the object");
        Self { path, original: Some(original) }
    }

    /// Adds an object that was not there.
    #[track_caller]
    pub fn added(cluster: &Cluster, name: &str, bytes: &[u8]) -> Self {
        let path = cluster.objects().join(name);
        assert!(!path.exists(), "{name} is there already");
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        std::fs::write(&path, bytes).expect("write the object");
        Self { path, original: None }
    }

    /// Takes an object away.
    #[track_caller]
    pub fn removed(cluster: &Cluster, name: &str) -> Self {
        let path = cluster.objects().join(name);
        let original = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        std::fs::remove_file(&path).expect("remove the object");
        Self { path, original: Some(original) }
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        let _ = match &self.original {
            Some(bytes) => std::fs::write(&self.path, bytes),
            None => std::fs::remove_file(&self.path),
        };
    }
}
