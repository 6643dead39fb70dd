//! The independent restorer in Python (`tests/restorer/`) against the golden vectors of storage format 1: it reads what
//! Sealift writes, knowing only docs/format.md, and refuses what was altered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test reports by panicking

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sealift_tests::{tool, workspace};

fn golden() -> PathBuf {
    workspace().join("common/testdata/format-v1")
}

fn restore(bucket: &Path, arguments: &[&str]) -> Output {
    let vectors = std::fs::read(golden().join("vectors.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).unwrap();
    Command::new(tool("python"))
        .arg(workspace().join("tests/restorer/restore.py"))
        .arg(bucket)
        .args(["--root-key-sha256", vectors["root_key_sha256"].as_str().unwrap()])
        .args(arguments)
        .output()
        .expect("python starts")
}

/// Names and contents of all files below `root`.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn identity() -> String {
    golden().join("identity.txt").to_str().unwrap().to_owned()
}

#[test]
fn the_python_restorer_lists_and_restores_the_golden_repository() {
    let listed = restore(&golden().join("repository"), &[]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(text.lines().filter(|line| line.ends_with("complete\tcontinuous")).count(), 2, "{text}");

    let out = tempfile::tempdir().unwrap();
    let to = out.path().to_str().unwrap();
    let restored = restore(&golden().join("repository"), &["--identity", &identity(), "--to", to]);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert_eq!(files(out.path()), files(&golden().join("streams")));
}

#[test]
fn the_python_restorer_refuses_every_altered_object_and_a_wrong_key() {
    let scratch = tempfile::tempdir().unwrap();
    let bucket = scratch.path().join("bucket");
    let objects = files(&golden().join("repository"));
    for (name, bytes) in &objects {
        let path = bucket.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let to = scratch.path().join("out");
    let attempt = || restore(&bucket, &["--identity", &identity(), "--to", to.to_str().unwrap()]);
    assert!(attempt().status.success());
    for (name, bytes) in objects.iter().filter(|(name, _)| name != "sealift.json") {
        let mut altered = bytes.clone();
        altered[bytes.len() / 2] ^= 1;
        std::fs::write(bucket.join(name), altered).unwrap();
        let refused = attempt();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            !refused.status.success() && said.starts_with("refused: ") && said.contains(name.as_str()),
            "{said}"
        );
        std::fs::write(bucket.join(name), bytes).unwrap();
    }

    let stranger = scratch.path().join("stranger.txt");
    let made = Command::new("age-keygen").arg("-o").arg(&stranger).output().expect("age-keygen: install age");
    assert!(made.status.success());
    let refused = restore(&bucket, &["--identity", stranger.to_str().unwrap(), "--to", to.to_str().unwrap()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("opens no slot"), "{said}");
}
