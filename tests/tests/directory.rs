//! The main job with directories: every oddity comes back, and what cannot be read is named.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sealift_tests::cluster::Cluster;
use sealift_tests::scratch::Scratch;
use sealift_tests::tree;

fn source(path: &Path) -> String {
    format!(
        "[[source]]\nname = \"app-data\"\nkind = \"directory\"\npath = {:?}\nexclude = [\"*.log\", \"tmp/*\"]\n",
        path.display().to_string()
    )
}

#[test]
fn every_oddity_comes_back_online_and_offline() {
    let (scratch, cluster) = (Scratch::new("tree"), Cluster::dev());
    let original = scratch.private_dir("data");
    tree::make_oddities(&original);
    let _agent = cluster.agent("store-1", &source(&original));
    let backup = cluster.backup_ok("store-1/app-data");
    assert_eq!(backup["status"], "complete", "{backup:#}");

    let mut expected = tree::read(&original);
    expected.remove(&b"noise.log"[..]).expect("the excluded file is there");
    let online = cluster.restore(backup["id"].as_str().unwrap(), "online");
    assert_tree(&expected, &online);

    let series = backup["series_id"].as_str().unwrap();
    let offline = scratch.join("offline");
    let target = offline.display().to_string();
    cluster.restore_offline(&cluster.identity, &["--series", series, "--to", &target, "--yes"]).expect(0);
    assert_tree(&expected, &offline);
}

/// A restored directory lies in the target under its stream's name, or is the target itself.
fn assert_tree(expected: &std::collections::BTreeMap<Vec<u8>, tree::Entry>, target: &Path) {
    let mut found = tree::read(target);
    let mut expected = expected.clone();
    // The root itself is made by whoever restores.
    for tree in [&mut found, &mut expected] {
        tree.remove(&b""[..]);
    }
    tree::assert_equal(&expected, &found);
}

#[test]
fn one_file_comes_back_alone() {
    let (scratch, cluster) = (Scratch::new("tree"), Cluster::dev());
    let original = scratch.private_dir("data");
    tree::make_oddities(&original);
    let _agent = cluster.agent("store-1", &source(&original));
    cluster.backup_ok("store-1/app-data");
    let target = scratch.join("one");
    cluster.restore_to("latest:store-1/app-data", &target, &["--file", "a/b/c/deep.bin"]).expect(0);
    let found = tree::read(&target);
    let files: Vec<_> = found.iter().filter(|(_, entry)| entry.mode & 0o170_000 == 0o100_000).collect();
    assert_eq!(files.len(), 1, "{found:?}");
    assert_eq!(files[0].1, &tree::read(&original)[&b"a/b/c/deep.bin"[..]]);
    cluster.restore_to("latest:store-1/app-data", &scratch.join("none"), &["--file", "not/there"]).expect(4);
}

#[test]
fn unreadable_files_make_it_partial_and_are_named() {
    let (scratch, cluster) = (Scratch::new("tree"), Cluster::dev());
    let original = scratch.join("data");
    std::fs::create_dir_all(original.join("shut")).unwrap();
    std::fs::write(original.join("open.txt"), "open").unwrap();
    std::fs::write(original.join("secret.txt"), "secret").unwrap();
    std::fs::write(original.join("shut/in"), "in").unwrap();
    // Its owner is the one who runs the tests; the agent is somebody else.
    std::fs::set_permissions(&original, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(original.join("open.txt"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(original.join("secret.txt"), PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::set_permissions(original.join("shut"), PermissionsExt::from_mode(0o000)).unwrap();
    let _agent = cluster.agent_with("store-1", &source(&original), &[], Some("nobody"));

    let (run, code) = cluster.backup("store-1/app-data");
    assert_eq!((code, run["state"].as_str()), (3, Some("partial")), "{run:#}");
    let backup = cluster.json(&["backup", "show", "latest:store-1/app-data"]);
    assert_eq!(backup["status"], "partial");
    let warnings = backup["warnings"].to_string();
    assert!(warnings.contains("secret.txt") && warnings.contains("shut"), "{warnings}");
    assert!(!warnings.contains("open.txt"), "{warnings}");
}

#[test]
fn a_file_that_grows_while_it_is_read_keeps_the_archive_whole() {
    let (scratch, cluster) = (Scratch::new("tree"), Cluster::dev());
    let original = scratch.private_dir("data");
    std::fs::write(original.join("a-before"), "before").unwrap();
    std::fs::write(original.join("z-after"), "after").unwrap();
    let path = original.join("growing");
    std::fs::write(&path, tree::noise(1, 1 << 20)).unwrap();
    let _agent = cluster.agent("store-1", &source(&original));
    let stop = AtomicBool::new(false);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            // Bounded: a run that hangs must not fill the disk.
            for round in 0..20_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all(&tree::noise(round, 4096)).unwrap();
            }
        });
        let (_, code) = cluster.backup("store-1/app-data");
        stop.store(true, Ordering::Relaxed);
        code
    });
    // Whether it was seen to change is a matter of luck; what came before and after it must be whole.
    assert!(code == 0 || code == 3, "exit code {code}");
    let target = cluster.scratch().join("restored");
    let answer = cluster.restore_to("latest:store-1/app-data", &target, &["--force"]);
    assert!(answer.code == 0 || answer.code == 3, "{answer:?}");
    assert_eq!(std::fs::read(target.join("a-before")).unwrap(), b"before");
    assert_eq!(std::fs::read(target.join("z-after")).unwrap(), b"after");
    let (copy, whole) = (std::fs::read(target.join("growing")).unwrap(), std::fs::read(&path).unwrap());
    assert!(copy.len() >= 1 << 20 && whole.starts_with(&copy), "{} of {} bytes", copy.len(), whole.len());
}
