use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::clock::UnixMillis;
use crate::crypto::key_file::generate_identity;
use crate::crypto::{DataKey, Identities, KeyOwner, KeySlots, Recipient, SeriesSecret};
use crate::format::chunk::{Chunk, ChunkId, ChunkRecord};
use crate::format::frame::{FrameCompressor, FrameDecompressor, RawFrame};
use crate::id::{Random, RepositoryId};

fn person() -> (Identities, Recipient) {
    let (text, recipient) = generate_identity(UnixMillis(0));
    (Identities::parse(Path::new("key.txt"), text.expose()).unwrap(), recipient)
}

fn keys(seed: u64, recipients: &[Recipient]) -> BackupKeys {
    let random = Random::from_seed(seed);
    let owner = KeyOwner {
        repository: RepositoryId::from_bytes([1; 16]),
        series: SeriesId::from_bytes([2; 16]),
        backup: BackupId::generate(&random),
    };
    BackupKeys::generate(&random, &[9; 32], owner, SeriesSecret::from_bytes([3; 32]), recipients).unwrap()
}

fn raw_frame(number: u8, len: usize) -> RawFrame {
    let mut frame = RawFrame::new();
    let mut data = format!("row {number} of table orders; ").into_bytes().repeat(len / 16 + 1);
    data.truncate(len);
    let half = len / 2;
    for (at, part) in [&data[..half], &data[half..]].into_iter().enumerate() {
        frame.push(&Chunk { id: ChunkId([number + at as u8; 16]), data: Bytes::copy_from_slice(part) });
    }
    frame
}

/// A pack of `lens.len()` frames, sealed out of order.
fn pack(keys: &BackupKeys, lens: &[usize]) -> (Pack, Vec<u8>) {
    let mut writer = keys.begin_pack(&Random::from_seed(5));
    let mut compressor = FrameCompressor::new(1).unwrap();
    let frames = lens.iter().enumerate().map(|(at, len)| raw_frame(at as u8, *len));
    let mut raw = Vec::new();
    let jobs: Vec<FrameJob> = frames
        .map(|frame| {
            assert_eq!(writer.raw_len(), raw.len() as u64);
            raw.extend_from_slice(frame.data());
            writer.assign(frame).ok().unwrap()
        })
        .collect();
    for job in jobs.into_iter().rev() {
        let (sealed, buffer) = job.seal(&mut compressor);
        assert!(buffer.is_empty());
        writer.complete(sealed).unwrap();
    }
    (writer.finish().unwrap(), raw)
}

fn bytes(pack: &Pack) -> Vec<u8> {
    pack.body().concat()
}

fn read(owner: &KeyOwner, meta: &PackMeta, bytes: &[u8], key: &DataKey) -> Result<Vec<u8>, PackError> {
    let suffix = bytes.len() - (meta.suffix_len() as usize).min(bytes.len());
    let open = PackTail::parse(owner, meta, &bytes[suffix..])?.open(key)?;
    let mut decompressor = FrameDecompressor::new().unwrap();
    let frames = open.frames().iter().enumerate().map(|(number, frame)| {
        let at = frame.offset as usize;
        open.open_frame(number, &bytes[at..at + frame.stored_len as usize], &mut decompressor)
    });
    Ok(frames.collect::<Result<Vec<_>, _>>()?.concat())
}

#[test]
fn a_pack_reads_back_by_suffix_whole_and_index() {
    let (ann, ann_key) = person();
    let keys = keys(1, &[ann_key]);
    let (pack, raw) = pack(&keys, &[40_000, 3, 100_000]);
    let (meta, bytes) = (*pack.meta(), bytes(&pack));
    assert_eq!(meta, PackMeta::of(keys.owner.series, &bytes).unwrap());
    assert_eq!(meta.size, bytes.len() as u64);
    assert_eq!(read(&keys.owner, &meta, &bytes, &keys.data_key).unwrap(), raw);

    let tail = PackTail::parse_whole(&keys.owner, &meta, &bytes).unwrap();
    let key = tail.unlock(&ann, &[]).unwrap();
    assert_eq!(key.expose(), keys.data_key.expose());
    assert_eq!(tail.open(&key).unwrap().raw_len(), raw.len() as u64);

    let start = bytes.len() - meta.trailer().tail_len() as usize;
    let index =
        open_chunk_index(keys.owner.series, &meta, &bytes[start..bytes.len() - 20], &keys.secret).unwrap();
    assert_eq!(index, pack.chunks());
    assert_eq!(index.iter().map(|chunk| u64::from(chunk.raw_len)).sum::<u64>(), raw.len() as u64);
}

