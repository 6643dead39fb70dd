//! What `deploy/` ships is sound: systemd reads the units without a complaint and finds them tightly confined.
#![allow(clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use sealift_tests::process::{program, run};
use sealift_tests::scratch::Scratch;
use sealift_tests::workspace;

const INSTALL: &str = "apt-get install systemd (make test does)";

/// The units with a program that exists: systemd checks that too, and nothing is installed in /usr/bin here.
fn units(scratch: &Scratch) -> Vec<PathBuf> {
    let folder = workspace().join("deploy/systemd");
    let entries = std::fs::read_dir(folder).expect("deploy/systemd");
    let mut units: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    units.sort();
    units
        .iter()
        .map(|unit| {
            let name = unit.file_name().and_then(|name| name.to_str()).expect("a UTF-8 name");
            let program = format!("/usr/bin/{}", name.trim_end_matches(".service"));
            let text = std::fs::read_to_string(unit).expect("unit");
            assert!(text.contains(&program), "{name} starts {program}");
            scratch.file(name, text.replace(&program, "/bin/true"), 0o644)
        })
        .collect()
}

#[test]
fn units_are_valid_and_confined() {
    let scratch = Scratch::new("units");
    let units = units(&scratch);
    assert_eq!(units.len(), 2);
    for unit in units {
        let analyze = || Command::new(program(&["systemd-analyze"], INSTALL));
        let mut verify = analyze();
        verify.arg("verify").arg(&unit);
        let output = run(verify);
        assert!(output.stderr.is_empty(), "{}: {}", unit.display(), String::from_utf8_lossy(&output.stderr));
        // 0 is no exposure at all, 100 none of the confinement.
        let mut security = analyze();
        security.args(["security", "--offline=true", "--no-pager", "--threshold=20"]).arg(&unit);
        run(security);
    }
}
