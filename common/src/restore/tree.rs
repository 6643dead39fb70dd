//! Streams and directories become files below one directory.
//!
//! A directory backup is restored by its catalog: what is wanted is chosen from it, only those parts of the tar are read,
//! and each file gets its name when its own BLAKE3 is right. So a single file, a resumed restore and a whole one are the
//! same thing. The catalog is read twice rather than kept: it may have millions of entries.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use super::extract::{Extractor, Extras, SafePath, hash_of, read_failed};
use super::plan::joined;
use super::tar::{Member, MemberKind, TarError, TarReader};
use super::{OpenBackup, RestoreError, VerifiedReader};
use crate::format::catalog::{CatalogEntry, CatalogReader, EntryKind};
use crate::format::manifest::{Outcome, Stream, StreamKind};

/// What is wanted of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Everything,
    /// These files and directories with all that is in them.
    Paths(Vec<SafePath>),
}

/// How to restore to a directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct TreeOptions {
    /// Write into a directory that is not empty, replacing what is in the way; take streams that are not whole.
    pub force: bool,
    /// Go on with a restore that was interrupted: what is there and right is not read again.
    pub resume: bool,
    /// What to do beyond the bytes.
    pub extras: Extras,
}

/// How far a restore is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that will be written; grows as streams are looked at.
    pub total: AtomicU64,
    /// Bytes that were written.
    pub done: AtomicU64,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Files, directories and links that were written.
    pub written: u64,
    /// Files that were there already, whole and right.
    pub skipped: u64,
    /// Something is missing from what was backed up.
    pub partial: bool,
    /// What could not be restored but spoils nothing else.
    pub warnings: Vec<String>,
}

/// Restores to `target`. Blocks: call it on a thread that may.
///
/// # Errors
/// [`RestoreError`]. What was written by then is whole, file by file; `resume` goes on from there.
pub fn restore_tree(
    runtime: &Handle,
    backup: &OpenBackup,
    target: &Path,
    wanted: &Wanted,
    options: TreeOptions,
    progress: &Progress,
) -> Result<TreeReport, RestoreError> {
    let files: Vec<&Stream> =
        backup.content().streams.iter().filter(|stream| stream.kind != StreamKind::Catalog).collect();
    let fresh = prepare(target, options)?;
    let mut run = Run {
        runtime,
        backup,
        options,
        fresh,
        progress,
        extractor: Extractor::open(target, options.extras)?,
        report: TreeReport::default(),
    };
    let chosen = run.choose(&files, wanted)?;
    for part in chosen {
        backup.check_outcome(part.stream, options.force)?;
        run.report.partial |= part.stream.outcome != Outcome::Success;
        match part.how {
            How::File => run.stream_file(part.stream)?,
            How::Tree(selection) => run.tree(part.stream, &selection)?,
            How::Archive => run.archive(part.stream)?,
        }
    }
    run.report.warnings = run.extractor.finish()?;
    Ok(run.report)
}

/// Sees to a directory that may be written to; whether it was made for this.
fn prepare(target: &Path, options: TreeOptions) -> Result<bool, RestoreError> {
    let write = |error: io::Error| RestoreError::write(target, error);
    match fs::read_dir(target) {
        Ok(mut entries) => {
            if entries.next().is_none() || options.force || options.resume {
                return Ok(false);
            }
            Err(RestoreError::Target {
                path: target.to_owned(),
                problem:
                    "it is not empty: name another directory, say --resume to go on with a restore that was \
                          interrupted, or --force to replace what is in the way"
                        .to_owned(),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(target).map_err(write).map(|()| true)
        }
        Err(error) => Err(write(error)),
    }
}

/// One stream that is restored, and how.
struct Part<'a> {
    stream: &'a Stream,
    how: How,
}

enum How {
    /// As one file of the stream's name.
    File,
    /// Member by member, by its catalog.
    Tree(Selection),
    /// Member by member; it has no catalog.
    Archive,
}

/// Which entries of a catalog.
#[derive(Default)]
struct Selection {
    /// By position in the catalog.
    chosen: Vec<bool>,
    /// Where their members lie in the tar; not used where everything is chosen.
    ranges: Vec<Range<u64>>,
    /// Files that are restored under another name: that of a hard link to them that is wanted, while they are not.
    stand_ins: HashMap<SafePath, SafePath>,
}

impl Selection {
    fn is_everything(&self) -> bool {
        self.chosen.iter().all(|chosen| *chosen)
    }
}

struct Run<'a> {
    runtime: &'a Handle,
    backup: &'a OpenBackup,
    options: TreeOptions,
    /// The target was made for this, so it may get the mode and the owner of what it stands for.
    fresh: bool,
    progress: &'a Progress,
    extractor: Extractor,
    report: TreeReport,
}

