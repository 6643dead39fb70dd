//! Finds out what a store really does with the requests Sealift makes. Servers that call themselves S3 differ in what they
//! verify and in what they let ride along unsigned on a signed PUT; a 200 says nothing about either. So each promise is
//! tried out on small objects below `coordinator/probe/`, which are removed afterwards.
//!
//! What is found is shown by `status` in plain sentences ([`Finding`]) and acted on ([`Abilities`]): for one, packs are
//! read back and hashed where the store does not verify the signed hash.
//!
//! To add a check: a method on [`Prober`], a line in its `check_all`, its wording, and, if the coordinator should act on it,
//! a field of [`Abilities`].

mod checks;
mod requests;
mod wording;

use sealift_common::clock::UnixMillis;
use sealift_common::id::Random;

use super::store::ObjectStore;
use checks::Prober;

/// What the coordinator relies on. The default is what is assumed of a store that was never probed: nothing good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// A body that is not the signed one is refused. Where not, packs are read back and hashed.
    pub verifies_body_hash: bool,
    /// `x-amz-checksum-sha256` is compared with the body.
    pub verifies_checksum: bool,
    /// `if-none-match: *` is honoured.
    pub if_none_match: bool,
    /// The bucket has Object Lock, and a lock that is asked for is there afterwards.
    pub object_lock: bool,
    /// The bucket locks every object by itself, asked or not.
    pub default_lock: bool,
    /// The bucket keeps versions.
    pub versioning: bool,
    /// An unsigned `x-amz-copy-source` turns a signed PUT into a copy.
    pub unsigned_copy_source: bool,
    /// An unsigned `x-amz-acl` is obeyed.
    pub unsigned_acl: bool,
    /// Unsigned lock headers are obeyed.
    pub unsigned_lock: bool,
    /// Unsigned SSE-C headers are obeyed.
    pub unsigned_sse_c: bool,
}

/// One thing the probe looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in snake case.
    pub check: &'static str,
    /// What was found, in a word or two.
    pub result: String,
    /// What that means for the admin, in a plain sentence.
    pub meaning: &'static str,
    /// Whether the admin should do something about it.
    pub warning: bool,
}

/// Everything a probe found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// When it was made; `None` before the first.
    pub probed: Option<UnixMillis>,
    /// Whether objects can be written, read and listed.
    pub usable: bool,
    /// Why not.
    pub error: Option<String>,
    /// What was looked at.
    pub findings: Vec<Finding>,
    /// What the coordinator relies on from now on.
    pub abilities: Abilities,
}

/// Probes the store and makes the coordinator act on what was found. A store that is down keeps the abilities last seen.
pub async fn run(store: &ObjectStore, random: &Random) -> ProbeReport {
    let prober = Prober::new(store, random);
    // Nothing is written into what may be another bucket.
    let checked = async {
        store.look().await?;
        prober.check_all().await
    };
    let report = match checked.await {
        Ok((findings, abilities)) => {
            ProbeReport { probed: Some(store.clock().now()), usable: true, error: None, findings, abilities }
        }
        Err(error) => unusable(store, &error),
    };
    if report.usable {
        prober.clean_up().await;
    }
    store.set_report(report.clone());
    report
}

/// What is known of a store that cannot be used: why, and what was found before.
pub(super) fn unusable(store: &ObjectStore, error: &dyn std::error::Error) -> ProbeReport {
    ProbeReport {
        probed: Some(store.clock().now()),
        usable: false,
        error: Some(chain(error)),
        findings: store.report().findings.clone(),
        abilities: store.abilities(),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
