//! Probes the store at start and again every hour, and more often while it is down. A store that is down does not keep the
//! coordinator from starting: `status` says so, and the next probe that succeeds ends it.

use std::time::Duration;

use sealift_common::id::Random;
use tokio_util::sync::CancellationToken;

use super::probe;
use super::store::ObjectStore;

/// Between probes of a store that works.
const INTERVAL: Duration = Duration::from_secs(3_600);
/// After the first failure; doubles up to [`BACKOFF_CAP`].
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between probes of a store that is down.
const BACKOFF_CAP: Duration = Duration::from_secs(60);

/// Probes `store` until `stop`.
pub async fn run(store: ObjectStore, random: Random, stop: CancellationToken) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let probed = tokio::select! {
            () = stop.cancelled() => return,
            report = probe::run(&store, &random) => report,
        };
        let pause = if probed.usable {
            backoff = BACKOFF_FIRST;
            report_warnings(&probed);
            INTERVAL
        } else {
            let error = probed.error.unwrap_or_default();
            tracing::warn!(error, retry_in_s = backoff.as_secs(), "the object store cannot be used");
            let pause = backoff.mul_f64(0.5 + random.fraction());
            backoff = (backoff * 2).min(BACKOFF_CAP);
            pause
        };
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(pause) => {} }
    }
}

fn report_warnings(report: &probe::ProbeReport) {
    for finding in report.findings.iter().filter(|f| f.warning) {
        tracing::warn!(check = finding.check, result = finding.result, "object store: {}", finding.meaning);
    }
}
