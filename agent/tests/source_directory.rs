//! Directories as sources.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests panic as tests do

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message;
use sealift_agent::source::directory::{CATALOG_STREAM, TAR_STREAM};
use sealift_agent::source::{SourceError, StreamKind};
use sealift_proto::format::{CatalogEntry, EntryKind};
use sealift_tests::tree;
use support::{Bench, Events, attributes, wait_until};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn source(path: &Path, extra: &str) -> String {
    format!("[[source]]\nname = \"d\"\nkind = \"directory\"\npath = {path:?}\n{extra}\n")
}

fn catalog(events: &Events) -> Vec<CatalogEntry> {
    let mut bytes = events.stream(CATALOG_STREAM);
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        entries.push(CatalogEntry::decode_length_delimited(&mut bytes).unwrap());
    }
    entries
}

fn paths(events: &Events) -> Vec<String> {
    catalog(events).into_iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

/// Unpacks with the system's tar, the tool that people have at hand.
fn unpack(archive: &[u8]) -> TempDir {
    let target = TempDir::new().unwrap();
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--preserve-permissions",
        "--xattrs",
        "--xattrs-include=*",
        "--file=-",
        "--directory",
    ]);
    let mut child = tar.arg(target.path()).stdin(Stdio::piped()).spawn().expect("tar: apt-get install tar");
    child.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(child.wait().unwrap().success());
    target
}

#[tokio::test]
async fn every_oddity_comes_back() {
    let original = TempDir::new().unwrap();
    tree::make_oddities(original.path());
    // Line breaks where some readers take them for the end of a record.
    let odd = original.path().join("line\nbreak ".repeat(15));
    fs::write(&odd, "x").unwrap();
    xattr::set(&odd, "user.lines", b"one\ntwo=\n").unwrap();
    let bench = Bench::new(&source(original.path(), ""));
    let got = bench.run("d").await.unwrap();
    assert!(got.warnings.is_empty(), "{:?}", got.warnings);
    assert_eq!(got.names(), [TAR_STREAM, CATALOG_STREAM]);
    let (tar, cat) = (got.get(TAR_STREAM), got.get(CATALOG_STREAM));
    assert_eq!((tar.head.kind, cat.head.kind), (StreamKind::PaxTar, StreamKind::Catalog));
    assert_eq!(cat.head.catalog_of.as_deref(), Some(TAR_STREAM));
    assert_eq!(attributes(&tar.head)["path"], original.path().to_str().unwrap());
    let restored = unpack(got.stream(TAR_STREAM));
    tree::assert_equal(&tree::read(original.path()), &tree::read(restored.path()));
    // An unchanged tree gives the same bytes.
    let again = bench.run("d").await.unwrap();
    assert!(got.stream(TAR_STREAM) == again.stream(TAR_STREAM));
    assert!(got.stream(CATALOG_STREAM) == again.stream(CATALOG_STREAM));
    assert_eq!(bench.temp_files(), Vec::<String>::new());
}

#[tokio::test]
async fn the_catalog_finds_every_file_without_the_rest() {
    let original = TempDir::new().unwrap();
    tree::make_oddities(original.path());
    let got = Bench::new(&source(original.path(), "")).run("d").await.unwrap();
    let archive = got.stream(TAR_STREAM);
    let entries = catalog(&got);
    let mut end = 0;
    for entry in &entries {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        assert_eq!(entry.tar_offset, end, "{path}: entries lie back to back");
        end += entry.tar_len;
        let part = &archive[entry.tar_offset as usize..end as usize];
        let mut reader = tar::Archive::new(part);
        let mut files = reader.entries().unwrap();
        let mut file = files.next().unwrap_or_else(|| panic!("{path}: nothing")).unwrap();
        let found = file.path_bytes().into_owned();
        assert_eq!(found.strip_suffix(b"/").unwrap_or(&found), entry.path, "{path}");
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        if entry.kind() == EntryKind::File {
            assert_eq!(entry.size, content.len() as u64, "{path}");
            assert_eq!(entry.blake3, blake3::hash(&content).as_bytes(), "{path}");
            let on_disk = original.path().join(std::ffi::OsStr::from_bytes(&entry.path));
            assert!(fs::read(on_disk).unwrap() == content, "{path}");
        }
        assert!(files.next().is_none(), "{path}: more than one entry");
    }
    assert_eq!(end as usize + 1024, archive.len());
    let of = |path: &str| entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
    assert_eq!(of(".").kind(), EntryKind::Directory);
    assert_eq!(of("to-outside").link_target, b"/etc/passwd");
    assert_eq!(
        (of("zz-linked").kind(), of("zz-linked").link_target.as_slice()),
        (EntryKind::Hardlink, &b"a/linked-again"[..])
    );
    assert_eq!(of("fifo").kind(), EntryKind::Other);
    assert_eq!(of("plain.txt").mtime_ns, 981_173_106_123_456_789);
    let sorted = entries.windows(2).all(|pair| components(&pair[0]) < components(&pair[1]));
    assert!(sorted, "entries come in the order of their names");
}

