//! Objects that somebody with the bucket made, swapped, copied or took away: nothing of it is believed, or goes unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use sealift_common::clock::{Clock, UnixMillis};
use sealift_common::crypto::{
    AgentKeyObject, KeyOwner, Recipient, Rule, SeriesSecret, SigningKey, TrustObject, TrustPolicy,
    trust::RuleRecipient,
};
use sealift_common::format::chunk::{Chunk, ChunkId};
use sealift_common::format::frame::{FrameCompressor, RawFrame, TARGET_RAW};
use sealift_common::format::pack::BackupKeys;
use sealift_common::id::{AgentId, Random};
use sealift_proto::format::PackHeader;
use sealift_tests::faults::{Tampered, all_objects, manifests, packs};
use sealift_tests::stage::Stage;
use sealift_tests::tree;

fn read(stage: &Stage, name: &str) -> Vec<u8> {
    std::fs::read(stage.cluster.objects().join(name)).unwrap()
}

/// Keys of the forger's own, for the owner of `original`: whoever has the bucket can read headers, and encrypt slots to the
/// recipients, whose keys are public.
fn forged_keys(stage: &Stage, original: &[u8], random: &Random) -> BackupKeys {
    let at = original.len() - 12;
    let header_len = u32::from_le_bytes(original[at..at + 4].try_into().unwrap()) as usize;
    let header = &original[original.len() - 20 - header_len..original.len() - 20];
    let header: PackHeader = prost::Message::decode(header).unwrap();
    let owner = KeyOwner {
        repository: header.repository_id.as_slice().try_into().unwrap(),
        series: header.series_id.as_slice().try_into().unwrap(),
        backup: header.backup_id.as_slice().try_into().unwrap(),
    };
    let recipient: Recipient = stage.cluster.recipient.parse().unwrap();
    BackupKeys::generate(random, &[7; 32], owner, SeriesSecret::generate(random), &[recipient]).unwrap()
}

/// A pack of `raw_len` bytes that nobody backed up.
fn forged(keys: &BackupKeys, random: &Random, raw_len: usize, frame_len: usize) -> Vec<u8> {
    let mut writer = keys.begin_pack(random);
    let mut compressor = FrameCompressor::new(1).unwrap();
    for data in tree::noise(4711, raw_len).chunks(frame_len) {
        let mut frame = RawFrame::new();
        frame.push(&Chunk { id: ChunkId([0; 16]), data: data.to_vec().into() });
        let (sealed, _) = writer.assign(frame).ok().unwrap().seal(&mut compressor);
        writer.complete(sealed).unwrap();
    }
    writer.finish().unwrap().body().concat()
}

/// A forged pack just as long as the original.
fn forged_to_fit(stage: &Stage, original: &[u8]) -> Vec<u8> {
    let random = Random::from_os();
    let keys = forged_keys(stage, original, &random);
    let mut raw_len = original.len() - 10_000;
    for attempt in 0..30 {
        // Where a frame more or less keeps it from fitting, frames of another length may fit.
        let bytes = forged(&keys, &random, raw_len, TARGET_RAW - 1_000 * (attempt / 5));
        if bytes.len() == original.len() {
            return bytes;
        }
        raw_len = (raw_len + original.len()).checked_sub(bytes.len()).unwrap();
    }
    panic!("no pack of {} bytes came about", original.len());
}

#[test]
fn a_pack_with_a_slot_of_ones_own_is_refused() {
    let stage = Stage::new();
    let newest = stage.cluster.json(&["backup", "show", "latest:store-1/one"]);
    assert!(newest["packs"].as_u64().unwrap() > 1, "{newest:#}");
    let mut refused = 0;
    for name in packs(&stage.cluster) {
        let bytes = forged_to_fit(&stage, &read(&stage, &name));
        let _forged = Tampered::new(&stage.cluster, &name, |original| *original = bytes);
        for more in [&[][..], &["--file", "file-0"], &["--file", "file-2"], &["--file", "file-4"]] {
            // Not every pack holds something of every file; those that are needed are refused by name.
            let (answer, target) = stage.restore(more);
            stage.nothing_wrong_came_out(&target);
            if answer.code != 0 {
                assert_eq!(answer.code, 7, "{more:?}: {}", answer.stderr);
                assert!(answer.stderr.contains(&name), "{more:?}: {}", answer.stderr);
                refused += 1;
            }
        }
    }
    // The whole backup needs nearly all packs, and each of the files at least one.
    assert!(refused >= 6, "only {refused} refusals");
    stage.works();
}