#[test]
fn frames_are_found_by_raw_range() {
    let keys = keys(1, &[person().1]);
    let (pack, _) = pack(&keys, &[100, 50, 200]);
    let open = PackTail::parse_whole(&keys.owner, pack.meta(), &bytes(&pack)).unwrap();
    let open = open.open(&keys.data_key).unwrap();
    assert_eq!(open.frames_for(0, 350), Some(0..3));
    assert_eq!(open.frames_for(0, 100), Some(0..1));
    assert_eq!(open.frames_for(99, 2), Some(0..2));
    assert_eq!(open.frames_for(100, 50), Some(1..2));
    assert_eq!(open.frames_for(150, 1), Some(2..3));
    assert_eq!(open.frames_for(350, 0), Some(3..3));
    assert_eq!(open.frames_for(350, 1), None);
    assert_eq!(open.frames_for(u64::MAX, 2), None);
}

#[test]
fn a_lost_session_seals_anew_without_losing_a_byte() {
    let ((ann, ann_key), old_recipient) = (person(), person().1);
    let (old, new) = (keys(1, &[old_recipient]), keys(2, &[ann_key]));
    let (before, raw) = pack(&old, &[40_000, 3]);
    let loaded = Pack::load(&Bytes::from(bytes(&before)), &old).unwrap();
    assert_eq!(loaded.meta(), before.meta());
    for pack in [before.clone(), loaded] {
        let after = pack.reseal(&new, &Random::from_seed(6)).unwrap();
        assert_ne!(after.id(), before.id());
        assert_ne!(after.meta().sha256, before.meta().sha256);
        assert_eq!((after.chunks(), after.raw_len()), (before.chunks(), raw.len() as u64));
        assert_eq!(read(&new.owner, after.meta(), &bytes(&after), &new.data_key).unwrap(), raw);
        let tail = PackTail::parse_whole(&new.owner, after.meta(), &bytes(&after)).unwrap();
        assert_eq!(tail.unlock(&ann, &[]).unwrap().expose(), new.data_key.expose());
    }
    assert!(Pack::load(&Bytes::from(bytes(&before)), &new).is_err());
}

#[test]
fn further_slots_open_an_old_pack_for_a_new_recipient() {
    let ((_, ann_key), (bob, bob_key)) = (person(), person());
    let keys = keys(1, &[ann_key]);
    let (pack, _) = pack(&keys, &[100]);
    let tail = PackTail::parse_whole(&keys.owner, pack.meta(), &bytes(&pack)).unwrap();
    let refused = tail.unlock(&bob, &[]).unwrap_err();
    assert!(matches!(refused.problem, PackProblem::Slots(SlotError::NoMatchingIdentity { .. })));
    let rewrapped = KeySlots::seal(&keys.data_key, &keys.owner, std::slice::from_ref(&bob_key)).unwrap();
    let forged = KeySlots::seal(&DataKey::from_bytes([0; 32]), &keys.owner, &[bob_key]).unwrap();
    assert!(tail.unlock(&bob, &[forged.clone(), rewrapped]).is_ok());
    let refused = tail.unlock(&bob, &[forged]).unwrap_err();
    assert_eq!(refused.problem, PackProblem::Slots(SlotError::WrongKey));
}