fn components(entry: &CatalogEntry) -> Vec<Vec<u8>> {
    if entry.path == b"." {
        return Vec::new();
    }
    entry.path.split(|c| *c == b'/').map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn what_is_excluded_is_not_there() {
    let dir = TempDir::new().unwrap();
    for path in ["a.log", "b.txt", "tmp/x", "tmp/y/z", "deep/a.log", "deep/tmp/x", "cache/x", "deep/cache/x"]
    {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), path).unwrap();
    }
    let bench = Bench::new(&source(dir.path(), "exclude = [\"*.log\", \"tmp/*\", \"cache/\"]"));
    let got = bench.run("d").await.unwrap();
    assert_eq!(paths(&got), [".", "b.txt", "deep", "deep/tmp", "deep/tmp/x", "tmp"]);
    assert!(got.warnings.is_empty());
}

#[tokio::test]
async fn a_socket_is_noted_and_not_opened() {
    let dir = TempDir::new().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    fs::write(dir.path().join("z"), "z").unwrap();
    let got = Bench::new(&source(dir.path(), "")).run("d").await.unwrap();
    let entries = catalog(&got);
    assert_eq!(paths(&got), [".", "socket", "z"]);
    assert_eq!((entries[1].kind(), entries[1].tar_len), (EntryKind::Other, 0));
    assert!(unpack(got.stream(TAR_STREAM)).path().join("z").exists());
}

#[tokio::test]
async fn what_is_not_there_is_an_error_and_emptiness_a_warning() {
    let dir = TempDir::new().unwrap();
    let error = Bench::new(&source(&dir.path().join("gone"), "")).run("d").await.unwrap_err();
    assert!(matches!(error, SourceError::Unusable { .. }) && error.to_string().contains("gone"), "{error}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(
        Bench::new(&source(&file, "")).run("d").await.unwrap_err().to_string().contains("not a directory")
    );
    fs::remove_file(&file).unwrap();
    let got = Bench::new(&source(dir.path(), "")).run("d").await.unwrap();
    assert!(got.warnings[0].problem.contains("empty") && got.get(TAR_STREAM).ended == Some(true));
}

/// Writers that do not hold still: what is archived is a whole file of the size its header says, and named.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_meanwhile_are_named() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("still"), tree::noise(1, 2_000_000)).unwrap();
    let grow = dir.path().join("grows");
    fs::write(&grow, tree::noise(2, 20_000_000)).unwrap();
    // Large, so that reading it takes longer than the clock of the file system takes to tick.
    fs::File::create(dir.path().join("shrinks")).unwrap().set_len(100_000_000).unwrap();
    let stop = AtomicBool::new(false);
    let bench = Bench::new(&source(dir.path(), ""));
    let got = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().append(true).open(&grow).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"more\n").unwrap();
            }
        });
        scope.spawn(|| {
            let file = fs::OpenOptions::new().write(true).open(dir.path().join("shrinks")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.set_len(100_000_000).unwrap();
                file.set_len(90_000_000).unwrap();
            }
        });
        let got = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(bench.run("d")));
        stop.store(true, Ordering::Relaxed);
        got.unwrap()
    });
    let named: Vec<_> = got.warnings.iter().map(|warning| warning.item.as_str()).collect();
    assert_eq!(named, ["grows", "shrinks"], "{:?}", got.warnings);
    assert_eq!(got.get(TAR_STREAM).ended, Some(true));
    let restored = unpack(got.stream(TAR_STREAM));
    let read = |name: &str| fs::read(restored.path().join(name)).unwrap();
    assert!(read("still") == tree::noise(1, 2_000_000));
    assert!(read("grows").starts_with(&tree::noise(2, 20_000_000)));
    for entry in catalog(&got).iter().filter(|entry| entry.kind() == EntryKind::File) {
        let content = read(std::str::from_utf8(&entry.path).unwrap());
        assert_eq!(entry.blake3, blake3::hash(&content).as_bytes());
    }
}

