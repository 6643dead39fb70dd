//! A fleet whose bucket somebody else holds: two backups of a directory that fills several packs, and restores of them that
//! must be refused or be right.

use std::path::{Path, PathBuf};

use crate::agent::Agent;
use crate::cluster::{Answer, Cluster};
use crate::scratch::Scratch;
use crate::tree;

/// A fleet of one with two backups of a directory that fills several packs.
#[derive(Debug)]
pub struct Stage {
    /// The fleet.
    pub cluster: Cluster,
    /// Its host, `store-1`, with the sources `one` (backed up twice) and `two`.
    pub agent: Agent,
    /// Where the data lies, in `data`.
    pub scratch: Scratch,
    /// The series of `store-1/one`.
    pub series: String,
    /// Ids of its two backups, the older one first.
    pub backups: [String; 2],
    restored: std::cell::Cell<u32>,
}

impl Stage {
    /// Two backups of five files of 8 MiB, of which one changed in between.
    #[track_caller]
    pub fn new() -> Self {
        let (scratch, cluster) = (Scratch::new("stage"), Cluster::dev());
        let data = scratch.private_dir("data");
        for name in 0..5_u64 {
            std::fs::write(data.join(format!("file-{name}")), tree::noise(name + 1, 8 << 20)).unwrap();
        }
        let source = |name: &str| {
            let path = data.display().to_string();
            format!("[[source]]\nname = {name:?}\nkind = \"directory\"\npath = {path:?}\n")
        };
        let agent = cluster.agent("store-1", &(source("one") + &source("two")));
        let older = cluster.backup_ok("store-1/one");
        std::fs::write(data.join("file-3"), tree::noise(99, 8 << 20)).unwrap();
        let newer = cluster.backup_ok("store-1/one");
        let text = |value: &serde_json::Value| value.as_str().expect("an id").to_owned();
        let (series, backups) = (text(&newer["series_id"]), [text(&older["id"]), text(&newer["id"])]);
        Self { cluster, agent, scratch, series, backups, restored: std::cell::Cell::new(0) }
    }

    /// A directory that does not exist yet.
    pub fn target(&self) -> PathBuf {
        self.restored.set(self.restored.get() + 1);
        self.scratch.join(format!("restored-{}", self.restored.get()))
    }

    /// Offline, the newest backup, whole or as the further arguments say.
    #[track_caller]
    pub fn restore(&self, more: &[&str]) -> (Answer, PathBuf) {
        let target = self.target();
        let to = target.display().to_string();
        let mut arguments = vec!["--series", &self.series, "--to", &to, "--yes"];
        arguments.extend(more);
        (self.cluster.restore_offline(&self.cluster.identity, &arguments), target)
    }

    /// The restore is refused as a failed verification that names the object; gives what it said.
    #[track_caller]
    pub fn refused(&self, what: &str, object: &str, more: &[&str]) -> String {
        let (answer, target) = self.restore(more);
        assert_eq!(answer.code, 7, "{what}: {}", answer.stderr);
        // The hash at the end of the name, or the front of it, says which one.
        let hash = object.rsplit(['/', '-']).next().unwrap();
        assert!(answer.stderr.contains(&hash[..8]), "{what}: does not name {object}: {}", answer.stderr);
        self.nothing_wrong_came_out(&target);
        answer.stderr
    }

    /// Whatever a refused restore left behind is a true piece of what was backed up.
    #[track_caller]
    pub fn nothing_wrong_came_out(&self, target: &Path) {
        for name in 0..5 {
            let Ok(found) = std::fs::read(target.join(format!("file-{name}"))) else { continue };
            let original = std::fs::read(self.scratch.join(format!("data/file-{name}"))).unwrap();
            assert!(original.starts_with(&found), "file-{name} came out wrong");
        }
    }

    /// The newest backup comes back whole.
    #[track_caller]
    pub fn works(&self) {
        let (answer, target) = self.restore(&[]);
        answer.expect(0);
        tree::assert_equal(&files(&self.scratch.join("data")), &files(&target));
    }
}

fn files(root: &Path) -> std::collections::BTreeMap<Vec<u8>, tree::Entry> {
    let mut tree = tree::read(root);
    tree.remove(&b""[..]);
    tree
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}