#[test]
fn packs_of_others_are_refused_before_a_byte_is_used() {
    let recipient = person().1;
    let keys_one = keys(1, std::slice::from_ref(&recipient));
    let keys_two = keys(2, &[recipient]);
    let (one, two) = (pack(&keys_one, &[100]).0, pack(&keys_two, &[100]).0);
    let problem = |owner: &KeyOwner, meta: &PackMeta, bytes: &[u8], key: &DataKey| {
        read(owner, meta, bytes, key).unwrap_err().problem
    };
    let swapped = problem(&keys_one.owner, one.meta(), &bytes(&two), &keys_one.data_key);
    // Slots are randomised, so the lengths may already differ.
    assert!(
        matches!(swapped, PackProblem::Meta | PackProblem::Lengths | PackProblem::Truncated { .. }),
        "{swapped}"
    );
    let backup = problem(&keys_two.owner, one.meta(), &bytes(&one), &keys_one.data_key);
    assert_eq!(backup, PackProblem::Foreign("backup"));
    let elsewhere = KeyOwner { series: SeriesId::from_bytes([7; 16]), ..keys_one.owner };
    let series = problem(&elsewhere, one.meta(), &bytes(&one), &keys_one.data_key);
    assert_eq!(series, PackProblem::Foreign("series"));
    let key = problem(&keys_one.owner, one.meta(), &bytes(&one), &keys_two.data_key);
    assert_eq!(key, PackProblem::Commitment(keys_one.owner.backup));
}