/// Somebody who may write in the directory swaps a subdirectory for a link to a place with a secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_link_leads_nowhere() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("file"), "planted secret of somebody else").unwrap();
    let dir = TempDir::new().unwrap();
    let (inside, link, other) =
        (dir.path().join("sub"), dir.path().join("other-link"), dir.path().join("other"));
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("file"), "harmless").unwrap();
    symlink(outside.path(), &link).unwrap();
    let stop = AtomicBool::new(false);
    let bench = Bench::new(&source(dir.path(), ""));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(&inside, &other).unwrap();
                fs::rename(&link, &inside).unwrap();
                fs::rename(&inside, &link).unwrap();
                fs::rename(&other, &inside).unwrap();
            }
        });
        for _ in 0..300 {
            let got =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(bench.run("d")))
                    .unwrap();
            let secret = b"planted secret";
            assert!(!got.data().windows(secret.len()).any(|bytes| bytes == secret));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_and_dropping_end_the_reader() {
    let dir = TempDir::new().unwrap();
    let big = fs::File::create(dir.path().join("big")).unwrap();
    big.set_len(1 << 40).unwrap(); // a terabyte of hole, which takes minutes to send
    let bench = Bench::new(&source(dir.path(), ""));
    let readers = || threads_named("directory");
    let cancel = CancellationToken::new();
    let (outcome, ()) = tokio::join!(bench.run_until("d", cancel.clone()), async {
        wait_until("the reader runs", || readers() > 0).await;
        cancel.cancel();
    });
    assert!(matches!(outcome, Err(SourceError::Cancelled)));
    wait_until("the reader has ended", || readers() == 0).await;
    tokio::select! {
        _ = bench.run("d") => panic!("a terabyte takes longer"),
        () = wait_until("the reader runs", || readers() > 0) => {}
    }
    wait_until("the reader has ended", || readers() == 0).await;
}

fn threads_named(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
        .count()
}

/// Root reads everything, so that this test runs itself again as somebody else where it is root.
#[tokio::test]
async fn what_cannot_be_read_is_named_and_the_rest_is_there() {
    if nix::unistd::geteuid().is_root() {
        return again_as_nobody("what_cannot_be_read_is_named_and_the_rest_is_there");
    }
    let dir = TempDir::new().unwrap();
    for path in ["a", "closed/x", "half/x", "secret\nfile", "z"] {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), path).unwrap();
    }
    let set = |path: &str, mode| {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap()
    };
    set("closed", 0o000);
    set("half", 0o444); // may be listed, not entered
    set("secret\nfile", 0o000);
    let got = Bench::new(&source(dir.path(), "")).run("d").await;
    set("closed", 0o700);
    set("half", 0o700);
    let got = got.unwrap();
    let named: Vec<_> = got.warnings.iter().map(|warning| warning.item.as_str()).collect();
    assert_eq!(named, ["closed", "half/x", "secret\\nfile"]);
    assert!(
        got.warnings.iter().all(|warning| warning.problem.contains("Permission denied")),
        "{:?}",
        got.warnings
    );
    assert_eq!(paths(&got), [".", "a", "closed", "half", "z"]);
    assert_eq!((got.get(TAR_STREAM).ended, got.get(CATALOG_STREAM).ended), (Some(true), Some(false)));
}

fn again_as_nobody(test: &str) {
    let scratch = TempDir::new().unwrap();
    let (program, home) = (scratch.path().join("test"), scratch.path().join("home"));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::create_dir(&home).unwrap();
    let open = |path: &PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&scratch.path().to_owned(), 0o755);
    open(&program, 0o755);
    open(&home, 0o777);
    let mut command = Command::new(&program);
    command.args(["--exact", test]).env("TMPDIR", &home).current_dir("/").uid(65534).gid(65534);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
