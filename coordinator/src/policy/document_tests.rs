use super::*;

/// The policy of docs/cli.md, word for word.
const EXAMPLE: &str = r#"
name = "stores-nightly"
[select]
labels = "role=pos,region in (eu,uk)"
sources = ["main-db", "kind=sqlite"]
[schedule]
cron = "0 2 * * *"
timezone = "site"
spread = "2h"
window = "5h"
catch_up = "if-older-than 20h"
[retention]
last = 3
daily = 7
weekly = 4
monthly = 12
[limits]
bandwidth = "20MiB/s"
concurrent_per_site = 1
stall_timeout = "30m"
max_duration = "12h"
at_window_end = "continue"
[verify]
hash = { every = "90d", budget = "200GiB/day" }
drill = "30d"
[alert]
overdue_after = "26h"
"#;

#[test]
fn the_policy_of_the_contract_is_read() {
    let policy: Policy = EXAMPLE.parse().unwrap();
    assert_eq!(policy.name.as_str(), "stores-nightly");
    let schedule = policy.schedule.as_ref().unwrap();
    assert_eq!((schedule.cron.to_string().as_str(), &schedule.timezone), ("0 2 * * *", &Zone::Site));
    assert_eq!(schedule.catch_up, CatchUp::IfOlderThan(Span(Duration::from_secs(20 * 3_600))));
    assert_eq!(policy.limits.bandwidth, Some(ByteSize(20 << 20)));
    assert_eq!(policy.retention.to_string(), "last 3, daily 7, weekly 4, monthly 12");
    assert_eq!(policy.alert.overdue_after, Some(Span(Duration::from_secs(26 * 3_600))));
    assert_eq!(policy.attempts(), DEFAULT_ATTEMPTS);
}

#[test]
fn the_documents_example_is_the_one_tested() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let section = docs.split("name = \"stores-nightly\"").nth(1).expect("docs/cli.md shows a policy");
    let shown = format!("name = \"stores-nightly\"{}", section.split("```").next().unwrap());
    assert_eq!(shown.parse::<Policy>().unwrap(), EXAMPLE.parse::<Policy>().unwrap());
}

#[test]
fn what_is_parsed_is_written_and_read_again_as_the_same() {
    let policy: Policy = EXAMPLE.parse().unwrap();
    let json = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
    assert_eq!(toml::to_string(&policy).unwrap().parse::<Policy>().unwrap(), policy);
}

#[test]
fn a_policy_may_be_as_short_as_its_name() {
    let policy: Policy = "name = \"all\"".parse().unwrap();
    assert!(policy.select.labels.is_empty() && policy.select.sources.is_empty() && policy.schedule.is_none());
}

#[test]
fn slips_are_refused_and_named() {
    let with = |line: &str, by: &str| EXAMPLE.replace(line, by);
    for (text, problem) in [
        (with("last = 3", "lats = 3"), "line 13, column 1: unknown field `lats`"),
        (with("[alert]", "[alarm]"), "unknown field `alarm`"),
        (with("0 2 * * *", "0 2 * *"), "is not a cron expression"),
        (with("0 2 * * *", "0 0 2 * * *"), "is not a cron expression"),
        (with("0 2 * * *", "0 0 30 2 *"), "is never due"),
        (with("\"site\"", "\"Europe/Atlantis\""), "is not a time zone"),
        (with("role=pos", "role like"), "line 4, column 10: selector"),
        (with("kind=sqlite", "kind=SQLite"), "source pattern"),
        (with("\"2h\"", "\"6h\""), "schedule.spread: 6h is longer than the window, 5h"),
        (with("\"5h\"", "\"8d\""), "schedule.window: 8d is not between 1m and 7d"),
        (with("\"if-older-than 20h\"", "\"sometimes\""), "if-older-than 20h"),
        (with("20MiB/s", "fast"), "is not a size"),
        (with("20MiB/s", "0"), "limits.bandwidth"),
        (with("concurrent_per_site = 1", "concurrent_per_site = 0"), "limits.concurrent_per_site"),
        (with("concurrent_per_site = 1", "attempts = 21"), "limits.attempts"),
        (with("concurrent_per_site = 1", "compression = 40"), "limits.compression"),
        (with("\"30m\"", "\"1s\""), "limits.stall_timeout"),
        (with("\"continue\"", "\"explode\""), "unknown variant `explode`"),
        (with("window = \"5h\"", "").replace("continue", "stop"), "\"stop\" needs a window"),
        (with("last = 3", "last = 20000"), "too many"),
        (with("last = 3", "last = -3"), "line 13"),
        (with("200GiB/day", "200GiB"), "200GiB/day"),
        (with("name = \"stores-nightly\"", "name = \"Stores\""), "is not a name"),
        (with("name = \"stores-nightly\"", ""), "missing field `name`"),
        (format!("priority = 2000\n{EXAMPLE}"), "priority"),
        ("x".repeat(MAX_DOCUMENT + 1), "larger than 64 KiB"),
    ] {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}\nshould have said: {problem}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}