impl<'a> Run<'a> {
    /// Decides for all streams before anything is written, so that a path that does not exist costs nothing.
    fn choose(&mut self, files: &[&'a Stream], wanted: &Wanted) -> Result<Vec<Part<'a>>, RestoreError> {
        let mut found = match wanted {
            Wanted::Everything => Vec::new(),
            Wanted::Paths(paths) => vec![false; paths.len()],
        };
        let mut parts = Vec::new();
        for stream in files {
            let how = match (stream.kind, self.catalog_of(stream)) {
                (StreamKind::PaxTar, Some(catalog)) => {
                    let selection = self.select(catalog, wanted, &mut found)?;
                    selection.chosen.contains(&true).then_some(How::Tree(selection))
                }
                (StreamKind::PaxTar, None) => (*wanted == Wanted::Everything).then_some(How::Archive),
                _ => self
                    .wants(&path_of(stream.name.as_bytes(), stream)?, wanted, &mut found)
                    .then_some(How::File),
            };
            parts.extend(how.map(|how| Part { stream, how }));
        }
        if let (Wanted::Paths(paths), Some(missing)) = (wanted, found.iter().position(|found| !found)) {
            let name = paths.get(missing).map(|path| path.to_string()).unwrap_or_default();
            let has = vec!["what `sealift browse` lists".to_owned()];
            return Err(RestoreError::NotInBackup { what: "file", name, has });
        }
        Ok(parts)
    }

    fn catalog_of(&self, tar: &Stream) -> Option<&'a Stream> {
        self.backup
            .content()
            .streams
            .iter()
            .find(|stream| stream.catalog_of.as_deref() == Some(tar.name.as_str()))
    }

    fn wants(&self, path: &SafePath, wanted: &Wanted, found: &mut [bool]) -> bool {
        let Wanted::Paths(paths) = wanted else { return true };
        let mut any = false;
        for (wanted, found) in paths.iter().zip(found) {
            if path.is_within(wanted) {
                *found = true;
                any = true;
            }
        }
        any
    }

    fn select(
        &mut self,
        catalog: &Stream,
        wanted: &Wanted,
        found: &mut [bool],
    ) -> Result<Selection, RestoreError> {
        let mut selection = Selection::default();
        let mut entries = Entries::open(self.runtime, self.backup, catalog)?;
        while let Some(entry) = entries.next()? {
            let path = path_of(&entry.path, catalog)?;
            let mut chosen = self.wants(&path, wanted, found);
            if chosen && entry.kind == EntryKind::Hardlink {
                chosen = self.link_is_enough(&entry, path, wanted, &mut selection, catalog)?;
            } else if !chosen && entry.kind == EntryKind::Directory {
                // Directories above what is wanted come back with their modes.
                chosen = matches!(wanted, Wanted::Paths(paths) if paths.iter().any(|wanted| wanted.is_within(&path)));
            } else if chosen && entry.kind == EntryKind::File && self.is_there(&path, &entry)? {
                self.report.skipped += 1;
                chosen = false;
            }
            selection.chosen.push(chosen);
            if chosen {
                self.add(&mut selection, &entry, catalog)?;
            }
        }
        if !selection.stand_ins.is_empty() {
            self.add_stand_ins(&mut selection, catalog)?;
        }
        selection.ranges = joined(selection.ranges);
        Ok(selection)
    }

    fn add(
        &self,
        selection: &mut Selection,
        entry: &CatalogEntry,
        catalog: &Stream,
    ) -> Result<(), RestoreError> {
        let end = entry
            .tar_offset
            .checked_add(entry.tar_len)
            .ok_or_else(|| malformed(catalog, "an entry has no end"))?;
        match selection.ranges.last_mut() {
            Some(last) if last.end == entry.tar_offset => last.end = end,
            _ => selection.ranges.push(entry.tar_offset..end),
        }
        self.progress.total.fetch_add(entry.size, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a wanted hard link can be restored as a link: not where the file it links to is not wanted itself. Then the
    /// first such link becomes the file.
    fn link_is_enough(
        &self,
        entry: &CatalogEntry,
        path: SafePath,
        wanted: &Wanted,
        selection: &mut Selection,
        catalog: &Stream,
    ) -> Result<bool, RestoreError> {
        let Wanted::Paths(paths) = wanted else { return Ok(true) };
        let target = path_of(&entry.link_target, catalog)?;
        if paths.iter().any(|wanted| target.is_within(wanted)) || selection.stand_ins.contains_key(&target) {
            return Ok(true);
        }
        selection.stand_ins.insert(target, path);
        Ok(false)
    }

    fn add_stand_ins(&self, selection: &mut Selection, catalog: &Stream) -> Result<(), RestoreError> {
        let mut entries = Entries::open(self.runtime, self.backup, catalog)?;
        let mut number = 0;
        while let Some(entry) = entries.next()? {
            if selection.stand_ins.contains_key(&path_of(&entry.path, catalog)?) {
                if let Some(chosen) = selection.chosen.get_mut(number) {
                    *chosen = true;
                }
                self.add(selection, &entry, catalog)?;
            }
            number += 1;
        }
        Ok(())
    }

    fn is_there(&mut self, path: &SafePath, entry: &CatalogEntry) -> Result<bool, RestoreError> {
        match (self.options.resume, entry.blake3) {
            (true, Some(blake3)) => self.same(path, entry.size, blake3),
            _ => Ok(false),
        }
    }

    fn same(&mut self, path: &SafePath, size: u64, blake3: [u8; 32]) -> Result<bool, RestoreError> {
        let Some(file) = self.extractor.existing(path)? else { return Ok(false) };
        // A file that cannot be read is simply written again.
        Ok(hash_of(&file, size).ok().flatten().is_some_and(|hash| hash == blake3))
    }

    fn stream_file(&mut self, stream: &Stream) -> Result<(), RestoreError> {
        let path = path_of(stream.name.as_bytes(), stream)?;
        if self.options.resume && self.same(&path, stream.raw_len, stream.blake3)? {
            self.report.skipped += 1;
            return Ok(());
        }
        self.progress.total.fetch_add(stream.raw_len, Ordering::Relaxed);
        let created = self.backup.public().created;
        let member = Member {
            path: stream.name.clone().into_bytes(),
            kind: MemberKind::File,
            mode: 0o600,
            uid: nix::unistd::geteuid().as_raw().into(),
            gid: nix::unistd::getegid().as_raw().into(),
            mtime_s: created.0.div_euclid(1000),
            mtime_ns: u32::try_from(created.0.rem_euclid(1000) * 1_000_000).unwrap_or(0),
            size: stream.raw_len,
            link_target: Vec::new(),
            xattrs: Vec::new(),
            segments: None,
        };
        let reader = self.backup.read(stream)?.blocking(self.runtime.clone());
        let mut data = Counted { inner: reader, progress: self.progress };
        let check = |hash: blake3::Hash| match hash == stream.blake3 {
            true => Ok(()),
            false => Err(malformed(stream, "its BLAKE3 differs")),
        };
        self.extractor.put(&path, &member, &mut data, &check)?;
        self.report.written += 1;
        Ok(())
    }

    fn tree(&mut self, tar: &Stream, selection: &Selection) -> Result<(), RestoreError> {
        let Some(catalog) = self.catalog_of(tar) else { return Ok(()) };
        let whole = selection.is_everything();
        let reader: Box<dyn Read> = if whole {
            Box::new(VerifiedReader::new(self.backup.read(tar)?.blocking(self.runtime.clone()), tar))
        } else {
            Box::new(self.backup.read_ranges(tar, selection.ranges.clone())?.blocking(self.runtime.clone()))
        };
        let mut members = TarReader::new(reader);
        let mut entries = Entries::open(self.runtime, self.backup, catalog)?;
        let mut number = 0;
        while let Some(entry) = entries.next()? {
            if selection.chosen.get(number) == Some(&true) {
                let member = members.next_member().map_err(|error| tar_error(error, tar))?;
                let member = member.ok_or_else(|| malformed(tar, "it ends before its catalog does"))?;
                self.member(tar, &entry, member, &mut members, selection)?;
            }
            number += 1;
        }
        if whole && members.next_member().map_err(|error| tar_error(error, tar))?.is_some() {
            return Err(malformed(tar, "it has members that its catalog does not name"));
        }
        Ok(())
    }

    fn member(
        &mut self,
        tar: &Stream,
        entry: &CatalogEntry,
        mut member: Member,
        data: &mut dyn Read,
        selection: &Selection,
    ) -> Result<(), RestoreError> {
        let mut path = path_of(&member.path, tar)?;
        if path != path_of(&entry.path, tar)? || !same_kind(entry.kind, member.kind) {
            return Err(malformed(tar, "it has other members than its catalog names"));
        }
        if path.is_root() && !self.fresh {
            return Ok(());
        }
        if let Some(other) = selection.stand_ins.get(&path) {
            path = other.clone();
        }
        if member.kind == MemberKind::Hardlink
            && let Some(other) = selection.stand_ins.get(&path_of(&member.link_target, tar)?)
        {
            member.link_target = other.to_bytes();
        }
        let check = |hash: blake3::Hash| match entry.blake3 {
            Some(expected) if hash != expected => Err(RestoreError::Content {
                item: path.to_string(),
                problem: "its BLAKE3 differs".to_owned(),
            }),
            _ => Ok(()),
        };
        let mut data = Counted { inner: data, progress: self.progress };
        self.extractor.put(&path, &member, &mut data, &check)?;
        self.report.written += 1;
        Ok(())
    }

    /// A tar without a catalog: all of it, and the stream's own hash at the end.
    fn archive(&mut self, tar: &Stream) -> Result<(), RestoreError> {
        self.progress.total.fetch_add(tar.raw_len, Ordering::Relaxed);
        let reader = VerifiedReader::new(self.backup.read(tar)?.blocking(self.runtime.clone()), tar);
        let mut members = TarReader::new(Counted { inner: reader, progress: self.progress });
        while let Some(member) = members.next_member().map_err(|error| tar_error(error, tar))? {
            let path = path_of(&member.path, tar)?;
            self.extractor.put(&path, &member, &mut members, &|_| Ok(()))?;
            self.report.written += 1;
        }
        Ok(())
    }
}

fn same_kind(entry: EntryKind, member: MemberKind) -> bool {
    matches!(
        (entry, member),
        (EntryKind::File, MemberKind::File)
            | (EntryKind::Directory, MemberKind::Directory)
            | (EntryKind::Symlink, MemberKind::Symlink)
            | (EntryKind::Hardlink, MemberKind::Hardlink)
            | (EntryKind::Other, MemberKind::Fifo | MemberKind::Other)
    )
}

fn path_of(path: &[u8], stream: &Stream) -> Result<SafePath, RestoreError> {
    SafePath::parse(path).map_err(|why| RestoreError::Content {
        item: stream.name.clone(),
        problem: format!("the path {:?} in it is refused: {why}", String::from_utf8_lossy(path)),
    })
}

fn malformed(stream: &Stream, problem: &str) -> RestoreError {
    RestoreError::Content { item: stream.name.clone(), problem: problem.to_owned() }
}

fn tar_error(error: TarError, tar: &Stream) -> RestoreError {
    match error {
        TarError::Read(error) => read_failed(error, Path::new(&tar.name)),
        TarError::Malformed(_) => malformed(tar, &error.to_string()),
    }
}

/// Counts what is read, for progress.
struct Counted<'a, R> {
    inner: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.progress.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The entries of a catalog, in order.
pub struct Entries {
    reader: VerifiedReader,
    /// `None` once the catalog has ended and was found right.
    parser: Option<CatalogReader>,
    name: String,
}

impl Entries {
    /// From the start of `catalog`.
    ///
    /// # Errors
    /// As [`OpenBackup::read`].
    pub fn open(runtime: &Handle, backup: &OpenBackup, catalog: &Stream) -> Result<Self, RestoreError> {
        let reader = VerifiedReader::new(backup.read(catalog)?.blocking(runtime.clone()), catalog);
        Ok(Self { reader, parser: Some(CatalogReader::new()), name: catalog.name.clone() })
    }

    /// The next entry; `None` at the end, when the catalog's hash was found right.
    ///
    /// # Errors
    /// [`RestoreError`].
    #[allow(clippy::should_implement_trait)] // an iterator would have to be fallible
    pub fn next(&mut self) -> Result<Option<CatalogEntry>, RestoreError> {
        let bad = |name: &str, error: &dyn std::error::Error| RestoreError::Content {
            item: name.to_owned(),
            problem: error.to_string(),
        };
        loop {
            let Some(parser) = &mut self.parser else { return Ok(None) };
            if let Some(entry) = parser.next_entry().map_err(|error| bad(&self.name, &error))? {
                return Ok(Some(entry));
            }
            match self.reader.next_bytes() {
                Some(bytes) => parser.push(&bytes?),
                None => {
                    let parser = self.parser.take().unwrap_or_default();
                    parser.finish().map_err(|error| bad(&self.name, &error))?;
                }
            }
        }
    }
}