#[test]
fn every_flipped_bit_is_refused_and_names_the_object() {
    let keys = keys(1, &[person().1]);
    let (pack, raw) = pack(&keys, &[300, 40]);
    let (meta, original) = (*pack.meta(), bytes(&pack));
    let start = original.len() - meta.trailer().tail_len() as usize;
    let frames = 8..start;
    let index = start..start + meta.index_len as usize;
    for bit in 0..original.len() * 8 {
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let whole = PackTail::parse_whole(&keys.owner, &meta, &bytes).unwrap_err();
        assert_eq!(whole.name, meta.name(keys.owner.series));
        let ranged = read(&keys.owner, &meta, &bytes, &keys.data_key);
        // A ranged reader looks at neither the magic at the start nor the index, and so uses no byte of them.
        if bit / 8 < 8 || index.contains(&(bit / 8)) {
            assert_eq!(ranged.unwrap(), raw);
        } else {
            let problem = ranged.unwrap_err().problem;
            assert_eq!(
                matches!(problem, PackProblem::Frame { .. }),
                frames.contains(&(bit / 8)),
                "{problem}"
            );
        }
        if bit / 8 >= start && bit / 8 < original.len() - 20 {
            let tail = &bytes[start..bytes.len() - 20];
            assert!(open_chunk_index(keys.owner.series, &meta, tail, &keys.secret).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn another_secret_does_not_open_the_index() {
    let keys = keys(1, &[person().1]);
    let (pack, _) = pack(&keys, &[300]);
    let (meta, bytes) = (pack.meta(), bytes(&pack));
    let tail = &bytes[bytes.len() - meta.trailer().tail_len() as usize..bytes.len() - 20];
    let refused = open_chunk_index(keys.owner.series, meta, tail, &SeriesSecret::from_bytes([4; 32]));
    assert_eq!(refused.unwrap_err().problem, PackProblem::Foreign("dedup epoch"));
}

#[test]
fn a_writer_takes_each_frame_once_and_finishes_only_when_all_are_back() {
    let keys = keys(1, &[person().1]);
    let mut compressor = FrameCompressor::new(1).unwrap();
    let mut writer = keys.begin_pack(&Random::from_seed(5));
    let id = writer.id();
    assert!(matches!(keys.begin_pack(&Random::from_seed(5)).finish(), Err(PackWriteError::Empty(_))));
    let (sealed, _) = writer.assign(raw_frame(0, 10)).ok().unwrap().seal(&mut compressor);
    let _lost = writer.assign(raw_frame(1, 10)).ok().unwrap();
    writer.complete(sealed.clone()).unwrap();
    assert_eq!(writer.complete(sealed.clone()), Err(PackWriteError::Unexpected { pack: id, number: 0 }));
    let mut other = keys.begin_pack(&Random::from_seed(6));
    other.assign(raw_frame(0, 10)).ok().unwrap();
    assert!(other.complete(sealed).is_err());
    assert_eq!(writer.finish().unwrap_err(), PackWriteError::Pending { pack: id, pending: 1 });
}

#[test]
fn a_pack_closes_at_its_target_and_never_passes_the_limit() {
    let keys = keys(1, &[person().1]);
    let mut compressor = FrameCompressor::new(1).unwrap();
    let mut writer = keys.begin_pack(&Random::from_seed(5));
    let noise = |seed| {
        let mut frame = RawFrame::new();
        let mut data = vec![0; 1 << 20];
        Random::from_seed(seed).fill(&mut data);
        frame.push(&Chunk { id: ChunkId([0; 16]), data: data.into() });
        frame
    };
    let mut number = 0;
    while !writer.is_full() {
        let (sealed, _) = writer.assign(noise(number)).ok().unwrap().seal(&mut compressor);
        writer.complete(sealed).unwrap();
        number += 1;
    }
    assert_eq!(number, 16);
    let mut jobs = Vec::new();
    while let Ok(job) = writer.assign(noise(number)) {
        jobs.push(job);
        number += 1;
    }
    assert_eq!(number, 63);
    for job in jobs {
        writer.complete(job.seal(&mut compressor).0).unwrap();
    }
    let pack = writer.finish().unwrap();
    assert!(pack.meta().size <= MAX_STORED);
    PackTail::parse_whole(&keys.owner, pack.meta(), &bytes(&pack)).unwrap().open(&keys.data_key).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_frames_go_in_come_out(lens in prop::collection::vec(2usize..5_000, 1..12)) {
        let keys = keys(1, &[person().1]);
        let (pack, raw) = pack(&keys, &lens);
        prop_assert_eq!(read(&keys.owner, pack.meta(), &bytes(&pack), &keys.data_key).unwrap(), raw);
    }

    #[test]
    fn random_bytes_never_panic_a_reader(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        lens in prop::array::uniform3(0u32..600),
        trailer in prop::bool::ANY,
    ) {
        if trailer {
            bytes.extend(lens.iter().flat_map(|len| len.to_le_bytes()));
            bytes.extend_from_slice(END_MAGIC);
        }
        let owner = keys(1, &[person().1]).owner;
        if let Ok(meta) = PackMeta::of(owner.series, &bytes) {
            prop_assert!(PackTail::parse(&owner, &meta, &bytes).is_err());
            let _ = open_chunk_index(owner.series, &meta, &bytes, &SeriesSecret::from_bytes([0; 32]));
        }
        let [index_len, directory_len, header_len] = lens;
        let sha256 = Sha256::of(&bytes);
        let meta = PackMeta { sha256, size: 10_000, meta_sha256: sha256, index_len, directory_len, header_len };
        prop_assert!(PackTail::parse(&owner, &meta, &bytes).is_err());
        let _ = open_chunk_index(owner.series, &meta, &bytes, &SeriesSecret::from_bytes([0; 32]));
    }
}

#[test]
fn records_are_twenty_bytes() {
    let chunks: Vec<ChunkRecord> =
        (0..100).map(|n| ChunkRecord { id: ChunkId([n; 16]), raw_len: 7 }).collect();
    let keys = keys(1, &[person().1]);
    let header = Sha256::of(b"header");
    let id = crate::id::PackId::from_bytes([4; 16]);
    let sealed = index::seal(&keys.secret, id, &header, &chunks);
    let aad = [header.as_bytes().as_slice(), &[3]].concat();
    let plain = keys.secret.index_key(id).open([0; 12], &aad, &sealed).unwrap();
    assert_eq!(zstd::bulk::decompress(&plain, 4000).unwrap().len(), 2000);
}
