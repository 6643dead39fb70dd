//! Writes archive members below one directory, and nowhere else.
//!
//! Every path is walked from the directory's own descriptor, one component at a time, never following a link: neither one
//! from the archive nor one that lay there before. Files are written under a temporary name and renamed once their bytes
//! are known to be right, so whatever bears its real name is whole.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, geteuid, linkat, mkfifoat, symlinkat, unlinkat,
};

use super::RestoreError;
use super::tar::{Member, MemberKind};

const COPY_BUFFER: usize = 256 * 1024;
/// Runs of zeros of this length, aligned to it, become holes: archives hold sparse files with their zeros written out.
const HOLE: usize = 64 * 1024;
const DIR_FLAGS: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_RDONLY);

/// A path of an archive that cannot lead out of the target: plain components only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SafePath(Vec<Vec<u8>>);

impl SafePath {
    /// Checks a path: no absolute one, no `..`, no NUL; `.` components vanish.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(path: &[u8]) -> Result<Self, &'static str> {
        if path.first() == Some(&b'/') {
            return Err("it is absolute");
        }
        if path.contains(&0) {
            return Err("it holds a NUL");
        }
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err("it holds `..`"),
                name if name.len() > 255 => return Err("a component is longer than 255 bytes"),
                name => components.push(name.to_vec()),
            }
        }
        Ok(Self(components))
    }

    /// Whether it names the target directory itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The path as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }

    /// The path below `root`.
    pub fn below(&self, root: &Path) -> PathBuf {
        self.0.iter().fold(root.to_owned(), |path, component| path.join(OsStr::from_bytes(component)))
    }

    fn split_last(&self) -> Option<(&[u8], &[Vec<u8>])> {
        self.0.split_last().map(|(name, parents)| (name.as_slice(), parents))
    }
}

impl std::fmt::Display for SafePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

/// What to do beyond the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Extras {
    /// Give files to the owners they had; only root can.
    pub owners: bool,
}

impl Default for Extras {
    fn default() -> Self {
        Self { owners: geteuid().is_root() }
    }
}

/// Writes members below one directory.
#[derive(Debug)]
pub struct Extractor {
    root: Arc<OwnedFd>,
    /// Keeps a second restore away: it would take this one's temporary files for leftovers.
    _lock: Flock<File>,
    shown: PathBuf,
    extras: Extras,
    /// The directories from the root down to where the last member was put.
    trail: Vec<(Vec<u8>, Arc<OwnedFd>)>,
    /// Directories get their times and modes last: what is put into them would change the one and may need the other.
    directories: BTreeMap<SafePath, Member>,
    warnings: Vec<String>,
    buffer: Vec<u8>,
}

