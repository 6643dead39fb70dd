//! Probes the store at start and again every hour, and more often while it is down. In between a look every quarter of a
//! minute notices that it is gone, or that another bucket is in its place. A store that is down does not keep the coordinator from starting: `status` says so, no
//! backup is started (`runs/storage.rs`), and the next probe that succeeds ends it.

use std::time::Duration;

use sealift_common::id::Random;
use tokio_util::sync::CancellationToken;

use super::error::{ObjectError, ObjectErrorKind};
use super::probe;
use super::store::ObjectStore;

/// Between probes of a store that works.
const INTERVAL: Duration = Duration::from_secs(3_600);
/// Between looks at a store that works.
const LOOK: Duration = Duration::from_secs(15);
/// How long a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// After the first failure; doubles up to [`BACKOFF_CAP`].
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between probes of a store that is down.
const BACKOFF_CAP: Duration = Duration::from_secs(15);

/// Probes `store` until `stop`.
pub async fn run(store: ObjectStore, random: Random, stop: CancellationToken) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let probed = tokio::select! {
            () = stop.cancelled() => return,
            report = probe::run(&store, &random) => report,
        };
        if probed.usable {
            backoff = BACKOFF_FIRST;
            report_warnings(&probed);
            tokio::select! { () = stop.cancelled() => return, () = until_gone(&store) => {} }
        } else {
            let error = probed.error.unwrap_or_default();
            tracing::warn!(error, retry_in_s = backoff.as_secs(), "the object store cannot be used");
            let pause = backoff.mul_f64(0.5 + random.fraction());
            backoff = (backoff * 2).min(BACKOFF_CAP);
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(pause) => {} }
        }
    }
}

/// Until the store is seen to be gone, at most until the next probe is due anyway. That it is gone is known at once: the
/// probe that follows may take long to give up.
async fn until_gone(store: &ObjectStore) {
    let looks = INTERVAL.as_secs() / LOOK.as_secs();
    for _ in 0..looks {
        tokio::time::sleep(LOOK).await;
        if look(store).await.is_ok() {
            continue;
        }
        // One answer that was lost is no reason to hold anything.
        tokio::time::sleep(BACKOFF_FIRST).await;
        let Err(error) = look(store).await else { continue };
        tracing::warn!(error = &error as &dyn std::error::Error, "the object store is gone");
        store.set_report(probe::unusable(store, &error));
        return;
    }
}

async fn look(store: &ObjectStore) -> Result<(), ObjectError> {
    let silent = |_| ObjectError {
        operation: "list",
        object: String::new(),
        kind: ObjectErrorKind::Unreachable,
        source: None,
    };
    tokio::time::timeout(LOOK_TIMEOUT, store.look()).await.map_err(silent)?
}

fn report_warnings(report: &probe::ProbeReport) {
    for finding in report.findings.iter().filter(|f| f.warning) {
        tracing::warn!(check = finding.check, result = finding.result, "object store: {}", finding.meaning);
    }
}
