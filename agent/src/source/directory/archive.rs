//! The two streams of a directory backup: the archive as it is written, and the catalog that grows beside it.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

use bytes::BytesMut;
use prost::Message;
use sealift_proto::format::CatalogEntry;
use tokio::runtime::Handle;

use super::tar::{BLOCK, Header, padding};
use crate::source::error::SourceError;
use crate::source::sink::Sink;
use crate::source::temp::TempRoot;
use crate::source::{MAX_DATA, SourceEvent, StreamHead, Warning};

/// Sends the archive in pieces, and notes each entry in the catalog.
pub struct Archive<'a> {
    runtime: Handle,
    sink: &'a Sink,
    buffer: BytesMut,
    offset: u64,
    catalog: Catalog,
    partial: bool,
}

impl<'a> Archive<'a> {
    /// An archive whose catalog waits in an unnamed file, so that memory does not grow with the number of files.
    pub fn new(runtime: Handle, sink: &'a Sink, temp: &TempRoot) -> Result<Self, SourceError> {
        let catalog = Catalog { file: BufWriter::new(temp.unnamed_file()?), path: temp.path().to_owned() };
        Ok(Self { runtime, sink, buffer: BytesMut::new(), offset: 0, catalog, partial: false })
    }

    /// Starts a stream.
    pub fn begin(&self, head: StreamHead) -> Result<(), SourceError> {
        self.sink.send_blocking(&self.runtime, SourceEvent::Begin(head))
    }

    /// Where the next entry starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Fails where the backup was cancelled.
    pub fn check_cancelled(&self) -> Result<(), SourceError> {
        if self.sink.cancel().is_cancelled() { Err(SourceError::Cancelled) } else { Ok(()) }
    }

    /// Names something that is missing from the archive.
    pub fn warn(&mut self, path: &[u8], problem: impl Into<String>) -> Result<(), SourceError> {
        self.partial = true;
        let warning = Warning { item: printable(path), problem: problem.into() };
        self.sink.send_blocking(&self.runtime, SourceEvent::Warning(warning))
    }

    /// Writes an entry's header.
    pub fn header(&mut self, header: &Header) -> Result<(), SourceError> {
        let encoded = header.encode().map_err(|e| SourceError::Unusable {
            item: printable(&header.path),
            problem: format!("does not fit a tar header: {e}"),
        })?;
        self.write(&encoded)
    }

    /// Writes content.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SourceError> {
        self.offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(MAX_DATA - self.buffer.len()));
            if self.buffer.capacity() == 0 {
                self.buffer.reserve(MAX_DATA);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == MAX_DATA {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills the last block of `size` bytes of content.
    pub fn pad(&mut self, size: u64) -> Result<(), SourceError> {
        self.write(&vec![0; padding(size)])
    }

    /// Notes an entry that was written from `entry.tar_offset` to here.
    pub fn catalog(&mut self, mut entry: CatalogEntry) -> Result<(), SourceError> {
        entry.tar_len = self.offset - entry.tar_offset;
        self.catalog.add(&entry)
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        let piece = self.buffer.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.sink.send_blocking(&self.runtime, SourceEvent::Data(piece))
    }

    /// Ends the archive, then sends the catalog as a stream of its own.
    pub fn finish(mut self, catalog: StreamHead) -> Result<(), SourceError> {
        self.write(&[0; 2 * BLOCK as usize])?;
        self.flush()?;
        self.sink.send_blocking(&self.runtime, SourceEvent::End { partial: self.partial })?;
        self.begin(catalog)?;
        let (mut file, path) = self.catalog.rewound()?;
        let mut piece = vec![0; MAX_DATA / 4];
        loop {
            let read = file.read(&mut piece).map_err(SourceError::io("read the catalog in", &path))?;
            let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            self.buffer.extend_from_slice(bytes);
            if self.buffer.len() > MAX_DATA / 2 {
                let piece = self.buffer.split().freeze();
                self.sink.send_blocking(&self.runtime, SourceEvent::Data(piece))?;
            }
        }
        let rest = self.buffer.split().freeze();
        if !rest.is_empty() {
            self.sink.send_blocking(&self.runtime, SourceEvent::Data(rest))?;
        }
        self.sink.send_blocking(&self.runtime, SourceEvent::End { partial: false })
    }
}

/// The catalog while it grows.
struct Catalog {
    file: BufWriter<File>,
    path: std::path::PathBuf,
}

impl Catalog {
    fn add(&mut self, entry: &CatalogEntry) -> Result<(), SourceError> {
        let encoded = entry.encode_length_delimited_to_vec();
        self.file.write_all(&encoded).map_err(SourceError::io("write the catalog in", &self.path))
    }

    fn rewound(self) -> Result<(File, std::path::PathBuf), SourceError> {
        let Self { file, path } = self;
        let rewind = || -> std::io::Result<File> {
            let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file = rewind().map_err(SourceError::io("write the catalog in", &path))?;
        Ok((file, path))
    }
}

/// A path for people: control characters and bytes that are not UTF-8 cannot harm a terminal or a log.
pub fn printable(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let escaped =
        text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() });
    escaped.collect()
}
