//! Reads the pax tars that directory backups hold: POSIX headers, pax records with any bytes in them, GNU sparse files.
//!
//! The tar crate parses the 512-byte headers; its pax records end at newlines, which values of extended attributes may
//! contain, so records are read here. Everything is hostile: lengths are capped, numbers are bounded.

use std::io::{self, Read};

/// Most bytes of one set of pax records.
const MAX_RECORDS: u64 = 1 << 20;
/// Most segments of one sparse file.
const MAX_SEGMENTS: u64 = 1 << 20;
const BLOCK: u64 = 512;

/// Bytes that are no pax tar.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// A header or a record is not as it must be.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to [`Member::link_target`].
    Symlink,
    /// Another name of the member [`Member::link_target`].
    Hardlink,
    /// A named pipe.
    Fifo,
    /// Something that is not restored: a device, …
    Other,
}

/// One member's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As in the archive: not safe to use before it was checked.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits, without the type.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time: seconds since 1970.
    pub mtime_s: i64,
    /// Its nanoseconds, 0 to 999,999,999.
    pub mtime_ns: u32,
    /// Size of the file when restored.
    pub size: u64,
    /// Of links: the target, as in the archive.
    pub link_target: Vec<u8>,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of sparse files: where the stored bytes go (offset, length); everything else is zeros.
    pub segments: Option<Vec<(u64, u64)>>,
}

/// Takes an archive apart, member by member. The bytes of the current file are read through [`Read`].
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    /// Bytes of the current member that are stored and not yet read.
    left: u64,
    padding: u64,
}

