//! Going through the tree: what is there, in the order of names, without ever following a link.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat, statat,
};
use rustix::io::Errno;
use sealift_proto::format::{CatalogEntry, EntryKind};

use super::archive::Archive;
use super::content::{SMALL, copy_large, read_small, size};
use super::tar::{Header, Type};
use crate::config::source::Directory;
use crate::source::error::SourceError;
use crate::source::locks;

/// Largest extended attribute and list of attributes, in bytes (Linux's own limits).
const MAX_ATTRIBUTE: usize = 64 * 1024;

/// A walk under way.
pub struct Walk<'a> {
    directory: &'a Directory,
    pub archive: Archive<'a>,
    root: OwnedFd,
    root_device: u64,
    /// First path of each file with several names, until all of them were met.
    links: HashMap<(u64, u64), Link>,
    owners: Owners,
    /// How many entries were archived.
    pub entries: u64,
}

struct Link {
    first_path: Vec<u8>,
    names_left: u64,
}

/// A directory whose entries are being archived.
struct Level {
    fd: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
}

/// Opens the directory of the source; it may itself be a link.
pub fn open_root(path: &Path) -> Result<OwnedFd, SourceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => unusable(path, "is not there: check path, and whether its file system is mounted"),
        Errno::NOTDIR => unusable(path, "is not a directory"),
        errno => SourceError::io("open", path)(errno.into()),
    })
}

fn unusable(path: &Path, problem: &str) -> SourceError {
    SourceError::Unusable { item: path.display().to_string(), problem: problem.to_owned() }
}

