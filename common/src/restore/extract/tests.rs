//! Hostile archives, built by hand: none may write outside of its target, or through a link.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::restore::tar::TarReader;

fn member(path: &[u8], kind: MemberKind) -> Member {
    Member {
        path: path.to_vec(),
        kind,
        mode: 0o640,
        uid: u64::from(nix::unistd::getuid().as_raw()),
        gid: u64::from(nix::unistd::getgid().as_raw()),
        mtime_s: 1_000,
        mtime_ns: 7,
        size: 0,
        link_target: Vec::new(),
        xattrs: Vec::new(),
        segments: None,
    }
}

fn extractor(target: &Path) -> Extractor {
    Extractor::open(target, Extras::default()).unwrap()
}

fn put(extractor: &mut Extractor, member: &Member, data: &[u8]) -> Result<(), RestoreError> {
    let path = SafePath::parse(&member.path).map_err(|why| RestoreError::Target {
        path: PathBuf::from(OsStr::from_bytes(&member.path)),
        problem: why.to_owned(),
    })?;
    let member = Member { size: data.len() as u64, ..member.clone() };
    extractor.put(&path, &member, &mut &data[..], &|_| Ok(()))
}

#[test]
fn paths_that_lead_out_are_refused() {
    for bad in [b"/etc/passwd".as_slice(), b"../x", b"a/../../x", b"a/..", b"a\0b", &[b'a'; 256]] {
        assert!(SafePath::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
    assert!(SafePath::parse(b"./").unwrap().is_root());
    assert_eq!(SafePath::parse(b"./a//b/.").unwrap(), SafePath::parse(b"a/b").unwrap());
    assert!(SafePath::parse(b"...").is_ok());
}

#[test]
fn nothing_is_written_through_a_link_of_the_archive() {
    let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut extractor = extractor(target.path());
    let mut link = member(b"d", MemberKind::Symlink);
    link.link_target = outside.path().as_os_str().as_bytes().to_vec();
    put(&mut extractor, &link, b"").unwrap();
    let refused = put(&mut extractor, &member(b"d/evil", MemberKind::File), b"x").unwrap_err();
    assert!(matches!(refused, RestoreError::Target { .. }), "{refused}");
    let refused = put(&mut extractor, &member(b"d", MemberKind::Directory), b"").unwrap_err();
    assert!(matches!(refused, RestoreError::Target { .. }), "{refused}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn nothing_is_written_through_a_link_that_was_there_before() {
    let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("precious"), "kept").unwrap();
    symlink(outside.path(), target.path().join("d")).unwrap();
    symlink(outside.path().join("precious"), target.path().join("f")).unwrap();
    let mut extractor = extractor(target.path());
    assert!(put(&mut extractor, &member(b"d/x", MemberKind::File), b"evil").is_err());
    // A file replaces the link itself, not what it points at.
    put(&mut extractor, &member(b"f", MemberKind::File), b"new").unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("precious")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(target.path().join("f")).unwrap(), "new");
    assert!(fs::symlink_metadata(target.path().join("f")).unwrap().is_file());
}

#[test]
fn a_hard_link_cannot_reach_outside() {
    let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "s").unwrap();
    symlink(outside.path(), target.path().join("out")).unwrap();
    let mut extractor = extractor(target.path());
    for to in [secret.as_os_str().as_bytes(), b"../secret", b"out/secret"] {
        let mut link = member(b"l", MemberKind::Hardlink);
        link.link_target = to.to_vec();
        assert!(put(&mut extractor, &link, b"").is_err(), "{:?}", String::from_utf8_lossy(to));
    }
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
}

