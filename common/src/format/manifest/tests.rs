use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::clock::UnixMillis;
use crate::crypto::key_file::generate_identity;
use crate::crypto::{DataKey, Identities, KeyOwner, KeySlots, Recipient, SeriesSecret, SigningKey};
use crate::format::chunk::ChunkClass;
use crate::format::extent::Extent;
use crate::format::pack::{BackupKeys, PackMeta};
use crate::format::push_part;
use crate::id::{AgentId, BackupId, Random, RepositoryId, SeriesId, Sha256};

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);

fn person() -> (Identities, Recipient) {
    let (text, recipient) = generate_identity(UnixMillis(0));
    (Identities::parse(Path::new("key.txt"), text.expose()).unwrap(), recipient)
}

fn keys(seed: u64, recipient: &Recipient) -> BackupKeys {
    let random = Random::from_seed(seed);
    let series = SeriesId::from_bytes([2; 16]);
    let owner = KeyOwner { repository: REPOSITORY, series, backup: BackupId::generate(&random) };
    let secret = SeriesSecret::from_bytes([3; 32]);
    BackupKeys::generate(&random, &[9; 32], owner, secret, std::slice::from_ref(recipient)).unwrap()
}

fn pack_ref(number: u8) -> PackRef {
    let meta = PackMeta {
        sha256: Sha256::of(&[number]),
        size: 10_000,
        meta_sha256: Sha256::of(b"meta"),
        index_len: 100,
        directory_len: 100,
        header_len: 500,
    };
    PackRef { meta, origin: BackupId::from_bytes([number; 16]), referenced_raw: 0 }
}

fn draft() -> PublicDraft {
    PublicDraft {
        agent: AgentId::from_bytes([4; 16]),
        sequence: 7,
        previous: Some(Sha256::of(b"previous")),
        created: UnixMillis(1_700_000_000_000),
        session_nonce: [9; 32],
        trust_version: 3,
        trust_sha256: Sha256::of(b"trust"),
        status: Status::Complete,
        new_stored_bytes: 10_000,
        packs: vec![pack_ref(1), pack_ref(2)],
    }
}

fn stream(name: &str, extents: &[(u32, u64, u64)]) -> Stream {
    let extent = |&(pack, raw_offset, raw_len): &(u32, u64, u64)| Extent { pack, raw_offset, raw_len };
    Stream {
        name: name.to_owned(),
        kind: StreamKind::Dump,
        raw_len: extents.iter().map(|extent| extent.2).sum(),
        blake3: [5; 32],
        extents: extents.iter().map(extent).collect(),
        outcome: Outcome::Success,
        catalog_of: None,
        attributes: BTreeMap::from([("format".to_owned(), "custom".to_owned())]),
    }
}

fn content() -> Content {
    let source = Source { kind: "postgres".to_owned(), host: "store-0042".to_owned(), ..Source::default() };
    let streams =
        vec![stream("globals.sql", &[(0, 0, 100)]), stream("db/shop.sql", &[(1, 5, 50), (0, 50, 100)])];
    Content { chunking: ChunkClass::Avg16KiB.to_wire(), source, streams }
}

fn agent_key() -> SigningKey {
    SigningKey::generate(&Random::from_seed(8))
}

fn seal(content: &Content, keys: &BackupKeys) -> ManifestObject {
    ManifestObject::seal(draft(), content, keys, &agent_key(), &Random::from_seed(6)).unwrap()
}

fn parse(object: &ManifestObject) -> Result<Manifest, ManifestError> {
    Manifest::parse(REPOSITORY, &object.name, &object.bytes)
}

#[test]
fn a_manifest_reads_back() {
    let (ann, recipient) = person();
    let keys = keys(1, &recipient);
    let object = seal(&content(), &keys);
    let manifest = parse(&object).unwrap();
    assert_eq!(manifest.public(), &object.public);
    assert_eq!(manifest.public().signing_key, agent_key().verifying_key());
    assert_eq!(manifest.public().recipients, [recipient.fingerprint()]);
    assert_eq!(manifest.public().raw_bytes, 250);
    let referenced: Vec<u64> = manifest.public().packs.iter().map(|pack| pack.referenced_raw).collect();
    assert_eq!(referenced, [150, 50]);
    assert_eq!(manifest.open(&manifest.unlock(&ann, &[]).unwrap()).unwrap(), content());

    let prepared =
        verify_prepared(&object.public_bytes, &object.slots_sha256, &object.sealed_sha256, &object.signature);
    assert_eq!(prepared.unwrap(), object.public);
}

