//! The independent restorer, written from docs/format.md alone, reads what the agent stored.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;

use sealift_tests::cluster::Cluster;
use sealift_tests::faults::{Tampered, packs};
use sealift_tests::scratch::Scratch;
use sealift_tests::{tool, tree, workspace};

fn restorer(cluster: &Cluster, identity: &Path, series: &str, to: &Path) -> Command {
    let mut command = Command::new(tool("python"));
    command.arg(workspace().join("tests/restorer/restore.py")).arg(cluster.objects());
    command.args(["--root-key-sha256", &cluster.root_pins[0], "--series", series, "--identity"]);
    command.arg(identity).arg("--to").arg(to);
    command
}

#[test]
fn python_reads_what_the_agent_stored() {
    let (scratch, cluster) = (Scratch::new("restorer"), Cluster::dev());
    let content = tree::noise(7, 40 << 20);
    let file = scratch.file("content", &content, 0o600).display().to_string();
    let data = scratch.private_dir("data");
    tree::make_oddities(&data);
    let sources = format!(
        "[[source]]\nname = \"dump\"\nkind = \"command\"\ncommand = [\"/bin/cat\", {file:?}]\n\
         [[source]]\nname = \"files\"\nkind = \"directory\"\npath = {:?}\n",
        data.display().to_string()
    );
    let _agent = cluster.agent("store-1", &sources);
    cluster.backup_ok("store-1/dump");
    // A second backup refers to packs of the first, whose data key it does not know.
    let mut changed = content;
    changed[20 << 20] ^= 1;
    std::fs::write(&file, &changed).unwrap();
    let dump = cluster.backup_ok("store-1/dump");
    let files = cluster.backup_ok("store-1/files");

    let series = dump["series_id"].as_str().unwrap();
    let to = scratch.join("dump");
    sealift_tests::process::run(restorer(&cluster, &cluster.identity, series, &to));
    let stream = dump["streams"][0]["name"].as_str().unwrap();
    assert!(std::fs::read(to.join(stream)).unwrap() == changed, "other bytes came back");

    // Of a directory it writes the archive: tar knows what to do with it.
    let to = scratch.join("files");
    sealift_tests::process::run(restorer(
        &cluster,
        &cluster.identity,
        files["series_id"].as_str().unwrap(),
        &to,
    ));
    let streams = files["streams"].as_array().unwrap();
    let archive =
        streams.iter().find(|stream| stream["kind"] == "pax-tar" || stream["kind"] == "tar").unwrap();
    let unpacked = scratch.private_dir("unpacked");
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "-xf"]).arg(to.join(archive["name"].as_str().unwrap())).arg("-C").arg(&unpacked);
    sealift_tests::process::run(tar);
    assert_eq!(names(&unpacked), names(&data));

    // It refuses what does not hold, as the page says.
    let pack = packs(&cluster).into_iter().find(|name| name.contains(series)).unwrap();
    let _tampered = Tampered::new(&cluster, &pack, |bytes| bytes[1000] ^= 1);
    let refused = restorer(&cluster, &cluster.identity, series, &scratch.join("refused")).output().unwrap();
    assert!(!refused.status.success());
    cluster.new_identity("stranger.key");
    let stranger = cluster.scratch().join("stranger.key");
    let refused = restorer(&cluster, &stranger, series, &scratch.join("refused")).output().unwrap();
    assert!(!refused.status.success());
}

fn names(root: &Path) -> Vec<Vec<u8>> {
    tree::read(root).into_keys().collect()
}
