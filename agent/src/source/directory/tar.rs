//! Pax tar: headers that carry everything a file system knows, in bytes that are the same for the same files.
//!
//! The format is POSIX.1-2001 pax (`man 5 tar` of libarchive describes it well): a ustar header, before it an extended
//! header where ustar's fields are too small. Paths and attributes are bytes as they are, UTF-8 or not. Extended
//! attributes are `SCHILY.xattr.<name>` records, as GNU tar, star and libarchive write them. Sparse files are written out
//! with their zeros: those cost nothing once deduplicated, and every reader understands them.

use std::io;

/// Size of headers and padding, in bytes.
pub const BLOCK: u64 = 512;
/// Longest name, link target and user name of a ustar header, in bytes.
const MAX_NAME: usize = 100;
const MAX_OWNER: usize = 31;
/// Largest number of an 8-byte and a 12-byte octal field.
const MAX_ID: u64 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// What an entry of the archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    File,
    HardLink,
    Symlink,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// One entry's header.
#[derive(Debug, Clone)]
pub struct Header {
    pub kind: Type,
    /// Relative; directories end with `/`.
    pub path: Vec<u8>,
    /// Of links: where to.
    pub link: Vec<u8>,
    /// Permission bits, set-id bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub user: String,
    pub group: String,
    /// Bytes of content that follow.
    pub size: u64,
    /// Unix seconds, and nanoseconds after them.
    pub modified: (i64, u32),
    /// Extended attributes, in the order of their names.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    /// The header's blocks, extended header first.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let records = self.records();
        let mut out = Vec::with_capacity(3 * 512);
        if !records.is_empty() {
            out.extend_from_slice(extended_header(&self.path, records.len())?.as_bytes());
            out.extend_from_slice(&records);
            out.resize(out.len() + padding(records.len() as u64), 0);
        }
        out.extend_from_slice(self.ustar()?.as_bytes());
        Ok(out)
    }

    /// What ustar's fields are too small for.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.path.len() > MAX_NAME {
            record(&mut out, b"path", &self.path);
        }
        if self.link.len() > MAX_NAME {
            record(&mut out, b"linkpath", &self.link);
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > MAX_ID {
                record(&mut out, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        for (key, name) in [("uname", &self.user), ("gname", &self.group)] {
            if name.len() > MAX_OWNER || !name.is_ascii() {
                record(&mut out, key.as_bytes(), name.as_bytes());
            }
        }
        if self.size > MAX_SIZE {
            record(&mut out, b"size", self.size.to_string().as_bytes());
        }
        let (seconds, nanoseconds) = self.modified;
        if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|seconds| seconds <= MAX_SIZE) {
            record(&mut out, b"mtime", decimal_time(seconds, nanoseconds).as_bytes());
        }
        for (name, value) in &self.attributes {
            record(&mut out, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        out
    }

    fn ustar(&self) -> io::Result<tar::Header> {
        let mut header = tar::Header::new_ustar();
        put(&mut header.as_old_mut().name, &self.path);
        put(&mut header.as_old_mut().linkname, &self.link);
        header.set_mode(self.mode);
        header.set_uid(u64::from(self.uid).min(MAX_ID));
        header.set_gid(u64::from(self.gid).min(MAX_ID));
        header.set_size(self.size.min(MAX_SIZE));
        header.set_mtime(u64::try_from(self.modified.0).unwrap_or(0).min(MAX_SIZE));
        for (name, is_user) in [(&self.user, true), (&self.group, false)] {
            if name.len() <= MAX_OWNER && name.is_ascii() {
                if is_user { header.set_username(name)? } else { header.set_groupname(name)? }
            }
        }
        header.set_entry_type(match self.kind {
            Type::File => tar::EntryType::Regular,
            Type::HardLink => tar::EntryType::Link,
            Type::Symlink => tar::EntryType::Symlink,
            Type::CharacterDevice { .. } => tar::EntryType::Char,
            Type::BlockDevice { .. } => tar::EntryType::Block,
            Type::Directory => tar::EntryType::Directory,
            Type::Fifo => tar::EntryType::Fifo,
        });
        if let Type::CharacterDevice { major, minor } | Type::BlockDevice { major, minor } = self.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        header.set_cksum();
        Ok(header)
    }
}

/// The header of an extended header: named after the entry's last component, for tools that know no pax.
fn extended_header(path: &[u8], records_len: usize) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    let name = path.strip_suffix(b"/").unwrap_or(path).rsplit(|c| *c == b'/').next().unwrap_or_default();
    put(&mut header.as_old_mut().name, &[b"PaxHeaders/", name].concat());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records_len as u64);
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_cksum();
    Ok(header)
}