#[test]
fn wrong_keys_are_told_apart() {
    let ((_, recipient), (eve, eve_key)) = (person(), person());
    let mine = keys(1, &recipient);
    let manifest = parse(&seal(&content(), &mine)).unwrap();
    let refused = manifest.unlock(&eve, &[]).unwrap_err().problem;
    assert!(matches!(refused, ManifestProblem::Slots(SlotError::NoMatchingIdentity { .. })), "{refused}");
    let forged =
        KeySlots::seal(&DataKey::from_bytes([0; 32]), &mine.owner, std::slice::from_ref(&eve_key)).unwrap();
    let refused = manifest.unlock(&eve, std::slice::from_ref(&forged)).unwrap_err().problem;
    assert_eq!(refused, ManifestProblem::Slots(SlotError::WrongKey));
    let rewrapped = KeySlots::seal(&mine.data_key, &mine.owner, &[eve_key]).unwrap();
    assert!(manifest.unlock(&eve, &[forged, rewrapped]).is_ok());
    let refused = manifest.open(&DataKey::from_bytes([0; 32])).unwrap_err().problem;
    assert_eq!(refused, ManifestProblem::Commitment);
}

#[test]
fn a_manifest_copied_elsewhere_is_refused() {
    let object = seal(&content(), &keys(1, &person().1));
    let problem = |repository, name| Manifest::parse(repository, &name, &object.bytes).unwrap_err().problem;
    let ObjectName::Manifest { series, sequence, sha256 } = object.name else { unreachable!() };
    let elsewhere = ObjectName::Manifest { series: SeriesId::from_bytes([7; 16]), sequence, sha256 };
    assert_eq!(problem(REPOSITORY, elsewhere), ManifestProblem::NameDiffers("series"));
    let later = ObjectName::Manifest { series, sequence: sequence + 1, sha256 };
    assert_eq!(problem(REPOSITORY, later), ManifestProblem::NameDiffers("sequence"));
    assert_eq!(problem(RepositoryId::from_bytes([7; 16]), object.name), ManifestProblem::Repository);
    assert_eq!(problem(REPOSITORY, ObjectName::Pack { series, sha256 }), ManifestProblem::Name);
    let renamed = ObjectName::Manifest { series, sequence, sha256: Sha256::of(b"x") };
    assert_eq!(problem(REPOSITORY, renamed), ManifestProblem::Hash);
}

/// Parts of a manifest's object: public, slots, sealed.
fn parts(object: &ManifestObject) -> [std::ops::Range<usize>; 3] {
    let mut at = 8;
    [(); 3].map(|()| {
        let len = u32::from_le_bytes(object.bytes[at..at + 4].try_into().unwrap()) as usize;
        let part = at + 4..at + 4 + len;
        at = part.end;
        part
    })
}

#[test]
fn every_flipped_bit_is_refused_even_under_a_fitting_name() {
    let object = seal(&content(), &keys(1, &person().1));
    let [public, slots, sealed] = parts(&object);
    assert_eq!(object.public_bytes, &object.bytes[public.clone()]);
    let mut seen = std::collections::HashSet::new();
    for bit in 0..object.bytes.len() * 8 {
        let (byte, mut bytes) = (bit / 8, object.bytes.clone());
        bytes[byte] ^= 1 << (bit % 8);
        let refused = Manifest::parse(REPOSITORY, &object.name, &bytes).unwrap_err();
        assert_eq!((refused.problem, refused.name), (ManifestProblem::Hash, object.name));
        let name = ObjectName::Manifest {
            series: object.public.owner.series,
            sequence: object.public.sequence,
            sha256: Sha256::of(&bytes),
        };
        let problem = Manifest::parse(REPOSITORY, &name, &bytes).unwrap_err().problem;
        if slots.contains(&byte) || sealed.contains(&byte) || byte >= sealed.end {
            assert_eq!(problem, ManifestProblem::Signature, "byte {byte}");
        }
        seen.insert(std::mem::discriminant(&problem));
    }
    assert!(seen.len() >= 3, "shape, public part and signature are told apart");
}

