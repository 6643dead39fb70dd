//! What somebody who holds the bucket can do: nothing that goes unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use sealift_tests::agent::Agent;
use sealift_tests::cluster::{Answer, Cluster};
use sealift_tests::faults::{Chance, Tampered, all_objects, manifests, packs};
use sealift_tests::scratch::Scratch;
use sealift_tests::tree;

/// A fleet of one with two backups of a directory that fills several packs.
struct Stage {
    cluster: Cluster,
    _agent: Agent,
    scratch: Scratch,
    series: String,
    restored: std::cell::Cell<u32>,
}

impl Stage {
    fn new() -> Self {
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
        cluster.backup_ok("store-1/one");
        std::fs::write(data.join("file-3"), tree::noise(99, 8 << 20)).unwrap();
        let backup = cluster.backup_ok("store-1/one");
        let series = backup["series_id"].as_str().unwrap().to_owned();
        Self { cluster, _agent: agent, scratch, series, restored: std::cell::Cell::new(0) }
    }

    fn target(&self) -> PathBuf {
        self.restored.set(self.restored.get() + 1);
        self.scratch.join(format!("restored-{}", self.restored.get()))
    }

    /// Offline, the newest backup, whole or a single file.
    fn restore(&self, more: &[&str]) -> (Answer, PathBuf) {
        let target = self.target();
        let to = target.display().to_string();
        let mut arguments = vec!["--series", &self.series, "--to", &to, "--yes"];
        arguments.extend(more);
        (self.cluster.restore_offline(&self.cluster.identity, &arguments), target)
    }

    /// The restore is refused as a failed verification that names the object.
    #[track_caller]
    fn refused(&self, what: &str, object: &str, more: &[&str]) {
        let (answer, target) = self.restore(more);
        assert_eq!(answer.code, 7, "{what}: {}", answer.stderr);
        // The hash at the end of the name, or the front of it, says which one.
        let hash = object.rsplit(['/', '-']).next().unwrap();
        assert!(answer.stderr.contains(&hash[..8]), "{what}: does not name {object}: {}", answer.stderr);
        self.nothing_wrong_came_out(&target);
    }

    /// Whatever a refused restore left behind is a true piece of what was backed up.
    #[track_caller]
    fn nothing_wrong_came_out(&self, target: &Path) {
        for name in 0..5 {
            let Ok(found) = std::fs::read(target.join(format!("file-{name}"))) else { continue };
            let original = std::fs::read(self.scratch.join(format!("data/file-{name}"))).unwrap();
            assert!(original.starts_with(&found), "file-{name} came out wrong");
        }
    }