#[test]
fn a_file_that_is_refused_leaves_nothing_behind() {
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("f"), "old").unwrap();
    let mut extractor = extractor(target.path());
    let path = SafePath::parse(b"f").unwrap();
    let wanted = Member { size: 3, ..member(b"f", MemberKind::File) };
    let wrong = |_| Err(RestoreError::Content { item: "f".to_owned(), problem: "other bytes".to_owned() });
    assert!(extractor.put(&path, &wanted, &mut &b"new"[..], &wrong).is_err());
    assert!(extractor.put(&path, &wanted, &mut &b"ne"[..], &|_| Ok(())).is_err());
    assert_eq!(fs::read_to_string(target.path().join("f")).unwrap(), "old");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn metadata_comes_back_and_directories_get_theirs_last() {
    let target = tempfile::tempdir().unwrap();
    let mut extractor = extractor(target.path());
    let readonly = Member { mode: 0o500, mtime_s: 5, ..member(b"d", MemberKind::Directory) };
    put(&mut extractor, &readonly, b"").unwrap();
    let mut file = member(b"d/\xff\xfe", MemberKind::File);
    file.xattrs = vec![(b"user.note".to_vec(), b"a\nb".to_vec())];
    put(&mut extractor, &file, b"data").unwrap();
    let mut link = member(b"d/link", MemberKind::Symlink);
    link.link_target = b"/nowhere/at/all".to_vec();
    put(&mut extractor, &link, b"").unwrap();
    let mut hard = member(b"d/hard", MemberKind::Hardlink);
    hard.link_target = b"d/\xff\xfe".to_vec();
    put(&mut extractor, &hard, b"").unwrap();
    put(&mut extractor, &hard, b"").unwrap();
    put(&mut extractor, &member(b"d/pipe", MemberKind::Fifo), b"").unwrap();
    let warnings = extractor.finish().unwrap();
    assert!(warnings.iter().all(|warning| warning.contains("extended attribute")), "{warnings:?}");

    let dir = fs::metadata(target.path().join("d")).unwrap();
    assert_eq!((dir.permissions().mode() & 0o7777, dir.mtime()), (0o500, 5));
    let path = target.path().join("d").join(OsStr::from_bytes(b"\xff\xfe"));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (0o640, 1_000, 7));
    assert_eq!(metadata.nlink(), 2, "a temporary name was left behind");
    assert_eq!(fs::read_link(target.path().join("d/link")).unwrap(), Path::new("/nowhere/at/all"));
    if warnings.is_empty() {
        assert_eq!(xattr::get(&path, "user.note").unwrap().unwrap(), b"a\nb");
    }
    fs::set_permissions(target.path().join("d"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_sparse_file_keeps_its_holes_and_its_hash() {
    let mut archive = Vec::new();
    let name = "sparse.bin";
    let mut records = String::new();
    for record in [
        "GNU.sparse.major=1",
        "GNU.sparse.minor=0",
        "GNU.sparse.name=sparse.bin",
        "GNU.sparse.realsize=3145728",
    ] {
        let len = (1..).find(|n: &usize| n.to_string().len() + 2 + record.len() == *n).unwrap();
        records.push_str(&format!("{len} {record}\n"));
    }
    let block = |archive: &mut Vec<u8>, kind, path: &str, data: &[u8]| {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).unwrap();
        header.set_size(data.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    };
    block(&mut archive, ::tar::EntryType::XHeader, "x", records.as_bytes());
    let mut data = b"2\n1048576\n4\n3145728\n0\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"body");
    block(&mut archive, ::tar::EntryType::Regular, "GNUSparseFile.0/x", &data);
    archive.extend_from_slice(&[0; 1024]);

    let mut reader = TarReader::new(archive.as_slice());
    let member = reader.next_member().unwrap().unwrap();
    assert_eq!((member.path.as_slice(), member.size), (name.as_bytes(), 3 << 20));
    let target = tempfile::tempdir().unwrap();
    let mut extractor = extractor(target.path());
    let mut whole = vec![0; 3 << 20];
    whole[1 << 20..][..4].copy_from_slice(b"body");
    let expected = blake3::hash(&whole);
    let path = SafePath::parse(&member.path).unwrap();
    extractor
        .put(&path, &member, &mut reader, &|hash| {
            assert_eq!(hash, expected);
            Ok(())
        })
        .unwrap();
    assert_eq!(fs::read(target.path().join(name)).unwrap(), whole);
    assert!(
        fs::metadata(target.path().join(name)).unwrap().blocks() * 512 < 1 << 20,
        "the holes were filled"
    );
    assert!(reader.next_member().unwrap().is_none());
}

#[test]
fn a_sparse_map_that_leaves_its_file_is_refused() {
    for map in ["1\n0\n99\n", "2\n5\n3\n4\n1\n", "1\n18446744073709551615\n2\n", "x\n", "9999999999\n"] {
        let mut archive = Vec::new();
        let records = "22 GNU.sparse.major=1\n25 GNU.sparse.realsize=9\n21 GNU.sparse.name=f\n";
        for (kind, data) in [(::tar::EntryType::XHeader, records), (::tar::EntryType::Regular, map)] {
            let mut header = ::tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_path("f").unwrap();
            header.set_size(if kind == ::tar::EntryType::Regular { 512 } else { data.len() as u64 });
            header.set_mode(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            archive.extend_from_slice(data.as_bytes());
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        assert!(TarReader::new(archive.as_slice()).next_member().is_err(), "{map:?}");
    }
}
