//! Commands as sources, and what holds for every child process.

mod support;

use std::path::Path;
use std::time::Duration;

use sealift_agent::source::SourceError;
use support::{Bench, wait_until};
use tokio_util::sync::CancellationToken;

fn shell(script: &str) -> String {
    format!("[[source]]\nname = \"c\"\nkind = \"command\"\ncommand = [\"sh\", \"-c\", '''{script}''']\n")
}

#[tokio::test]
async fn what_a_command_prints_is_its_stream() {
    let bench = Bench::new(&shell("head -c 3000000 /dev/zero; echo end"));
    let got = bench.run("c").await.unwrap();
    let stream = got.stream("stdout");
    assert_eq!(stream.len(), 3_000_004);
    assert!(stream.ends_with(b"end\n"));
    assert!(got.warnings.is_empty());
}

#[tokio::test]
async fn a_command_that_fails_after_half_is_no_backup() {
    let bench = Bench::new(&shell("echo half; echo disk on fire >&2; exit 3"));
    let error = bench.run("c").await.unwrap_err();
    let SourceError::ToolFailed { status, stderr, .. } = &error else { panic!("{error:?}") };
    assert_eq!((status.as_str(), stderr.as_str()), ("exit status 3", "disk on fire"));
    assert!(error.to_string().contains("disk on fire") && error.is_retryable());
}

#[tokio::test]
async fn a_killed_command_is_no_backup() {
    let error = Bench::new(&shell("echo half; kill -9 $$")).run("c").await.unwrap_err();
    assert!(error.to_string().contains("signal 9"), "{error}");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let bench =
        Bench::new("[[source]]\nname = \"c\"\nkind = \"command\"\ncommand = [\"/nonexistent/tool\"]\n");
    let error = bench.run("c").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/tool"), "{error}");
    assert!(!bench.test("c").await.ok);
}

#[tokio::test]
async fn the_environment_is_empty_but_for_what_is_declared() {
    let text = shell("env; cat /proc/self/stat | cut -d' ' -f19 >&2; nice >&2; exit 1")
        + "env = { API_TOKEN = \"${TOKEN}\", COLOUR = \"blue\" }\n";
    let bench = Bench::with(&text, &[("TOKEN", "hunter2"), ("OTHER", "leak")]);
    let (events, error) = bench.run_all("c").await;
    let stderr = error.unwrap_err().stderr().to_owned();
    assert!(stderr.lines().all(|line| line == "10"), "nice value: {stderr}");
    let printed = String::from_utf8(events.data()).unwrap();
    let mut names: Vec<_> =
        printed.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["API_TOKEN", "COLOUR", "HOME", "LC_ALL", "PATH", "PWD", "TMPDIR"]);
    assert!(printed.contains("API_TOKEN=hunter2"));
}

#[tokio::test]
async fn secrets_are_kept_out_of_errors() {
    let text =
        shell("echo token $API_TOKEN was refused >&2; exit 1") + "env = { API_TOKEN = \"${TOKEN}\" }\n";
    let error = Bench::with(&text, &[("TOKEN", "hunter2")]).run("c").await.unwrap_err();
    let shown = format!("{error} {error:?} {}", error.stderr());
    assert!(shown.contains("token [redacted] was refused") && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn a_silent_command_is_ended_as_stalled() {
    let mut bench = Bench::new(&shell("echo start; sleep 1000"));
    bench.env.stall_timeout = Duration::from_millis(300);
    let error = bench.run("c").await.unwrap_err();
    assert!(matches!(error, SourceError::ToolStalled { .. }), "{error:?}");
}

#[tokio::test]
async fn cancelling_ends_the_whole_group() {
    // A grandchild that ignores SIGTERM.
    let pids = tempfile::tempdir().unwrap();
    let script = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {0}/a; sleep 1000' & echo $$ > {0}/b; sleep 1000",
        pids.path().display()
    );
    let bench = Bench::new(&shell(&script));
    let cancel = CancellationToken::new();
    let files = [pids.path().join("a"), pids.path().join("b")];
    let pid = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<i32>().ok();
    let (error, started) = tokio::join!(bench.run_until("c", cancel.clone()), async {
        wait_until("both processes run", || files.iter().all(|path| pid(path).is_some())).await;
        cancel.cancel();
        files.each_ref().map(|path| pid(path).unwrap())
    });
    assert!(matches!(error, Err(SourceError::Cancelled)));
    for pid in started {
        wait_until("the process is gone", || !support::is_alive(pid)).await;
    }
    assert_eq!(bench.temp_files(), Vec::<String>::new());
}

#[tokio::test]
async fn dropping_ends_the_group() {
    let pids = tempfile::tempdir().unwrap();
    let file = pids.path().join("pid");
    let bench = Bench::new(&shell(&format!("echo $$ > {}; sleep 1000", file.display())));
    let pid = || std::fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok();
    tokio::select! {
        _ = bench.run("c") => panic!("it sleeps"),
        () = wait_until("it runs", || pid().is_some()) => {}
    }
    let pid = pid().unwrap();
    wait_until("the process is gone", || !support::is_alive(pid)).await;
}

/// Runs a source until somebody kills this very process.
#[tokio::test]
#[ignore = "started by another test as a process of its own"]
async fn an_agent_to_be_killed() {
    let dir = std::env::var("AGENT_DIR").expect("only another test starts this");
    let bench =
        Bench::in_directory(Path::new(&dir), &shell(&format!("echo $$ > {dir}/pid; exec sleep 1000")), &[]);
    let _secret = bench.env.temp.file("pgpass-").unwrap();
    let _ = bench.run("c").await;
}

#[tokio::test]
async fn an_agent_that_is_killed_takes_its_tools_along_and_its_files_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap());
    agent.args(["--exact", "an_agent_to_be_killed", "--ignored"]).env("AGENT_DIR", dir.path());
    let mut agent = agent.stdout(std::process::Stdio::null()).spawn().unwrap();
    let pid = || std::fs::read_to_string(dir.path().join("pid")).ok()?.trim().parse::<i32>().ok();
    wait_until("the tool runs", || pid().is_some_and(support::is_alive)).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    wait_until("the tool is gone too", || !support::is_alive(pid().unwrap())).await;
    let left = || std::fs::read_dir(dir.path().join("state/tmp")).unwrap().count();
    assert_eq!(left(), 1, "a killed process cannot tidy up");
    let next = Bench::in_directory(dir.path(), &shell("true"), &[]);
    assert_eq!((left(), next.temp_files().len()), (1, 0), "the next one does");
}