/// What pax records say about the next member.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    sparse_path: Option<Vec<u8>>,
    sparse_size: Option<u64>,
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`, which may start at any member's first header.
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The next member; what was not read of the one before is skipped. `None` at the archive's end.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut records = Records::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| TarError::Malformed("a size is no number"))?;
            match header.entry_type().as_byte() {
                b'x' => records = Records::parse(&self.small(size)?)?,
                // Global records say nothing that a restore needs; long names are GNU's way to say `path`.
                b'g' => drop(self.small(size)?),
                b'L' => records.path = Some(until_nul(self.small(size)?)),
                b'K' => records.link_path = Some(until_nul(self.small(size)?)),
                kind => return self.member(kind, &header, records).map(Some),
            }
        }
    }

    fn member(&mut self, kind: u8, header: &tar::Header, records: Records) -> Result<Member, TarError> {
        let bad = TarError::Malformed;
        let kind = match kind {
            b'0' | 0 | b'7' => MemberKind::File,
            b'1' => MemberKind::Hardlink,
            b'2' => MemberKind::Symlink,
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            _ => MemberKind::Other,
        };
        let stored = match records.size {
            Some(size) => size,
            None => header.entry_size().map_err(|_| bad("a size is no number"))?,
        };
        let has_data = matches!(kind, MemberKind::File | MemberKind::Other);
        self.left = if has_data { stored } else { 0 };
        self.padding = self.left.next_multiple_of(BLOCK) - self.left;
        let mut member = Member {
            path: records.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind,
            mode: header.mode().map_err(|_| bad("a mode is no number"))? & 0o7777,
            uid: records.uid.map_or_else(|| header.uid(), Ok).map_err(|_| bad("an owner is no number"))?,
            gid: records.gid.map_or_else(|| header.gid(), Ok).map_err(|_| bad("a group is no number"))?,
            mtime_s: 0,
            mtime_ns: 0,
            size: self.left,
            link_target: records
                .link_path
                .unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default()),
            xattrs: records.xattrs,
            segments: None,
        };
        (member.mtime_s, member.mtime_ns) = match records.mtime {
            Some(mtime) => mtime,
            None => (header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or_default(), 0),
        };
        if records.sparse && kind == MemberKind::File {
            member.path = records.sparse_path.ok_or(bad("a sparse file has no name"))?;
            member.size = records.sparse_size.ok_or(bad("a sparse file has no size"))?;
            member.segments = Some(self.sparse_map(member.size)?);
        }
        Ok(member)
    }

    /// The map at the start of a sparse file's data (GNU sparse format 1.0): decimal numbers, a line each, padded to a block.
    fn sparse_map(&mut self, size: u64) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = TarError::Malformed;
        let mut taken = 0;
        let count = self.decimal_line(&mut taken)?;
        if count > MAX_SEGMENTS {
            return Err(bad("a sparse file has too many segments"));
        }
        let (mut segments, mut end, mut total) = (Vec::new(), 0, 0u64);
        for _ in 0..count {
            let (offset, len) = (self.decimal_line(&mut taken)?, self.decimal_line(&mut taken)?);
            let past = offset.checked_add(len).filter(|past| *past <= size && offset >= end);
            end = past.ok_or(bad("the segments of a sparse file overlap or leave it"))?;
            total = total.saturating_add(len);
            segments.push((offset, len));
        }
        let mut padding = vec![0; usize::try_from(u64::next_multiple_of(taken, BLOCK) - taken).unwrap_or(0)];
        self.read_exact(&mut padding).map_err(TarError::Read)?;
        if total != self.left {
            Err(bad("a sparse file's map and data differ in length"))
        } else {
            Ok(segments)
        }
    }

    fn decimal_line(&mut self, taken: &mut u64) -> Result<u64, TarError> {
        let mut number = 0u64;
        loop {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(TarError::Read)?;
            *taken += 1;
            let bad = TarError::Malformed("a sparse file's map is no list of numbers");
            number = match byte[0] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0'))).ok_or(bad)?
                }
                _ => return Err(bad),
            };
        }
    }

    /// The next header that is not zeros; `None` at the end.
    fn header(&mut self) -> Result<Option<tar::Header>, TarError> {
        let mut block = [0u8; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Malformed("it ends in the middle of a header")),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            // What follows are zeros to the end; they are read so that the stream's hash covers them.
            io::copy(&mut self.inner, &mut io::sink()).map_err(TarError::Read)?;
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(TarError::Malformed("a header's checksum does not hold"));
        }
        Ok(Some(header))
    }

    /// The whole data of a member that must be small.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_RECORDS {
            return Err(TarError::Malformed("a set of pax records is too long"));
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        self.read_exact(&mut data).map_err(TarError::Read)?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let skip = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let copied = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink()).map_err(TarError::Read)?;
        if copied == skip { Ok(()) } else { Err(TarError::Malformed("it ends in the middle of a member")) }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..room])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends in the middle of a member",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

impl Records {
    /// Parses `"<length> <key>=<value>\n"`, repeated; the length counts the whole record.
    fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let bad = || TarError::Malformed("a pax record is not LENGTH KEY=VALUE");
        let mut records = Self::default();
        while !data.is_empty() {
            let space = data.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let len: usize =
                std::str::from_utf8(&data[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
            let (record, rest) = data.split_at_checked(len).ok_or_else(bad)?;
            let body = record.get(space + 1..).and_then(|b| b.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            records.set(&body[..equals], &body[equals + 1..])?;
            data = rest;
        }
        Ok(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|t| t.parse::<u64>().ok()).ok_or(TarError::Malformed("a pax number is no number"))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                self.mtime = Some(parse_time(value).ok_or(TarError::Malformed("a pax time is no time"))?)
            }
            b"GNU.sparse.major" => {
                if value != b"1" {
                    return Err(TarError::Malformed("a sparse file is not in format 1.0"));
                }
                self.sparse = true;
            }
            b"GNU.sparse.name" => self.sparse_path = Some(value.to_vec()),
            b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `-12.5` → (-13, 500,000,000): the nanoseconds count forward, as in a `timespec`.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let ns: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && ns > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - ns))
    } else {
        Some((seconds, ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_fractions_are_read() {
        assert_eq!(parse_time(b"12"), Some((12, 0)));
        assert_eq!(parse_time(b"12.25"), Some((12, 250_000_000)));
        assert_eq!(parse_time(b"-12.5"), Some((-13, 500_000_000)));
        assert_eq!(parse_time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(parse_time(b"1.-5"), None);
        assert_eq!(parse_time(b""), None);
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let body = b"SCHILY.xattr.user.x=a\nb=\xff\0c";
        let len = body.len() + 4;
        let mut data = format!("{len} ").into_bytes();
        data.extend_from_slice(body);
        data.push(b'\n');
        let records = Records::parse(&data).unwrap();
        assert_eq!(records.xattrs, [(b"user.x".to_vec(), b"a\nb=\xff\0c".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            "5",
            "99 path=x\n",
            "9 path=xx",
            "0 \n",
            "7 pathx\n",
            "12 size=abcd\n",
            "18446744073709551615 a=b\n",
        ] {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_cksum();
        let mut block = header.as_bytes().to_vec();
        block[0] ^= 1;
        assert!(matches!(TarReader::new(block.as_slice()).next_member(), Err(TarError::Malformed(_))));
    }

    #[test]
    fn an_archive_cut_off_in_a_member_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_path("f").unwrap();
        header.set_size(1000);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&[1; 100]);
        let mut reader = TarReader::new(bytes.as_slice());
        assert_eq!(reader.next_member().unwrap().unwrap().size, 1000);
        assert!(io::copy(&mut reader, &mut io::sink()).is_err());
        let mut reader = TarReader::new(bytes.as_slice());
        reader.next_member().unwrap();
        assert!(reader.next_member().is_err());
    }
}
