//! Restores the newest backup of a repository in memory, with every check of docs/format.md, Restoring.

use std::collections::HashMap;

use sealift_common::crypto::trust::verify_chain;
use sealift_common::crypto::{AgentKeyObject, AgentKeyring, KeyStanding, TrustObject};
use sealift_common::format::frame::FrameDecompressor;
use sealift_common::format::manifest::Manifest;
use sealift_common::format::names::ObjectName;
use sealift_common::format::pack::{OpenPack, PackTail};

use crate::repository::{Golden, Objects};

type Failure = Box<dyn std::error::Error>;

pub fn restore(objects: &Objects, golden: &Golden) -> Result<Objects, Failure> {
    let (mut trust, mut keys, mut manifests) = (Vec::new(), Vec::new(), Vec::new());
    for (text, bytes) in objects {
        let name: ObjectName = text.parse()?;
        match name {
            ObjectName::Trust { .. } => trust.push(TrustObject::parse_named(&name, bytes)?),
            ObjectName::AgentKey { .. } => keys.push(AgentKeyObject::parse_named(&name, bytes)?),
            ObjectName::Manifest { .. } => manifests.push(Manifest::parse(golden.repository, &name, bytes)?),
            _ => {}
        }
    }
    let policy = verify_chain(&golden.pin(), None, golden.repository, &trust)?.policy;
    if policy.version != 2 {
        return Err("the newest trust policy is missing".into());
    }
    let keyring = AgentKeyring::new(golden.agent, keys)?;
    let newest = manifests.last().ok_or("no manifest")?;
    if keyring.standing(&newest.public().signing_key, &policy) < KeyStanding::Continuous {
        return Err("unknown signing key".into());
    }
    streams(newest, objects, golden)
}

fn streams(manifest: &Manifest, objects: &Objects, golden: &Golden) -> Result<Objects, Failure> {
    let content = manifest.open(&manifest.unlock(&golden.identities, &[])?)?;
    let mut packs: HashMap<u32, (OpenPack, &[u8])> = HashMap::new();
    for (at, pack) in (0..).zip(&manifest.public().packs) {
        let name = pack.meta.name(golden.series);
        let bytes = objects.get(&name.to_string()).ok_or("a pack is missing")?;
        let tail = PackTail::parse_whole(&manifest.public().owner_of(pack), &pack.meta, bytes)?;
        packs.insert(at, (tail.open(&tail.unlock(&golden.identities, &[])?)?, bytes));
    }
    let mut decompressor = FrameDecompressor::new()?;
    let mut restored = Objects::new();
    for stream in &content.streams {
        let mut out = Vec::new();
        for extent in &stream.extents {
            let (open, bytes) = packs.get(&extent.pack).ok_or("no such pack")?;
            let mut raw = Vec::new();
            let frames = open.frames_for(extent.raw_offset, extent.raw_len).ok_or("no such range")?;
            let start = open.frames()[frames.start].raw_offset;
            for number in frames {
                let frame = open.frames()[number];
                let at = usize::try_from(frame.offset)?;
                let stored = &bytes[at..at + frame.stored_len as usize];
                raw.extend(open.open_frame(number, stored, &mut decompressor)?);
            }
            let skip = usize::try_from(extent.raw_offset - start)?;
            out.extend_from_slice(&raw[skip..skip + usize::try_from(extent.raw_len)?]);
        }
        if blake3::hash(&out).as_bytes() != &stream.blake3 {
            return Err(format!("stream {} is not what was backed up", stream.name).into());
        }
        restored.insert(stream.name.clone(), out);
    }
    Ok(restored)
}
