//! Golden vectors of storage format 1: `common/testdata/format-v1/`.
//!
//! `repository/` is a small bucket prefix as an agent of the first release wrote it; `identity.txt` and `root.key` open and
//! sign it; `streams/` is what its newest backup holds; `vectors.json` lists derived keys, cut points and chunk ids. Every
//! later version must read these bytes, and must write the same ones from the same inputs. Only the age slots are random: the
//! stored ones are put in when the rest is rebuilt.
//!
//! A failure here means that the format changed: that is a new version of it, not a new vector. The one exception is a new
//! zstd, whose output for the same input may differ: then check that the stored bytes still read, and write new ones with
//! `SEALIFT_WRITE_GOLDEN=1 cargo test -p sealift-common --test format_v1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test reports by panicking

mod reader;
mod repository;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use repository::{Golden, Objects};
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::key_file::{generate_identity, root_key_text};
use sealift_common::format::catalog::{CatalogEntry, CatalogReader, EntryKind};
use sealift_common::format::chunk::ChunkClass;
use serde_json::{Value, json};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/format-v1")
}

/// All files below `root`, by relative name.
fn files(root: &Path) -> Objects {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn write(root: &Path, files: &Objects) {
    for (name, bytes) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// The stored vectors; written first where the environment asks for new ones.
fn golden() -> Golden {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("SEALIFT_WRITE_GOLDEN").is_some() {
            let _ = std::fs::remove_dir_all(dir());
            let (identity, _) = generate_identity(UnixMillis(0));
            let golden = Golden::new(identity.expose().clone());
            let built = golden.build(None);
            write(&dir().join("repository"), &built.objects);
            write(&dir().join("streams"), &built.streams);
            let vectors = serde_json::to_vec_pretty(&vectors(&golden)).unwrap();
            let root = root_key_text(&golden.root);
            let keys = [
                ("identity.txt", identity.expose().as_bytes()),
                ("root.key", root.expose().as_bytes()),
                ("vectors.json", &vectors),
            ];
            write(&dir(), &keys.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).into());
        }
    });
    Golden::new(std::fs::read_to_string(dir().join("identity.txt")).unwrap())
}

/// What does not show in the objects: derived keys, cut points, chunk ids.
fn vectors(golden: &Golden) -> Value {
    let gear = golden.secret.gear(golden.series);
    let chunks = |class: ChunkClass, len: usize| -> Vec<Value> {
        let chunks = golden.chunks(class, &repository::noise(len));
        chunks.iter().map(|c| json!([c.raw_len, hex::encode(c.id.0)])).collect()
    };
    let mut catalog = Vec::new();
    golden.catalog().iter().for_each(|entry| entry.encode(&mut catalog));
    json!({
        "series_secret": hex::encode(golden.secret.expose()),
        "series": golden.series.to_string(),
        "epoch_id": golden.secret.epoch_id().to_string(),
        "chunk_id_key": hex::encode(golden.secret.chunk_id_key(golden.series).expose()),
        "gear_first_and_last": [gear[0].to_string(), gear[255].to_string()],
        "data_key": hex::encode(golden.data_key(1).expose()),
        "root_key_sha256": golden.root.verifying_key().fingerprint().to_string(),
        "agent_signing_key": hex::encode(golden.agent_key.verifying_key().as_bytes()),
        "noise": "BLAKE3 XOF of eight zero bytes",
        "chunks_16_kib_of_300000_bytes_of_noise": chunks(ChunkClass::Avg16KiB, 300_000),
        "chunks_64_kib_of_700000_bytes_of_noise": chunks(ChunkClass::Avg64KiB, 700_000),
        "chunks_1_mib_of_6000000_bytes_of_noise": chunks(ChunkClass::Avg1MiB, 6_000_000),
        "chunks_16_kib_of_100000_zero_bytes": golden
            .chunks(ChunkClass::Avg16KiB, &vec![0; 100_000])
            .iter()
            .map(|c| json!([c.raw_len, hex::encode(c.id.0)]))
            .collect::<Vec<_>>(),
        "catalog": hex::encode(catalog),
    })
}

#[test]
fn the_stored_objects_are_built_again_byte_for_byte() {
    let golden = golden();
    let stored = files(&dir().join("repository"));
    let rebuilt = golden.build(Some(&stored));
    assert_eq!(stored.keys().collect::<Vec<_>>(), rebuilt.objects.keys().collect::<Vec<_>>());
    for (name, bytes) in &stored {
        assert!(rebuilt.objects[name] == *bytes, "{name} is written differently now");
    }
    assert_eq!(files(&dir().join("streams")), rebuilt.streams);
    assert_eq!(
        root_key_text(&golden.root).expose(),
        &std::fs::read_to_string(dir().join("root.key")).unwrap()
    );
}

#[test]
fn derived_keys_cut_points_and_chunk_ids_are_the_stored_ones() {
    let golden = golden();
    let stored: Value = serde_json::from_slice(&std::fs::read(dir().join("vectors.json")).unwrap()).unwrap();
    let now = vectors(&golden);
    for (name, value) in stored.as_object().unwrap() {
        assert_eq!(now.get(name), Some(value), "{name}");
    }
    let mut reader = CatalogReader::new();
    reader.push(&hex::decode(stored["catalog"].as_str().unwrap()).unwrap());
    let entries: Vec<CatalogEntry> = std::iter::from_fn(|| reader.next_entry().unwrap()).collect();
    assert_eq!(entries, golden.catalog());
    assert_eq!(entries[1].kind, EntryKind::File);
    reader.finish().unwrap();
}

#[test]
fn the_stored_repository_restores() {
    let golden = golden();
    let restored = reader::restore(&files(&dir().join("repository")), &golden).unwrap();
    assert_eq!(restored, files(&dir().join("streams")));
}

#[test]
fn no_object_of_the_stored_repository_can_be_altered_cut_or_exchanged() {
    let golden = golden();
    let stored = files(&dir().join("repository"));
    let names: Vec<&String> = stored.keys().filter(|name| *name != "sealift.json").collect();
    for name in &names {
        let bytes = &stored[*name];
        let altered = |bytes: Vec<u8>| {
            let mut objects = stored.clone();
            objects.insert((*name).clone(), bytes);
            reader::restore(&objects, &golden)
        };
        // Every byte of what is small and of both ends of what is large, one in 499 in between.
        for at in (0..bytes.len()).filter(|at| *at < 600 || bytes.len() - at < 1500 || at % 499 == 0) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(altered(flipped).is_err(), "{name} with byte {at} altered");
        }
        assert!(altered(bytes[..bytes.len() - 1].to_vec()).is_err(), "{name} cut");
        assert!(altered([bytes, b"x".as_slice()].concat()).is_err(), "{name} with a byte more");
        for other in &names {
            if other != name {
                assert!(altered(stored[*other].clone()).is_err(), "{other} in the place of {name}");
            }
        }
        // Manifests may go: retention takes them away, and a witness notices where the newest is missing. So may a trust
        // policy before one that the pinned root has signed.
        if !name.contains("/manifests/") && !name.starts_with("trust/0000000001-") {
            let mut without = stored.clone();
            without.remove(*name);
            assert!(reader::restore(&without, &golden).is_err(), "{name} missing");
        }
    }
}
