//! A new CA in the place of one that is lost.
//!
//! Hosts have pinned the lost one, so nothing that the new one signs means anything to them. What they have pinned as well
//! are the root keys of the trust policy: these sign a [`CaStatement`], the coordinator shows it to whoever asks, and hosts
//! that find it good take the new CA for theirs and get a certificate of it by their signing key's word, like those that
//! slept through the expiry of theirs.

use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use sealift_common::clock::UnixMillis;
use sealift_common::crypto::trust::RootsInForce;
use sealift_common::crypto::{CaStatement, CaStatementError, SigningKey};
use sealift_common::id::Sha256;

use super::ca::{Ca, CaError, STATEMENT};
use super::files;
use super::peer::TrustDomain;
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::core::Core;
use crate::store::{StoreError, installation};

/// The fact of the installation that says whose certificates are good: the fingerprint of the CA's.
pub const CA_FACT: &str = "ca_sha256";
/// The CA's files.
const FILES: [&str; 3] = ["ca.key", "ca.pem", STATEMENT];

/// Why there is no new CA.
#[derive(Debug, thiserror::Error)]
pub enum CaResetError {
    /// Hosts would not obey these root keys.
    #[error(
        "hosts would not obey it: give the root keys in force with --root-key (`sealift trust show` names them)"
    )]
    Roots(#[source] CaStatementError),
    /// It cannot be made.
    #[error("cannot make a new CA")]
    Ca(#[from] CaError),
    /// The audit.
    #[error("cannot record that the CA is replaced")]
    Store(#[from] StoreError),
}

/// A CA that took the place of another.
#[derive(Debug)]
pub struct NewCa {
    /// It.
    pub ca: Ca,
    /// The fingerprint of the one before, where the database knew it.
    pub before: Option<String>,
    /// Where what was left of the one before lies now.
    pub aside: Option<PathBuf>,
}

/// Makes a new CA in `dir`, for which `keys` vouch; what is there is set aside. No coordinator may run on it.
///
/// # Errors
/// [`CaResetError`]; [`CaResetError::Roots`] before anything is changed.
pub async fn reset(
    core: &Core,
    dir: &Path,
    domain: TrustDomain,
    roots: &RootsInForce,
    keys: &[SigningKey],
) -> Result<NewCa, CaResetError> {
    let now = core.clock.now();
    check(core, roots, keys)?;
    let new = dir.join(format!("new-{}", now.0));
    let ca = Ca::open_or_create(&new, domain.clone(), core.clock.clone(), core.random.clone())?;
    let said = CaStatement::sign(core.repository, ca.fingerprint(), now, keys);
    let path = new.join(STATEMENT);
    files::write_whole(&path, said.to_json().as_bytes(), 0o644).map_err(|source| CaError::File {
        operation: "write",
        path,
        source,
    })?;
    let before = record(core, &ca, Outcome::Intended).await?;
    let aside = set_aside(dir, now)?;
    for name in FILES {
        rename(&new.join(name), &dir.join(name))?;
    }
    // Empty by now; what stays of it does no harm.
    let _ = std::fs::remove_dir(&new);
    record(core, &ca, Outcome::Done).await?;
    let ca = Ca::open_or_create(dir, domain, core.clock.clone(), core.random.clone())?;
    Ok(NewCa { ca, before, aside })
}

/// Whether hosts would obey what `keys` say.
///
/// # Errors
/// [`CaResetError::Roots`].
pub fn check(core: &Core, roots: &RootsInForce, keys: &[SigningKey]) -> Result<(), CaResetError> {
    let trial = b"a certificate";
    let said = CaStatement::sign(core.repository, Sha256::of(trial), core.clock.now(), keys);
    said.verify(roots, core.repository, trial).map_err(CaResetError::Roots)
}

/// Records it with what was before; once it is done, the database knows the new one.
async fn record(core: &Core, ca: &Ca, outcome: Outcome) -> Result<Option<String>, StoreError> {
    let (ctx, after) = (&OpContext::coordinator(core), &ca.fingerprint().to_string());
    let write = core.store.run_tx("record that the CA is replaced", move |tx, _| {
        async move {
            let before = installation::get(tx, CA_FACT).await?;
            let said = Details::none().with("before", before.clone()).with("after", after.as_str());
            ctx.record(tx, Action::CaReset, &"ca", outcome, said).await?;
            if outcome == Outcome::Done {
                installation::set(tx, CA_FACT, Some(after)).await?;
            }
            Ok(before)
        }
        .boxed()
    });
    write.await
}

/// Moves what is left of a CA away; nothing of it is lost.
fn set_aside(dir: &Path, now: UnixMillis) -> Result<Option<PathBuf>, CaError> {
    if !FILES.iter().any(|name| dir.join(name).exists()) {
        return Ok(None);
    }
    let aside = dir.join(format!("set-aside-{}", now.0));
    files::make_private_dir(&aside).map_err(|source| CaError::File {
        operation: "make",
        path: aside.clone(),
        source,
    })?;
    for name in FILES.iter().filter(|name| dir.join(name).exists()) {
        rename(&dir.join(name), &aside.join(name))?;
    }
    Ok(Some(aside))
}

fn rename(from: &Path, to: &Path) -> Result<(), CaError> {
    std::fs::rename(from, to).map_err(|source| CaError::File {
        operation: "move away",
        path: from.to_owned(),
        source,
    })
}