#[test]
fn parts_of_two_manifests_do_not_mix() {
    let recipient = person().1;
    let (one, two) = (seal(&content(), &keys(1, &recipient)), seal(&content(), &keys(2, &recipient)));
    for from_two in 0..3 {
        let mut bytes = b"SLFTMAN1".to_vec();
        for (at, (a, b)) in parts(&one).into_iter().zip(parts(&two)).enumerate() {
            let part = if at == from_two { &two.bytes[b] } else { &one.bytes[a] };
            push_part(&mut bytes, part);
        }
        bytes.extend_from_slice(&one.signature);
        let name = ObjectName::Manifest {
            series: one.public.owner.series,
            sequence: one.public.sequence,
            sha256: Sha256::of(&bytes),
        };
        let problem = Manifest::parse(REPOSITORY, &name, &bytes).unwrap_err().problem;
        assert_eq!(problem, ManifestProblem::Signature, "part {from_two}");
    }
}

#[test]
fn contents_that_lie_are_neither_written_nor_read() {
    let keys = keys(1, &person().1);
    let mut cases: Vec<Content> = Vec::new();
    let mut with = |change: &dyn Fn(&mut Content)| {
        let mut content = content();
        change(&mut content);
        cases.push(content);
    };
    with(&|c| c.streams[0].name = "../../etc/passwd".to_owned());
    with(&|c| c.streams[0].name = "/etc/passwd".to_owned());
    with(&|c| c.streams[0].name = "a\nb".to_owned());
    with(&|c| c.streams[0].name = c.streams[1].name.clone());
    with(&|c| c.streams[0].extents[0].pack = 2);
    with(&|c| c.streams[0].extents[0].raw_offset = u64::MAX);
    with(&|c| c.streams[0].raw_len += 1);
    with(&|c| c.streams[0].extents.push(Extent { pack: 0, raw_offset: 0, raw_len: 0 }));
    with(&|c| c.streams[0].kind = StreamKind::Catalog);
    with(&|c| c.streams[0].catalog_of = Some("db/shop.sql".to_owned()));
    for bad in cases {
        let sealed = ManifestObject::seal(draft(), &bad, &keys, &agent_key(), &Random::from_seed(6));
        assert!(matches!(sealed, Err(ManifestProblem::Content(_))), "{bad:?}");
        let public = seal(&content(), &keys).public;
        let public = ManifestPublic { raw_bytes: bad.raw_bytes(), ..public };
        assert!(Content::decode(&bad.encode(), &public).is_err(), "{bad:?}");
    }
    let mut empty = content();
    empty.streams = vec![stream("empty.sql", &[])];
    assert_eq!(parse(&seal(&empty, &keys)).unwrap().public().raw_bytes, 0);
}

#[test]
fn unknown_values_and_features_are_refused() {
    use prost::Message;
    use sealift_proto::format as wire;
    let object = seal(&content(), &keys(1, &person().1));
    let good = wire::ManifestPublic::decode(object.public_bytes.as_slice()).unwrap();
    let decode = |public: wire::ManifestPublic| ManifestPublic::decode(&public.encode_to_vec());
    assert!(decode(good.clone()).is_ok());
    for status in [0, 3, -1] {
        assert!(matches!(
            decode(wire::ManifestPublic { status, ..good.clone() }),
            Err(ManifestProblem::Public(_))
        ));
    }
    let features = vec!["erasure-coding".to_owned()];
    let refused = decode(wire::ManifestPublic { required_features: features.clone(), ..good.clone() });
    assert_eq!(refused, Err(ManifestProblem::RequiredFeatures(features)));
    let sequence = wire::ManifestPublic { sequence: 0, ..good.clone() };
    let twice = wire::ManifestPublic { packs: vec![good.packs[0].clone(); 2], ..good.clone() };
    let mut long = good.clone();
    long.packs[0].header_len = u32::MAX;
    for bad in [sequence, twice, long] {
        assert!(matches!(decode(bad), Err(ManifestProblem::Public(_))));
    }
    let mut sealed = wire::SealedManifest::decode(content().encode().as_slice()).unwrap();
    sealed.streams[0].kind = 9;
    assert!(Content::decode(&sealed.encode_to_vec(), &object.public).is_err());
    sealed.streams[0].kind = 1;
    assert!(Content::decode(&sealed.encode_to_vec(), &object.public).is_ok());
    sealed.streams[0].outcome = 9;
    assert!(Content::decode(&sealed.encode_to_vec(), &object.public).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in prop::bool::ANY) {
        if magic {
            bytes.splice(0..0, *b"SLFTMAN1");
        }
        let name = ObjectName::Manifest {
            series: SeriesId::from_bytes([2; 16]),
            sequence: 1,
            sha256: Sha256::of(&bytes),
        };
        prop_assert!(Manifest::parse(REPOSITORY, &name, &bytes).is_err());
        let _ = ManifestPublic::decode(&bytes);
    }
}