#[test]
fn swapped_missing_and_cut_packs_are_refused() {
    let stage = Stage::new();
    let names: Vec<String> = packs(&stage.cluster).into_iter().collect();
    let (first, second) = (read(&stage, &names[0]), read(&stage, &names[1]));
    {
        let _one = Tampered::new(&stage.cluster, &names[0], |bytes| bytes.clone_from(&second));
        let _two = Tampered::new(&stage.cluster, &names[1], |bytes| bytes.clone_from(&first));
        let (answer, target) = stage.restore(&[]);
        assert_eq!(answer.code, 7, "swapped: {}", answer.stderr);
        stage.nothing_wrong_came_out(&target);
        // A file lies in some of the packs only: what does not need these two comes out right.
        let mut refused = 0;
        for file in ["file-0", "file-1", "file-2", "file-3", "file-4"] {
            let (answer, target) = stage.restore(&["--file", file]);
            assert!([0, 7].contains(&answer.code), "swapped, {file}: {}", answer.stderr);
            stage.nothing_wrong_came_out(&target);
            refused += u32::from(answer.code == 7);
        }
        assert!(refused >= 1, "no file needs two packs of {}", names.len());
    }
    for name in &names {
        let _gone = Tampered::removed(&stage.cluster, name);
        let (answer, target) = stage.restore(&[]);
        if answer.code != 0 {
            assert!([4, 7].contains(&answer.code), "missing: {}", answer.stderr);
            assert!(answer.stderr.contains(&name.rsplit('/').next().unwrap()[..8]), "{}", answer.stderr);
        }
        stage.nothing_wrong_came_out(&target);
    }
    // Cut short, and longer than it was.
    let _short = Tampered::new(&stage.cluster, &names[0], |bytes| bytes.truncate(bytes.len() / 2));
    let _long = Tampered::new(&stage.cluster, &names[1], |bytes| bytes.extend_from_slice(b"more"));
    assert_eq!(stage.restore(&[]).0.code, 7);
}

#[test]
fn another_series_objects_are_refused() {
    let stage = Stage::new();
    let other = stage.cluster.backup_ok("store-1/two");
    let other = other["series_id"].as_str().unwrap();
    // The newest manifest and all packs of one series, copied under the other as a backup that follows.
    let objects: Vec<String> =
        all_objects(&stage.cluster).into_iter().filter(|name| name.contains(&stage.series)).collect();
    let mut added = Vec::new();
    for name in &objects {
        let bytes = read(&stage, name);
        let copy = name.replace(&stage.series, other);
        if !stage.cluster.objects().join(&copy).exists() {
            added.push(Tampered::added(&stage.cluster, &copy, &bytes));
        }
    }
    let copied = manifests(&stage.cluster).into_iter().rfind(|name| name.contains(other)).unwrap();
    for more in [&[][..], &["--file", "file-0"]] {
        let target = stage.target().display().to_string();
        let arguments = [&["--series", other, "--to", &target, "--yes"], more].concat();
        let answer = stage.cluster.restore_offline(&stage.cluster.identity, &arguments);
        assert_eq!(answer.code, 7, "{}", answer.stderr);
        assert!(answer.stderr.contains(&copied), "does not name {copied}: {}", answer.stderr);
        assert!(!Path::new(&target).join("file-0").exists());
    }
}