/// Copies what fits; what does not stands in a record.
fn put(field: &mut [u8], value: &[u8]) {
    field.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// Seconds as a decimal fraction: `-1.5` is what file systems call second -2 and half a second after it.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, rest) = (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{}", format!("{rest:09}").trim_end_matches('0'))
}

/// How many zeros fill the last block of `size` bytes.
pub fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn file(path: &[u8]) -> Header {
        Header {
            kind: Type::File,
            path: path.to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 1000,
            gid: 1000,
            user: "shop".to_owned(),
            group: "shop".to_owned(),
            size: 0,
            modified: (1_700_000_000, 0),
            attributes: Vec::new(),
        }
    }

    #[test]
    fn an_ordinary_file_needs_no_extended_header() {
        assert_eq!(file(b"a/b").encode().unwrap().len(), 512);
        assert_eq!(file(&[b'n'; 100]).encode().unwrap().len(), 512);
        assert_eq!(file(&[b'n'; 101]).encode().unwrap().len(), 3 * 512);
    }

    #[test]
    fn times_are_decimal_fractions() {
        assert_eq!(decimal_time(1, 500_000_000), "1.5");
        assert_eq!(decimal_time(-2, 500_000_000), "-1.5");
        assert_eq!(decimal_time(-1, 999_999_999), "-0.000000001");
        assert_eq!(decimal_time(-86_400, 0), "-86400");
    }

    #[test]
    fn padding_fills_a_block() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }

    /// The tar crate takes a line break for the end of a record; the length is what counts.
    fn records(block: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut rest, mut found) = (block, Vec::new());
        while !rest.is_empty() {
            let digits = rest.iter().position(|c| *c == b' ').unwrap();
            let len: usize = std::str::from_utf8(&rest[..digits]).unwrap().parse().unwrap();
            let (record, after) = rest.split_at(len);
            let body = record[digits + 1..].strip_suffix(b"\n").unwrap();
            let equals = body.iter().position(|c| *c == b'=').unwrap();
            found.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
            rest = after;
        }
        found
    }

    proptest! {
        #[test]
        fn records_say_their_length(records_in in proptest::collection::vec(
            ("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..2000)), 0..4)
        ) {
            let mut block = Vec::new();
            records_in.iter().for_each(|(key, value)| record(&mut block, key.as_bytes(), value));
            let expected: Vec<_> = records_in.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
            prop_assert_eq!(records(&block), expected);
        }

        #[test]
        fn the_tar_crate_reads_it_back(
            path in proptest::collection::vec(1u8..=255, 1..300),
            uid: u32,
            size in 0u64..4,
        ) {
            let path: Vec<u8> = path.iter().map(|c| if b"/\n".contains(c) { b'_' } else { *c }).collect();
            let header = Header { uid, size, ..file(&path) };
            let mut archive = header.encode().unwrap();
            archive.extend_from_slice(&b"abc"[..size as usize]);
            archive.resize(archive.len() + padding(size) + 1024, 0);
            let mut reader = tar::Archive::new(archive.as_slice());
            let mut entries = reader.entries().unwrap();
            let mut entry = entries.next().unwrap().unwrap();
            prop_assert_eq!(&*entry.path_bytes(), path.as_slice());
            prop_assert_eq!(entry.header().uid().unwrap(), u64::from(uid));
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            prop_assert_eq!(content.len() as u64, size);
            prop_assert!(entries.next().is_none());
        }
    }
}
