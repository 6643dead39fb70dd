//! `sealift-agent check`: everything that can be told before the first backup, each with what to do about it.

use tokio_util::sync::CancellationToken;

use sealift_common::clock::Clock;

use crate::bandwidth::Limits;
use crate::config::Config;
use crate::config::secret::Environment;
use crate::identity::Identity;
use crate::put::PutClient;
use crate::source::{self, SourceEnv, whole_chain};
use crate::state::dir::{StateDir, StateError};

/// Checks and prints one line each; says whether all was well.
pub async fn check(config: &Config, environment: Environment) -> bool {
    let mut report = Report { all_good: true };
    report.good("config", &format!("{} sources", config.sources.len()));
    config.warnings.iter().for_each(|warning| report.odd("config", warning));
    check_state(config, &mut report);
    let proxy = match config.proxy.resolve(&environment) {
        Ok(proxy) => {
            if let Some(proxy) = &proxy {
                report.good("proxy", &proxy.address());
            }
            proxy
        }
        Err(error) => {
            report.bad("proxy", &whole_chain(&error));
            None
        }
    };
    match PutClient::new(&config.s3, proxy, Limits::default()) {
        Ok(_) => report.good("s3", "certificates can be used"),
        Err(error) => report.bad("s3", &whole_chain(&error)),
    }
    match SourceEnv::open(config, environment) {
        Ok(env) => {
            for one in &config.sources {
                let found = source::test(one, &env, CancellationToken::new()).await;
                let versions = [("tool", &found.tool_version), ("server", &found.server_version)];
                let versions: String = versions
                    .iter()
                    .filter(|(_, version)| !version.is_empty())
                    .map(|(what, version)| format!(" [{what} {version}]"))
                    .collect();
                let line = format!("{}{versions}", found.detail);
                let what = format!("source {}", one.name);
                if found.ok { report.good(&what, &line) } else { report.bad(&what, &line) }
            }
        }
        Err(error) => report.bad("sources", &whole_chain(&error)),
    }
    report.all_good
}

fn check_state(config: &Config, report: &mut Report) {
    let state = match StateDir::open(config.state_dir.as_path()) {
        Ok(state) => state,
        // The agent runs: that is how it should be.
        Err(error @ StateError::InUse { .. }) => return report.good("state", &error.to_string()),
        Err(error) => return report.bad("state", &whole_chain(&error)),
    };
    match state.check_space() {
        Ok(()) => report.good("state", &config.state_dir.as_path().display().to_string()),
        Err(error) => report.bad("state", &error.to_string()),
    }
    match Identity::load(&state) {
        Ok(identity) if identity.not_after <= Clock::system().now() => {
            let line = format!(
                "{}: the certificate expired at {}; the agent replaces it when it runs",
                identity.name, identity.not_after
            );
            report.odd("identity", &line);
        }
        Ok(identity) => {
            report.good("identity", &format!("{}, certificate until {}", identity.name, identity.not_after));
        }
        Err(error) => report.bad("identity", &whole_chain(&error)),
    }
}

struct Report {
    all_good: bool,
}

#[allow(clippy::print_stdout)] // the command's result
impl Report {
    fn good(&mut self, what: &str, line: &str) {
        println!("ok    {what}: {line}");
    }

    fn odd(&mut self, what: &str, line: &str) {
        println!("warn  {what}: {line}");
    }

    fn bad(&mut self, what: &str, line: &str) {
        self.all_good = false;
        println!("FAIL  {what}: {line}");
    }
}
