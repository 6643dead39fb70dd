//! Dependencies run one way (ARCHITECTURE.md): a forbidden import fails here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use sealift_tests::workspace;

/// Files or folders, and what none of their lines may name.
struct Rule {
    where_: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        where_: &[
            "coordinator/src/runs/state.rs",
            "coordinator/src/retention/rules.rs",
            "coordinator/src/retention/plan.rs",
            "coordinator/src/retention/packs.rs",
            "coordinator/src/retention/states.rs",
            "coordinator/src/retention/beside.rs",
            "coordinator/src/policy/delay.rs",
            "coordinator/src/policy/document.rs",
            "coordinator/src/policy/guards.rs",
            "coordinator/src/policy/promise.rs",
            "coordinator/src/policy/resolve.rs",
            "coordinator/src/policy/uplink.rs",
            "coordinator/src/scheduler/next_run.rs",
            "coordinator/src/scheduler/plan.rs",
        ],
        never: &["tokio", "sqlx", "crate::store", "crate::objects", "std::fs", "std::net", "async fn"],
        why: "states and plans are pure",
    },
    Rule {
        where_: &["coordinator/src/store"],
        never: &["crate::api", "crate::objects", "crate::sessions", "sealift_proto", "tonic"],
        why: "the store knows neither the wire nor the bucket",
    },
    Rule {
        where_: &["coordinator/src/objects"],
        never: &["crate::api", "crate::store", "crate::sessions", "sealift_proto::v1", "sqlx"],
        why: "the object store knows neither the wire nor the database",
    },
    Rule {
        where_: &[
            "coordinator/src/audit",
            "coordinator/src/runs",
            "coordinator/src/identity",
            "coordinator/src/series",
            "coordinator/src/retention",
            "coordinator/src/policy",
            "coordinator/src/scheduler",
        ],
        never: &["crate::api", "sqlx::"],
        why: "api depends on domain modules, never the other way; SQL lives in store/",
    },
    Rule {
        where_: &[
            "agent/src/source",
            "agent/src/chunk.rs",
            "agent/src/frame.rs",
            "agent/src/pack.rs",
            "agent/src/dedup.rs",
            "agent/src/upload.rs",
            "agent/src/spool",
        ],
        never: &["crate::session", "crate::attempt", "crate::identity", "crate::agent"],
        why: "a stage of the pipeline does not know the session",
    },
    Rule {
        where_: &["agent/src/source"],
        never: &["crate::chunk", "crate::frame", "crate::pack", "crate::dedup", "crate::put"],
        why: "a source does not know what follows",
    },
    Rule {
        where_: &["agent/src/config", "coordinator/src/config"],
        never: &["crate::session::", "crate::api", "crate::source::", "tonic"],
        why: "configuration is parsed before anything runs",
    },
    Rule {
        where_: &["common/src/format", "common/src/crypto"],
        never: &["tokio", "tonic", "reqwest", "std::net"],
        why: "the format is bytes, without I/O of its own",
    },
    Rule {
        where_: &["agent/src", "coordinator/src", "coordinator/cli/src", "common/src"],
        never: &["extern crate ring", "use ring::", "openssl::"],
        why: "one crypto provider: aws-lc-rs",
    },
];

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| rust_files(&path))
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Lines of code outside of comments and of the tests at a file's end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(n, line)| (n + 1, line))
}

#[test]
fn imports_run_one_way() {
    let mut broken = Vec::new();
    for rule in RULES {
        for place in rule.where_ {
            let files = rust_files(&workspace().join(place));
            assert!(
                !files.is_empty(),
                "no Rust file in {place}: the rule has lost its object, move it along"
            );
            for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
                let text = std::fs::read_to_string(file).unwrap();
                for (n, line) in code(&text) {
                    if let Some(name) = rule.never.iter().find(|name| line.contains(**name)) {
                        let file = file.strip_prefix(workspace()).unwrap().display();
                        broken.push(format!("{file}:{n}: {name} ({})", rule.why));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