    #[track_caller]
    fn works(&self) {
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

fn flip(offset: usize, bit: u8) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[offset] ^= 1 << bit
}

/// Offsets to try in an object of this kind, and what lies there.
fn places(name: &str, bytes: &[u8], chance: &mut Chance) -> Vec<(&'static str, usize)> {
    let word = |from_end: usize| {
        let at = bytes.len() - from_end;
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let mut within = |what, from: usize, to: usize| (what, from + chance.below((to - from) as u64) as usize);
    if name.contains("/packs/") {
        let (index, directory, header) = (word(20), word(16), word(12));
        let header_at = bytes.len() - 20 - header;
        let (directory_at, index_at) = (header_at - directory, header_at - directory - index);
        return vec![
            within("frames", 8, index_at),
            within("directory", directory_at, header_at),
            within("header", header_at, bytes.len() - 20),
            within("lengths", bytes.len() - 20, bytes.len() - 8),
            within("end magic", bytes.len() - 8, bytes.len()),
        ];
    }
    let len = bytes.len();
    vec![
        within("magic", 0, 8),
        within("first half", 8, len / 2),
        within("second half", len / 2, len),
        ("last byte", len - 1),
    ]
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let stage = Stage::new();
    stage.works();
    let mut chance = Chance::new();
    let newest = manifests(&stage.cluster).into_iter().next_back().unwrap();
    let kinds = ["/packs/", "/manifests/", "trust/", "agents/"];
    let objects = all_objects(&stage.cluster);
    for name in objects.iter().filter(|name| kinds.iter().any(|kind| name.contains(kind))) {
        // An older manifest is not read when the newest is restored.
        if name.contains("/manifests/") && *name != newest {
            continue;
        }
        let bytes = std::fs::read(stage.cluster.objects().join(name)).unwrap();
        for (what, offset) in places(name, &bytes, &mut chance) {
            let bit = u8::try_from(chance.below(8)).unwrap();
            let tampered = Tampered::new(&stage.cluster, name, flip(offset, bit));
            let told = format!("bit {bit} of byte {offset} ({what}) of {name}");
            println!("{told}");
            // Frames that the newest backup does not refer to are not read by its restore: there `verify` speaks.
            let unread = what == "frames" && stage.restore(&[]).0.code == 0;
            if unread {
                println!("not read by this restore");
            } else {
                stage.refused(&told, name, &[]);
            }
            if name.contains("/packs/") {
                let verify = ["backup", "verify", "latest:store-1/one", "--level", "hash"];
                let answer = stage.cluster.sealift(&verify);
                let in_use =
                    stage.cluster.json(&["backup", "show", "latest:store-1/one"])["packs"].as_u64().unwrap();
                assert!(
                    answer.code == 7 || in_use < packs(&stage.cluster).len() as u64,
                    "{told}: {}",
                    answer.stderr
                );
            }
            drop(tampered);
        }
    }
    stage.works();
}

#[test]
fn a_flipped_bit_is_refused_when_one_file_is_restored() {
    let stage = Stage::new();
    let mut chance = Chance::new();
    // Every frame of every pack: whichever holds the file is hit.
    let tampered: Vec<Tampered> = packs(&stage.cluster)
        .iter()
        .map(|name| {
            Tampered::new(&stage.cluster, name, |bytes| {
                let end = bytes.len() - 100_000;
                (100..end).step_by(50_000).for_each(|at| bytes[at] ^= 1 << chance.below(8));
            })
        })
        .collect();
    let (answer, target) = stage.restore(&["--file", "file-2"]);
    assert_eq!(answer.code, 7, "{}", answer.stderr);
    assert!(answer.stderr.contains("frame"), "names no frame: {}", answer.stderr);
    stage.nothing_wrong_came_out(&target);
    drop(tampered);
    stage.restore(&["--file", "file-2"]).0.expect(0);
}

#[test]
fn swapped_and_foreign_packs_are_refused() {
    let stage = Stage::new();
    let names: Vec<String> = packs(&stage.cluster).into_iter().collect();
    let read = |name: &String| std::fs::read(stage.cluster.objects().join(name)).unwrap();
    let (first, second) = (read(&names[0]), read(&names[1]));
    {
        let _one = Tampered::new(&stage.cluster, &names[0], |bytes| bytes.clone_from(&second));
        let _two = Tampered::new(&stage.cluster, &names[1], |bytes| bytes.clone_from(&first));
        let (answer, target) = stage.restore(&[]);
        assert_eq!(answer.code, 7, "swapped: {}", answer.stderr);
        stage.nothing_wrong_came_out(&target);
    }
    for name in &names {
        let _gone = Tampered::removed(&stage.cluster, name);
        let (answer, target) = stage.restore(&[]);
        if answer.code != 0 {
            assert!([4, 7].contains(&answer.code), "missing: {}", answer.stderr);
            assert!(answer.stderr.contains(&name.rsplit('/').next().unwrap()[..8]), "{}", answer.stderr);
        }
        stage.nothing_wrong_came_out(&target);
    }
    // Cut short, and longer than it was.
    let _short = Tampered::new(&stage.cluster, &names[0], |bytes| bytes.truncate(bytes.len() / 2));
    let _long = Tampered::new(&stage.cluster, &names[1], |bytes| bytes.extend_from_slice(b"more"));
    assert_eq!(stage.restore(&[]).0.code, 7);
}

#[test]
fn another_series_objects_are_refused() {
    let stage = Stage::new();
    let other = stage.cluster.backup_ok("store-1/two");
    let other = other["series_id"].as_str().unwrap();
    // The newest manifest and all packs of one series, copied under the other as a backup that follows.
    let objects: Vec<String> =
        all_objects(&stage.cluster).into_iter().filter(|name| name.contains(&stage.series)).collect();
    let mut added = Vec::new();
    for name in &objects {
        let bytes = std::fs::read(stage.cluster.objects().join(name)).unwrap();
        let copy = name.replace(&stage.series, other);
        if !stage.cluster.objects().join(&copy).exists() {
            added.push(Tampered::added(&stage.cluster, &copy, &bytes));
        }
    }
    let target = stage.target().display().to_string();
    let arguments = ["--series", other, "--to", &target, "--yes"];
    let answer = stage.cluster.restore_offline(&stage.cluster.identity, &arguments);
    assert_eq!(answer.code, 7, "{}", answer.stderr);
    assert!(!Path::new(&target).join("file-0").exists());
}

#[test]
fn a_rolled_back_series_is_noticed_by_the_coordinator() {
    let stage = Stage::new();
    let newest = manifests(&stage.cluster).into_iter().next_back().unwrap();
    let _gone = Tampered::removed(&stage.cluster, &newest);
    // Offline there is no witness: the older backup is all there is, and it is a good one.
    stage.restore(&[]).0.expect(0);
    // Online the coordinator has seen a newer one.
    let target = stage.target();
    let answer = stage.cluster.restore_to("latest:store-1/one", &target, &[]);
    assert!([4, 7].contains(&answer.code), "exit {}: {}", answer.code, answer.stderr);
    assert!(!target.join("file-0").exists());
}

#[test]
fn a_wrong_key_is_a_clear_error() {
    let stage = Stage::new();
    stage.cluster.new_identity("stranger.key");
    let stranger = stage.cluster.scratch().join("stranger.key");
    let target = stage.target();
    let arguments = ["--series", &stage.series, "--to", &target.display().to_string(), "--yes"];
    let answer = stage.cluster.restore_offline(&stranger, &arguments);
    assert_ne!(answer.code, 0);
    let error = answer.stderr.lines().find(|line| line.starts_with("error:")).expect("an error");
    assert!(error.contains("none of the identities"), "{}", answer.stderr);
    assert!(!target.join("file-0").exists());
}
