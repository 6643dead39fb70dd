//! Directories with every oddity, and what of a directory a backup must bring back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;

/// Makes a directory with what naive tools lose: links of both kinds, sparse and empty files, long and non-UTF-8 names,
/// modes, times, extended attributes, and links that lead outside. All of it readable by its owner.
#[track_caller]
pub fn make_oddities(root: &Path) {
    let file = |name: &[u8], content: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directory");
        std::fs::write(&path, content).expect("file");
        path
    };
    file(b"plain.txt", b"plain\n");
    file(b"empty", b"");
    file(b"a/b/c/deep.bin", &noise(1, 300_000));
    file(b"big.bin", &noise(2, 3_000_000));
    file(b"spaces and\nnewline\t.txt", b"x");
    file(b"-rf", b"looks like an option");
    file(b"\xff\xfe\x80not-utf8", b"bytes");
    file("ünï/日本語 🧿".as_bytes(), b"unicode");
    file("e\u{301}".as_bytes(), b"decomposed");
    file("\u{e9}".as_bytes(), b"composed");
    file(&[b'n'; 255], b"longest name");
    let deep: Vec<u8> =
        std::iter::repeat_n(&b"directory-with-a-name-of-some-length/"[..], 12).flatten().copied().collect();
    file(&[&deep[..], b"leaf"].concat(), b"longer than ustar's 256 bytes");
    file(b"*.glob?[x]", b"not a pattern");
    file(b"noise.log", b"excluded where a test says so");

    let first = file(b"linked", b"one file, three names");
    std::fs::hard_link(&first, root.join("a/linked-again")).expect("hard link");
    std::fs::hard_link(&first, root.join("zz-linked")).expect("hard link");
    symlink("plain.txt", root.join("to-file")).expect("symlink");
    symlink("a/b", root.join("to-directory")).expect("symlink");
    symlink("/etc/passwd", root.join("to-outside")).expect("symlink");
    symlink("../../../etc", root.join("to-outside-relative")).expect("symlink");
    symlink("nowhere", root.join("dangling")).expect("symlink");
    symlink("loop", root.join("loop")).expect("symlink");
    symlink(OsStr::from_bytes(&[b't'; 200]), root.join("to-long-target")).expect("symlink");

    sparse(&root.join("sparse.img"));
    std::fs::create_dir(root.join("empty-directory")).expect("directory");
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).expect("fifo");

    for (name, mode) in
        [("plain.txt", 0o604), ("empty", 0o400), ("-rf", 0o4755), ("a", 0o2750), ("empty-directory", 0o1777)]
    {
        std::fs::set_permissions(root.join(name), Permissions::from_mode(mode)).expect("mode");
    }
    xattr::set(root.join("plain.txt"), "user.sealift", b"\x00binary\xff").expect("extended attribute");
    xattr::set(root.join("a/b"), "user.on a directory", "é".as_bytes()).expect("extended attribute");
    set_time(&root.join("plain.txt"), SystemTime::UNIX_EPOCH + Duration::new(981_173_106, 123_456_789));
    set_time(&root.join("big.bin"), SystemTime::UNIX_EPOCH - Duration::from_secs(86_400));
    set_time(&root.join("a/b"), SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000));
}

/// Bytes that do not compress and are the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[track_caller]
fn sparse(path: &Path) {
    let file = File::create(path).expect("file");
    file.set_len(64 << 20).expect("length");
    file.write_at(b"start", 0).expect("write");
    file.write_at(&noise(3, 10_000), 40 << 20).expect("write");
}

#[track_caller]
fn set_time(path: &Path, modified: SystemTime) {
    File::open(path).expect("open").set_modified(modified).expect("time");
}

/// What one entry must come back as. Two trees are equal where their maps are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// File type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds of the last change; none for symlinks, whose time not every tool can set.
    pub modified: Option<(i64, i64)>,
    /// Length and hash of a file's content, or a link's target.
    pub content: String,
    /// Extended attributes in the `user` name space.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file with several names: the first of them, so that hard links are seen as such.
    pub same_as: Option<Vec<u8>>,
}

/// Reads a whole tree. Keys are paths relative to `root`, as bytes; the root itself is the empty key.
#[track_caller]
pub fn read(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut entries = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    visit(root, root, &mut entries);
    for (path, (inode, entry)) in &mut entries {
        // `visit` notes an inode only where a file has several names.
        if *inode != 0 {
            entry.same_as = Some(first_names.entry(*inode).or_insert_with(|| path.clone()).clone());
        }
    }
    entries.into_iter().map(|(path, (_, entry))| (path, entry)).collect()
}

type Found = BTreeMap<Vec<u8>, (u64, Entry)>;

#[track_caller]
fn visit(root: &Path, path: &Path, found: &mut Found) {
    let metadata = std::fs::symlink_metadata(path).expect("entry");
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", std::fs::read_link(path).expect("link"))
    } else if kind.is_file() {
        let bytes = std::fs::read(path).expect("file");
        format!("{} bytes, {}", bytes.len(), hash(&bytes))
    } else {
        String::new()
    };
    let attributes = if kind.is_file() || kind.is_dir() { attributes(path) } else { BTreeMap::new() };
    let entry = Entry {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        modified: (!kind.is_symlink()).then(|| (metadata.mtime(), metadata.mtime_nsec())),
        content,
        attributes,
        same_as: None,
    };
    let inode = if kind.is_file() && metadata.nlink() > 1 { metadata.ino() } else { 0 };
    let name = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes().to_vec();
    found.insert(name, (inode, entry));
    if kind.is_dir() {
        for child in std::fs::read_dir(path).expect("directory") {
            visit(root, &child.expect("entry").path(), found);
        }
    }
}

#[track_caller]
fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = xattr::list(path).expect("extended attributes");
    names
        .filter(|name| name.as_bytes().starts_with(b"user."))
        .map(|name| {
            let value = xattr::get(path, &name).expect("extended attribute").expect("listed");
            (name.as_bytes().to_vec(), value)
        })
        .collect()
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Panics with the differences, one a line, where two trees differ.
#[track_caller]
pub fn assert_equal(expected: &BTreeMap<Vec<u8>, Entry>, found: &BTreeMap<Vec<u8>, Entry>) {
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differences: Vec<String> = paths
        .into_iter()
        .filter(|path| expected.get(*path) != found.get(*path))
        .map(|path| {
            let name = String::from_utf8_lossy(path);
            format!("{name:?}\n  expected {:?}\n  found    {:?}", expected.get(path), found.get(path))
        })
        .collect();
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}