#[test]
fn a_trust_policy_and_an_agent_key_of_ones_own_are_refused() {
    let stage = Stage::new();
    let random = Random::from_os();
    let forger = SigningKey::generate(&random);
    let trust = all_objects(&stage.cluster).into_iter().find(|name| name.starts_with("trust/")).unwrap();
    let good = TrustObject::parse(&read(&stage, &trust)).unwrap();
    let recipient: Recipient = stage.cluster.new_identity("forger.key").parse().unwrap();
    let policy = TrustPolicy {
        repository: good.policy().repository,
        version: good.policy().version + 1,
        created: Clock::system().now(),
        previous: Some(good.sha256()),
        rules: vec![Rule {
            scope: String::new(),
            recipients: vec![RuleRecipient { recipient, label: String::new() }],
        }],
        agents: Vec::new(),
        next_roots: Vec::new(),
        next_threshold: 0,
    };
    let next = TrustObject::sign(policy, &[&forger]).unwrap();
    let name = next.name().to_string();
    {
        let _added = Tampered::added(&stage.cluster, &name, next.bytes());
        let (answer, target) = stage.restore(&[]);
        assert_eq!(answer.code, 7, "a policy that no pinned root has signed: {}", answer.stderr);
        assert!(answer.stderr.contains("root"), "{}", answer.stderr);
        assert!(!target.join("file-0").exists());
    }
    // A second key that vouches for itself makes neither good: which one is the host's, only a root key can say.
    let agent: AgentId =
        stage.cluster.json(&["agent", "show", "store-1"])["id"].as_str().unwrap().parse().unwrap();
    let key = AgentKeyObject::first(agent, &forger, UnixMillis(1));
    {
        let _added = Tampered::added(&stage.cluster, &key.name().to_string(), key.bytes());
        let (answer, target) = stage.restore(&[]);
        assert_eq!(answer.code, 7, "a key that the forger made: {}", answer.stderr);
        assert!(!target.join("file-0").exists());
    }
    stage.works();
}

#[test]
fn a_rolled_back_series_is_noticed_by_the_coordinator_and_by_a_witness() {
    let stage = Stage::new();
    let newest = manifests(&stage.cluster).into_iter().next_back().unwrap();
    // What somebody who keeps a witness keeps: what the list printed some time before.
    let witness = stage.cluster.sealift(&["--output", "json", "backup", "list"]).expect(0).text();
    let witness = stage.scratch.file("witness.json", witness, 0o600).display().to_string();
    stage.restore(&["--witness", &witness]).0.expect(0);
    let _gone = Tampered::removed(&stage.cluster, &newest);
    // Offline and without a witness the older backup is all there is, and it is a good one.
    let (answer, _) = stage.restore(&[]);
    assert!(answer.expect(0).stderr.contains("--witness"), "says nothing of what cannot be checked");
    let answer = stage.restore(&["--witness", &witness]);
    let (answer, target) = (answer.0.expect(7), answer.1);
    assert!(answer.stderr.contains("rolled back"), "{}", answer.stderr);
    assert!(!target.join("file-0").exists());
    stage.restore(&["--witness", &witness, "--accept-rollback"]).0.expect(0);
    // Online the coordinator has seen a newer one.
    let target = stage.target();
    let answer = stage.cluster.restore_to("latest:store-1/one", &target, &[]);
    assert!([4, 7].contains(&answer.code), "exit {}: {}", answer.code, answer.stderr);
    assert!(!target.join("file-0").exists());
}

#[test]
fn a_wrong_key_is_a_clear_error() {
    let stage = Stage::new();
    stage.cluster.new_identity("stranger.key");
    let stranger = stage.cluster.scratch().join("stranger.key");
    let target = stage.target();
    let arguments = ["--series", &stage.series, "--to", &target.display().to_string(), "--yes"];
    let answer = stage.cluster.restore_offline(&stranger, &arguments);
    assert_ne!(answer.code, 0);
    let error = answer.stderr.lines().find(|line| line.starts_with("error:")).expect("an error");
    assert!(error.contains("none of the identities"), "{}", answer.stderr);
    assert!(!target.join("file-0").exists());
}