impl Extractor {
    /// Opens `target`, which must be a directory.
    ///
    /// # Errors
    /// [`RestoreError::Write`] where it cannot be opened.
    pub fn open(target: &Path, extras: Extras) -> Result<Self, RestoreError> {
        let root = nix::fcntl::open(target, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| RestoreError::write(target, errno))?;
        let twin = root.try_clone().map_err(|error| RestoreError::write(target, error))?;
        let lock =
            Flock::lock(File::from(twin), FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => RestoreError::Target {
                        path: target.to_owned(),
                        problem: "another restore is writing there".to_owned(),
                    },
                    other => RestoreError::write(target, other),
                },
            )?;
        Ok(Self {
            root: Arc::new(root),
            _lock: lock,
            shown: target.to_owned(),
            extras,
            trail: Vec::new(),
            directories: BTreeMap::new(),
            warnings: Vec::new(),
            buffer: vec![0; COPY_BUFFER],
        })
    }

    /// Writes one member. `data` gives the stored bytes of a file; `check` sees the file's BLAKE3 (holes count as zeros)
    /// before the file gets its name, and may refuse it.
    ///
    /// # Errors
    /// [`RestoreError`]: unsafe paths, failed writes, and what `check` says.
    pub fn put(
        &mut self,
        path: &SafePath,
        member: &Member,
        data: &mut dyn Read,
        check: &dyn Fn(blake3::Hash) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        if path.is_root() {
            if member.kind == MemberKind::Directory {
                self.directories.insert(path.clone(), member.clone());
            }
            return Ok(());
        }
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let parent = self.descend(parents)?;
        let shown = path.below(&self.shown);
        match member.kind {
            MemberKind::Directory => {
                self.directory(&parent, name, &shown)?;
                self.directories.insert(path.clone(), member.clone());
                Ok(())
            }
            MemberKind::File => self.file(&parent, name, &shown, member, data, check),
            MemberKind::Symlink => self.symlink(&parent, name, &shown, member),
            MemberKind::Hardlink => self.hardlink(&parent, name, &shown, member),
            MemberKind::Fifo => self.fifo(&parent, name, &shown, member),
            MemberKind::Other => {
                self.warnings.push(format!("{}: is no file that can be restored: left out", shown.display()));
                Ok(())
            }
        }
    }

    /// The file at `path` as it lies there, for comparing; `None` where there is none, or it is no regular file.
    pub fn existing(&mut self, path: &SafePath) -> Result<Option<File>, RestoreError> {
        let Some((name, parents)) = path.split_last() else { return Ok(None) };
        let mut at = self.root.clone();
        for component in parents {
            match openat(at.as_fd(), component.as_slice(), DIR_FLAGS, Mode::empty()) {
                Ok(fd) => at = Arc::new(fd),
                Err(_) => return Ok(None),
            }
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(fd) = openat(at.as_fd(), name, flags, Mode::empty()) else { return Ok(None) };
        let file = File::from(fd);
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Ok(regular.then_some(file))
    }

    /// Gives the directories their modes, owners and times, and hands out what could not be restored but spoils nothing.
    ///
    /// # Errors
    /// [`RestoreError::Write`] where a directory is gone.
    pub fn finish(mut self) -> Result<Vec<String>, RestoreError> {
        let directories = std::mem::take(&mut self.directories);
        // Deepest first: a directory's time changes when something is put into it.
        for (path, member) in directories.iter().rev() {
            let mut at = self.root.clone();
            for component in &path.0 {
                let fd = openat(at.as_fd(), component.as_slice(), DIR_FLAGS, Mode::empty());
                at = Arc::new(fd.map_err(|errno| RestoreError::write(path.below(&self.shown), errno))?);
            }
            let file =
                File::from(at.try_clone().map_err(|e| RestoreError::write(path.below(&self.shown), e))?);
            self.metadata(&file, &path.below(&self.shown), member)?;
        }
        Ok(self.warnings)
    }

    /// The directory that a member goes into; made where it is missing.
    fn descend(&mut self, parents: &[Vec<u8>]) -> Result<Arc<OwnedFd>, RestoreError> {
        let common = self.trail.iter().zip(parents).take_while(|((name, _), wanted)| name == *wanted).count();
        self.trail.truncate(common);
        for component in &parents[common..] {
            let at = self.trail.last().map_or(&self.root, |(_, fd)| fd).clone();
            let so_far =
                self.trail.iter().fold(self.shown.clone(), |p, (name, _)| p.join(OsStr::from_bytes(name)));
            self.directory(&at, component, &so_far.join(OsStr::from_bytes(component)))?;
            let fd = openat(at.as_fd(), component.as_slice(), DIR_FLAGS, Mode::empty())
                .map_err(|errno| not_a_directory(&so_far.join(OsStr::from_bytes(component)), errno))?;
            self.trail.push((component.clone(), Arc::new(fd)));
        }
        Ok(self.trail.last().map_or(&self.root, |(_, fd)| fd).clone())
    }

    fn directory(&self, parent: &OwnedFd, name: &[u8], shown: &Path) -> Result<(), RestoreError> {
        match mkdirat(parent.as_fd(), name, Mode::S_IRWXU) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => match openat(parent.as_fd(), name, DIR_FLAGS, Mode::empty()) {
                Ok(_) => Ok(()),
                Err(errno) => Err(not_a_directory(shown, errno)),
            },
            Err(errno) => Err(RestoreError::write(shown, errno)),
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        shown: &Path,
        member: &Member,
        data: &mut dyn Read,
        check: &dyn Fn(blake3::Hash) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let temp = Temp::new(parent, name, shown)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent.as_fd(), temp.name(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(fd.map_err(|errno| RestoreError::write(shown, errno))?);
        let whole = [(0, member.size)];
        let segments = member.segments.as_deref().unwrap_or(&whole);
        let hash = copy(data, &mut file, segments, member.size, &mut self.buffer, shown)?;
        check(hash)?;
        self.metadata(&file, shown, member)?;
        temp.rename(name, shown)
    }

    /// Owner first: changing it takes set-uid bits and capabilities away again. Times last.
    fn metadata(&mut self, file: &File, shown: &Path, member: &Member) -> Result<(), RestoreError> {
        use xattr::FileExt as _;
        let write = |errno: Errno| RestoreError::write(shown, errno);
        let mut mode = member.mode;
        if self.extras.owners {
            let (uid, gid) = owner(member);
            fchown(file, Some(uid), Some(gid)).map_err(write)?;
        } else {
            // The bits that lend the owner's power must not lend somebody else's.
            mode &= 0o1777;
        }
        for (name, value) in &member.xattrs {
            if let Err(error) = file.set_xattr(OsStr::from_bytes(name), value) {
                let name = String::from_utf8_lossy(name);
                self.warnings.push(format!("{}: extended attribute {name}: {error}", shown.display()));
            }
        }
        fchmod(file, Mode::from_bits_truncate(mode)).map_err(write)?;
        let time = mtime(member);
        futimens(file, &time, &time).map_err(write)
    }

    fn symlink(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        shown: &Path,
        member: &Member,
    ) -> Result<(), RestoreError> {
        let write = |errno: Errno| RestoreError::write(shown, errno);
        let temp = Temp::new(parent, name, shown)?;
        let target = CString::new(member.link_target.clone()).map_err(|_| write(Errno::EINVAL))?;
        symlinkat(target.as_c_str(), parent.as_fd(), temp.name()).map_err(write)?;
        if self.extras.owners {
            let (uid, gid) = owner(member);
            fchownat(parent.as_fd(), temp.name(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(write)?;
        }
        let time = mtime(member);
        utimensat(parent.as_fd(), temp.name(), &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(write)?;
        temp.rename(name, shown)
    }

    fn hardlink(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        shown: &Path,
        member: &Member,
    ) -> Result<(), RestoreError> {
        let bad = |problem: &str| RestoreError::Content {
            item: shown.display().to_string(),
            problem: problem.to_owned(),
        };
        let target = SafePath::parse(&member.link_target)
            .map_err(|why| bad(&format!("it links to a path that is refused: {why}")))?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(bad("it links to a directory"));
        };
        let mut at = self.root.clone();
        for component in target_parents {
            let fd = openat(at.as_fd(), component.as_slice(), DIR_FLAGS, Mode::empty());
            at = Arc::new(fd.map_err(|errno| not_a_directory(shown, errno))?);
        }
        let temp = Temp::new(parent, name, shown)?;
        // Without AT_SYMLINK_FOLLOW a link is made to a symlink itself, not to what it points at.
        linkat(at.as_fd(), target_name, parent.as_fd(), temp.name(), LinkatFlags::empty())
            .map_err(|errno| RestoreError::write(shown, errno))?;
        temp.rename(name, shown)
    }

    fn fifo(&self, parent: &OwnedFd, name: &[u8], shown: &Path, member: &Member) -> Result<(), RestoreError> {
        let write = |errno: Errno| RestoreError::write(shown, errno);
        let temp = Temp::new(parent, name, shown)?;
        mkfifoat(parent.as_fd(), temp.name(), Mode::from_bits_truncate(member.mode & 0o777))
            .map_err(write)?;
        if self.extras.owners {
            let (uid, gid) = owner(member);
            fchownat(parent.as_fd(), temp.name(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(write)?;
        }
        let time = mtime(member);
        utimensat(parent.as_fd(), temp.name(), &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(write)?;
        temp.rename(name, shown)
    }
}

fn owner(member: &Member) -> (Uid, Gid) {
    let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX - 1);
    (Uid::from_raw(id(member.uid)), Gid::from_raw(id(member.gid)))
}

fn mtime(member: &Member) -> TimeSpec {
    TimeSpec::new(member.mtime_s, i64::from(member.mtime_ns))
}

fn not_a_directory(shown: &Path, errno: Errno) -> RestoreError {
    match errno {
        Errno::ELOOP | Errno::ENOTDIR => RestoreError::Target {
            path: shown.to_owned(),
            problem: "a link or a file is in the way, and nothing is written through links".to_owned(),
        },
        other => RestoreError::write(shown, other),
    }
}

/// A temporary name in a directory; what bears it is removed unless it was renamed.
struct Temp<'a> {
    parent: &'a OwnedFd,
    name: CString,
    renamed: bool,
}

impl<'a> Temp<'a> {
    /// The name follows from the final one, so that what an interrupted restore left behind is replaced by the next.
    fn new(parent: &'a OwnedFd, name: &[u8], shown: &Path) -> Result<Self, RestoreError> {
        let digest = blake3::hash(name).to_hex();
        let name = format!(".sealift-{}.partial", digest.get(..16).unwrap_or_default());
        let name = CString::new(name).map_err(|_| RestoreError::write(shown, Errno::EINVAL))?;
        let _ = unlinkat(parent.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        Ok(Self { parent, name, renamed: false })
    }

    fn name(&self) -> &std::ffi::CStr {
        &self.name
    }

    fn fd(&self) -> BorrowedFd<'a> {
        self.parent.as_fd()
    }

    fn rename(mut self, name: &[u8], shown: &Path) -> Result<(), RestoreError> {
        renameat(self.fd(), self.name(), self.fd(), name)
            .map_err(|errno| RestoreError::write(shown, errno))?;
        // Renaming one hard link over another of the same file does nothing: then the temporary name is still there.
        let _ = unlinkat(self.fd(), self.name(), UnlinkatFlags::NoRemoveDir);
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = unlinkat(self.fd(), self.name(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn copy(
    data: &mut dyn Read,
    file: &mut File,
    segments: &[(u64, u64)],
    size: u64,
    buffer: &mut [u8],
    shown: &Path,
) -> Result<blake3::Hash, RestoreError> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    for (offset, len) in segments {
        hash_zeros(&mut hasher, offset - at);
        file.seek(SeekFrom::Start(*offset)).map_err(|e| RestoreError::write(shown, e))?;
        copy_segment(data, file, *len, buffer, &mut hasher, shown)?;
        at = offset + len;
    }
    hash_zeros(&mut hasher, size - at);
    file.set_len(size).map_err(|e| RestoreError::write(shown, e))?;
    Ok(hasher.finalize())
}

fn copy_segment(
    data: &mut dyn Read,
    file: &mut File,
    len: u64,
    buffer: &mut [u8],
    hasher: &mut blake3::Hasher,
    shown: &Path,
) -> Result<(), RestoreError> {
    let mut left = len;
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let mut filled = 0;
        while filled < room {
            match data.read(&mut buffer[filled..room]).map_err(|error| read_failed(error, shown))? {
                0 => return Err(read_failed(io::ErrorKind::UnexpectedEof.into(), shown)),
                n => filled += n,
            }
        }
        hasher.update(&buffer[..room]);
        write_with_holes(file, &buffer[..room]).map_err(|e| RestoreError::write(shown, e))?;
        left -= room as u64;
    }
    Ok(())
}

fn write_with_holes(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(HOLE) {
        if piece.len() == HOLE && piece.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(HOLE).unwrap_or(0)))?;
        } else {
            file.write_all(piece)?;
        }
    }
    Ok(())
}

/// Errors of the restore travel through [`Read`] inside of an [`io::Error`].
pub(super) fn read_failed(error: io::Error, shown: &Path) -> RestoreError {
    match error.downcast::<RestoreError>() {
        Ok(inner) => inner,
        Err(error) => RestoreError::Content { item: shown.display().to_string(), problem: error.to_string() },
    }
}

/// Feeds `len` zeros to a hasher.
pub fn hash_zeros(hasher: &mut blake3::Hasher, len: u64) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut left = len;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..n]);
        left -= n as u64;
    }
}

/// The BLAKE3 of a file, if it has `size` bytes; `None` otherwise.
pub fn hash_of(file: &File, size: u64) -> io::Result<Option<blake3::Hash>> {
    if fstat(file).map_err(io::Error::from)?.st_size as u64 != size {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok((hasher.count() == size).then(|| hasher.finalize()))
}

#[cfg(test)]
mod tests;
