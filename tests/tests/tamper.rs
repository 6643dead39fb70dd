//! Any bit of any stored object that is not what it was: restores refuse, and name what is wrong. Forged, swapped and copied
//! objects are in `forgery.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Chance, Tampered, all_objects, manifests, packs, referred};
use sealift_tests::stage::Stage;

fn flip(offset: usize, bit: u8) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[offset] ^= 1 << bit
}

/// Where the parts of a pack begin: chunk index, directory, header, trailer.
struct Parts {
    index: usize,
    directory: usize,
    header: usize,
    trailer: usize,
    end: usize,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let (end, trailer) = (bytes.len(), bytes.len() - 20);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let header = trailer - word(trailer + 8);
        let directory = header - word(trailer + 4);
        Self { index: directory - word(trailer), directory, header, trailer, end }
    }

    /// One place in each part, by chance. Whether it is read by every restore that opens the pack.
    fn places(&self, chance: &mut Chance) -> Vec<(&'static str, usize, bool)> {
        let mut within = |what, from: usize, to: usize, always: bool| {
            (what, from + chance.below((to - from) as u64) as usize, always)
        };
        vec![
            within("frames", 8, self.index, false),
            within("chunk index", self.index, self.directory, false),
            within("directory", self.directory, self.header, true),
            within("header", self.header, self.trailer, true),
            within("lengths", self.trailer, self.end - 8, true),
            within("end magic", self.end - 8, self.end, true),
        ]
    }
}

fn object(cluster: &Cluster, name: &str) -> Vec<u8> {
    std::fs::read(cluster.objects().join(name)).unwrap()
}

#[test]
fn a_flipped_bit_of_a_manifest_policy_or_key_is_refused() {
    let stage = Stage::new();
    stage.works();
    let mut chance = Chance::new();
    let newest = manifests(&stage.cluster).into_iter().next_back().unwrap();
    let kinds = ["/manifests/", "trust/", "agents/"];
    for name in all_objects(&stage.cluster).iter().filter(|name| kinds.iter().any(|kind| name.contains(kind)))
    {
        let len = object(&stage.cluster, name).len();
        let half = chance.below(len as u64 / 2) as usize;
        // The older manifest is read when its backup is asked for.
        let older = name.contains("/manifests/") && *name != newest;
        let more: &[&str] = if older { &["--backup", &stage.backups[0]] } else { &[] };
        for offset in [half % 8, 8 + half % (len / 2 - 8), len / 2 + half, len - 1] {
            let bit = u8::try_from(chance.below(8)).unwrap();
            let told = format!("bit {bit} of byte {offset} of {name}");
            println!("{told}");
            let _tampered = Tampered::new(&stage.cluster, name, flip(offset, bit));
            stage.refused(&told, name, more);
        }
    }
    stage.works();
}

#[test]
fn a_flipped_bit_of_a_pack_is_refused() {
    let stage = Stage::new();
    let mut chance = Chance::new();
    let in_use = referred(&stage.cluster);
    for name in packs(&stage.cluster) {
        for (what, offset, always) in Parts::of(&object(&stage.cluster, &name)).places(&mut chance) {
            let bit = u8::try_from(chance.below(8)).unwrap();
            let told = format!("bit {bit} of byte {offset} ({what}) of {name}");
            println!("{told}");
            let _tampered = Tampered::new(&stage.cluster, &name, flip(offset, bit));
            // Of a pack of which little is needed, what is not needed is not read (docs/adr/0001): then it must come back
            // right, and `verify` speaks.
            if in_use.contains(&name) && (always || stage.restore(&[]).0.code != 0) {
                stage.refused(&told, &name, &[]);
            } else {
                stage.works();
            }
            let verified =
                stage.cluster.sealift(&["backup", "verify", "latest:store-1/one", "--level", "hash"]);
            let expected = if in_use.contains(&name) { 7 } else { 0 };
            assert_eq!(verified.code, expected, "{told}: {}", verified.stderr);
        }
    }
    stage.works();
}

/// One file is read by range: what is read of a pack for it is judged, and said by object and frame.
#[test]
fn a_flipped_bit_is_refused_when_one_file_is_restored() {
    let stage = Stage::new();
    let mut chance = Chance::new();
    let mut frames_named = 0;
    for name in referred(&stage.cluster) {
        for (what, offset, always) in Parts::of(&object(&stage.cluster, &name)).places(&mut chance) {
            let bit = u8::try_from(chance.below(8)).unwrap();
            let told = format!("bit {bit} of byte {offset} ({what}) of {name}");
            println!("{told}");
            let _tampered = Tampered::new(&stage.cluster, &name, flip(offset, bit));
            let mut refusals = 0;
            for file in ["file-0", "file-1", "file-2", "file-3", "file-4"] {
                let (answer, target) = stage.restore(&["--file", file]);
                stage.nothing_wrong_came_out(&target);
                if answer.code == 0 {
                    continue;
                }
                assert_eq!(answer.code, 7, "{told}, {file}: {}", answer.stderr);
                assert!(answer.stderr.contains(&name), "{told}, {file}: names another: {}", answer.stderr);
                refusals += 1;
                frames_named += u32::from(answer.stderr.contains(&format!(" of pack {name}")));
            }
            // The bit lies in what no file needs (of the catalog's frames, perhaps), or somebody noticed.
            assert!(refusals > 0 || !always, "{told}: nobody noticed");
        }
    }
    assert!(frames_named > 0, "no frame was named");
    stage.works();
}

/// The chunk index is for the host alone: with its cache lost and an index that was altered, it uploads those chunks anew.
#[test]
fn a_flipped_bit_of_a_chunk_index_costs_an_upload_and_nothing_else() {
    let mut stage = Stage::new();
    let mut chance = Chance::new();
    stage.agent.stop();
    std::fs::remove_dir_all(stage.agent.dir().join("state/index")).expect("the index cache");
    let before = packs(&stage.cluster);
    let tampered: Vec<Tampered> = before
        .iter()
        .map(|name| {
            let parts = Parts::of(&object(&stage.cluster, name));
            let offset = parts.index + chance.below((parts.directory - parts.index) as u64) as usize;
            Tampered::new(&stage.cluster, name, flip(offset, 3))
        })
        .collect();
    stage.agent.start();
    stage.cluster.wait_until_connected("store-1");
    let backup = stage.cluster.backup_ok("store-1/one");
    assert!(stage.agent.log().contains("uploaded anew"), "the agent says nothing of it");
    assert!(backup["new_raw_bytes"].as_u64().unwrap() >= 5 * (8 << 20), "{backup:#}");
    assert!(referred(&stage.cluster).is_disjoint(&before));
    stage.works();
    drop(tampered);
    stage.works();
}