/// The names in a directory, in the order of their bytes.
pub fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    // A duplicate, not `Dir::read_from`: that opens "." anew, which a directory that may be listed but not entered refuses.
    for entry in Dir::new(rustix::io::dup(directory)?)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl<'a> Walk<'a> {
    /// Opens the directory.
    pub fn start(directory: &'a Directory, archive: Archive<'a>) -> Result<Self, SourceError> {
        let root = open_root(directory.path.as_path())?;
        let stat =
            fstat(&root).map_err(|e| SourceError::io("look at", directory.path.as_path())(e.into()))?;
        Ok(Self {
            directory,
            archive,
            root,
            root_device: stat.st_dev,
            links: HashMap::new(),
            owners: Owners::default(),
            entries: 0,
        })
    }

    /// Archives everything.
    pub fn run(&mut self) -> Result<(), SourceError> {
        let path = self.directory.path.as_path();
        let fail = |errno: Errno| SourceError::io("read", path)(errno.into());
        let root = rustix::io::dup(&self.root).map_err(fail)?;
        let stat = fstat(&root).map_err(fail)?;
        let names = names(&root).map_err(fail)?;
        if names.is_empty() {
            self.archive.warn(b".", "the directory is empty: is its file system mounted?")?;
        }
        let attributes = self.attributes(root.as_fd(), b".")?;
        self.add(Item { attributes, ..Item::new(b".", &stat, Type::Directory) })?;
        let mut levels = vec![Level { fd: root, path: Vec::new(), names: names.into_iter() }];
        while let Some(level) = levels.last_mut() {
            self.archive.check_cancelled()?;
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path =
                if level.path.is_empty() { name.clone() } else { [&level.path, &b"/"[..], &name].concat() };
            if let Some(below) = self.visit(level.fd.as_fd(), &name, path)? {
                levels.push(below);
            }
        }
        Ok(())
    }

    /// Archives one entry; a directory to be gone into is returned.
    fn visit(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<Option<Level>, SourceError> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return self.unreadable(&path, errno),
        };
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if self.directory.exclude.matches(Path::new(OsStr::from_bytes(&path)), file_type.is_dir()) {
            return Ok(None);
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match file_type {
            FileType::Directory => return self.visit_directory(parent, name, path, &stat),
            FileType::RegularFile => return self.visit_file(parent, name, &path, &stat),
            FileType::Symlink => {
                let link = match readlinkat(parent, name, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(errno) => return self.unreadable(&path, errno),
                };
                self.add(Item { link, ..Item::new(&path, &stat, Type::Symlink) })?;
                return Ok(None);
            }
            FileType::Fifo => Type::Fifo,
            FileType::CharacterDevice => Type::CharacterDevice { major, minor },
            FileType::BlockDevice => Type::BlockDevice { major, minor },
            // Tar knows no sockets, and nothing of one could be restored: the catalog says that it was there.
            FileType::Socket | FileType::Unknown => {
                let entry = Item::new(&path, &stat, Type::Fifo).catalog_entry(self.archive.offset());
                self.archive.catalog(entry)?;
                return Ok(None);
            }
        };
        self.add(Item::new(&path, &stat, kind))?;
        Ok(None)
    }

    fn visit_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<Option<Level>, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open_quietly(parent, name, flags).and_then(|fd| Ok((fstat(&fd)?, names(&fd)?, fd)));
        let (stat, names, fd) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => {
                self.add(Item::new(&path, stat, Type::Directory))?;
                return self.unreadable(&path, errno);
            }
        };
        let attributes = self.attributes(fd.as_fd(), &path)?;
        self.add(Item { attributes, ..Item::new(&path, &stat, Type::Directory) })?;
        if self.directory.one_filesystem && stat.st_dev != self.root_device {
            return Ok(None);
        }
        Ok(Some(Level { fd, path, names: names.into_iter() }))
    }

    fn visit_file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<Option<Level>, SourceError> {
        if let Some(first) = self.take_link(stat) {
            self.add(Item { link: first, ..Item::new(path, stat, Type::HardLink) })?;
            return Ok(None);
        }
        // Not blocking: what was a file a moment ago may be a fifo by now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let (stat, file) = match open_quietly(parent, name, flags).and_then(|fd| Ok((fstat(&fd)?, fd))) {
            Ok(opened) => opened,
            Err(errno) => return self.unreadable(path, errno),
        };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            self.archive.warn(path, "was replaced while it was opened")?;
            return Ok(None);
        }
        let added = self.add_file(file.as_fd(), path, &stat);
        // Not by dropping it: a SQLite source may hold a lock on this very file.
        locks::close(file, (stat.st_dev, stat.st_ino));
        if let Err(errno) = added? {
            return self.unreadable(path, errno);
        }
        if stat.st_nlink > 1 {
            let link = Link { first_path: path.to_vec(), names_left: stat.st_nlink - 1 };
            self.links.insert((stat.st_dev, stat.st_ino), link);
        }
        Ok(None)
    }

    /// Under which name this file is in the archive already.
    fn take_link(&mut self, stat: &Stat) -> Option<Vec<u8>> {
        let inode = (stat.st_dev, stat.st_ino);
        let link = self.links.get_mut(&inode)?;
        link.names_left = link.names_left.saturating_sub(1);
        if link.names_left > 0 {
            return Some(link.first_path.clone());
        }
        self.links.remove(&inode).map(|link| link.first_path)
    }

    /// The inner error is the file's, the outer one the backup's.
    fn add_file(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        stat: &Stat,
    ) -> Result<Result<(), Errno>, SourceError> {
        let attributes = self.attributes(file, path)?;
        let item = Item { attributes, ..Item::new(path, stat, Type::File) };
        if size(stat) > SMALL { self.add_large(file, item).map(Ok) } else { self.add_small(file, item) }
    }

    fn add_large(&mut self, file: BorrowedFd<'_>, item: Item<'_>) -> Result<(), SourceError> {
        let item = Item { size: size(item.stat), ..item };
        let mut entry = self.begin(&item)?;
        let (hash, problem) = copy_large(file, item.stat, &mut self.archive)?;
        self.archive.pad(item.size)?;
        if let Some(problem) = problem {
            self.archive.warn(item.path, problem)?;
        }
        entry.blake3 = hash.as_bytes().to_vec();
        self.archive.catalog(entry)
    }

    /// The inner error is the file's, the outer one the backup's.
    fn add_small(&mut self, file: BorrowedFd<'_>, item: Item<'_>) -> Result<Result<(), Errno>, SourceError> {
        let small = match read_small(file, *item.stat) {
            Ok(small) => small,
            Err(errno) => return Ok(Err(errno)),
        };
        let item = Item { size: small.bytes.len() as u64, stat: &small.stat, ..item };
        let mut entry = self.begin(&item)?;
        self.archive.write(&small.bytes)?;
        self.archive.pad(item.size)?;
        if small.changed {
            self.archive.warn(item.path, "changed while it was read")?;
        }
        entry.blake3 = blake3::hash(&small.bytes).as_bytes().to_vec();
        self.archive.catalog(entry).map(Ok)
    }

    /// Archives an entry without content.
    fn add(&mut self, item: Item<'_>) -> Result<(), SourceError> {
        let entry = self.begin(&item)?;
        self.archive.catalog(entry)
    }

    /// Writes an entry's header; its content and then its catalog entry are to follow.
    fn begin(&mut self, item: &Item<'_>) -> Result<CatalogEntry, SourceError> {
        let entry = item.catalog_entry(self.archive.offset());
        let header = item.header(&mut self.owners);
        self.archive.header(&header)?;
        self.entries += 1;
        Ok(entry)
    }

    /// Names what cannot be read; what is not there any more is no problem.
    fn unreadable(&mut self, path: &[u8], errno: Errno) -> Result<Option<Level>, SourceError> {
        if errno != Errno::NOENT {
            let reason = match errno {
                Errno::LOOP | Errno::NOTDIR => "was replaced while it was opened".to_owned(),
                errno => format!("cannot be read: {}", std::io::Error::from(errno)),
            };
            self.archive.warn(path, reason)?;
        }
        Ok(None)
    }

    /// All extended attributes, in the order of their names.
    fn attributes(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Result<Attributes, SourceError> {
        match read_attributes(file) {
            Ok(attributes) => Ok(attributes),
            Err(errno) => {
                let reason = std::io::Error::from(errno);
                self.archive.warn(path, format!("its extended attributes cannot be read: {reason}"))?;
                Ok(Vec::new())
            }
        }
    }
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

fn read_attributes(file: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    let mut list = vec![0; MAX_ATTRIBUTE];
    let len = match flistxattr(file, list.as_mut_slice()) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut attributes = Vec::new();
    for name in list.get(..len).unwrap_or_default().split(|c| *c == 0).filter(|name| !name.is_empty()) {
        // "=" would end the name in a pax record.
        if name.contains(&b'=') {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE];
        match fgetxattr(file, name, value.as_mut_slice()) {
            Ok(len) => value.truncate(len),
            // Removed meanwhile, or not for us to see.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => continue,
            Err(errno) => return Err(errno),
        }
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

/// Opens without leaving a trace in the access time, where that is allowed: its owner and root may.
fn open_quietly(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    match openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(parent, name, flags, Mode::empty()),
        other => other,
    }
}

/// An entry on its way into the archive.
struct Item<'a> {
    /// Below the directory; the directory itself is `.`.
    path: &'a [u8],
    stat: &'a Stat,
    kind: Type,
    link: Vec<u8>,
    attributes: Attributes,
    size: u64,
}

impl<'a> Item<'a> {
    fn new(path: &'a [u8], stat: &'a Stat, kind: Type) -> Self {
        Self { path, stat, kind, link: Vec::new(), attributes: Vec::new(), size: 0 }
    }

    fn header(&self, owners: &mut Owners) -> Header {
        let slash: &[u8] = if self.kind == Type::Directory { b"/" } else { b"" };
        Header {
            kind: self.kind,
            path: [self.path, slash].concat(),
            link: self.link.clone(),
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            user: owners.user(self.stat.st_uid),
            group: owners.group(self.stat.st_gid),
            size: self.size,
            modified: (self.stat.st_mtime, nanoseconds(self.stat)),
            attributes: self.attributes.clone(),
        }
    }

    fn catalog_entry(&self, tar_offset: u64) -> CatalogEntry {
        let file_type = FileType::from_raw_mode(self.stat.st_mode);
        let kind = match (self.kind, file_type) {
            (Type::HardLink, _) => EntryKind::Hardlink,
            (_, FileType::RegularFile) => EntryKind::File,
            (_, FileType::Directory) => EntryKind::Directory,
            (_, FileType::Symlink) => EntryKind::Symlink,
            _ => EntryKind::Other,
        };
        let seconds = i128::from(self.stat.st_mtime) * 1_000_000_000 + i128::from(nanoseconds(self.stat));
        CatalogEntry {
            path: self.path.to_vec(),
            kind: kind.into(),
            size: self.size,
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime_ns: i64::try_from(seconds).unwrap_or(if seconds < 0 { i64::MIN } else { i64::MAX }),
            tar_offset,
            tar_len: 0,
            link_target: self.link.clone(),
            blake3: Vec::new(),
        }
    }
}

fn nanoseconds(stat: &Stat) -> u32 {
    u32::try_from(stat.st_mtime_nsec).unwrap_or(0)
}

/// Names of users and groups, asked for once each.
#[derive(Default)]
struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    fn user(&mut self, uid: u32) -> String {
        use nix::unistd::{Uid, User};
        let name =
            || User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or(String::new(), |user| user.name);
        self.users.entry(uid).or_insert_with(name).clone()
    }

    fn group(&mut self, gid: u32) -> String {
        use nix::unistd::{Gid, Group};
        let name =
            || Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or(String::new(), |group| group.name);
        self.groups.entry(gid).or_insert_with(name).clone()
    }
}
