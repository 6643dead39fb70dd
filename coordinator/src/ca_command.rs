//! `sealift-coordinator ca reset`: a new CA where the old one is lost (docs/recovery.md).

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use sealift_common::clock::Clock;
use sealift_common::crypto::trust::{RootPin, RootsInForce, verify_chain};
use sealift_common::crypto::{SigningKey, TrustObject, key_file};
use sealift_common::id::Random;
use sealift_coordinator::config::Settings;
use sealift_coordinator::core::Core;
use sealift_coordinator::identity::ca::Ca;
use sealift_coordinator::identity::ca_reset::{self, NewCa};
use sealift_coordinator::recovery::backup::Signer;
use sealift_coordinator::recovery::import;
use sealift_coordinator::store::{Dialect, Store, StoreError, coordinators, trust};
use serde_json::json;

use crate::recover_command::{Output, Place, passphrase, show};

/// A coordinator that said so recently that it is alive still runs.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(60);

/// `sealift-coordinator ca …`
#[derive(Debug, clap::Subcommand)]
pub enum CaCommand {
    /// Make a new CA where the old one is lost; hosts obey it because root keys sign it. The coordinator must not be running.
    #[command(
        after_help = "Examples:\n  sealift-coordinator ca reset --config /etc/sealift/coordinator.toml --root-key root.key --dry-run\n  sealift-coordinator ca reset --config /etc/sealift/coordinator.toml --root-key root.key"
    )]
    Reset(CaReset),
}

/// `sealift-coordinator ca reset`
#[derive(Debug, clap::Args)]
pub struct CaReset {
    #[command(flatten)]
    place: Place,
    /// A private root key; may be repeated, where it takes several
    #[arg(long, value_name = "FILE", required = true)]
    root_key: Vec<PathBuf>,
    /// The passphrase of a root key, where it has one
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Also where the CA is there and can be used: it is set aside
    #[arg(long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl CaReset {
    /// Replaces the CA.
    pub async fn run(&self) -> anyhow::Result<()> {
        let random = Random::from_os();
        let found = self.place.find(&random).await?;
        let keys = self.keys()?;
        let done = match Store::open(&found.settings.database).await {
            Ok(store) => {
                let done = self.reset(&found.settings, &store, &keys, &random).await;
                store.close().await;
                done
            }
            Err(error @ StoreError::Locked { .. }) => Err(error).context(
                "a coordinator runs on this database: stop it (systemctl stop sealift-coordinator) and say this again",
            ),
            Err(error) => Err(error.into()),
        };
        found.lifecycle.hard.cancel();
        done
    }

    fn keys(&self) -> anyhow::Result<Vec<SigningKey>> {
        let load = |path: &PathBuf| {
            Ok(key_file::load_root_key(path, || passphrase(self.passphrase_file.as_deref()))?)
        };
        self.root_key.iter().map(load).collect()
    }

    async fn reset(
        &self,
        settings: &Settings,
        store: &Store,
        keys: &[SigningKey],
        random: &Random,
    ) -> anyhow::Result<()> {
        let core = Core::load(store.clone(), Clock::system(), random.clone()).await?;
        if import::is_unused(store).await? {
            bail!(
                "this database knows no host: bring it back first (sealift-coordinator recover --from-bucket), then say this again"
            );
        }
        let mut reader = store.reader().await?;
        let since = core.clock.now().minus(ALIVE);
        let all = coordinators::all(&mut reader).await?;
        // Of SQLite the lock of the file says it.
        let shared = store.dialect() == Dialect::Postgres;
        if let Some(alive) = all.iter().find(|row| shared && row.seen > since) {
            bail!(
                "the coordinator at {} runs, or did a minute ago: stop all coordinators, and say this again",
                alive.address
            );
        }
        let chain = trust::chain(&mut reader, 0).await?;
        drop(reader);
        let pin = RootPin::any_of(settings.identity.roots.clone());
        let objects: Vec<TrustObject> =
            chain.iter().map(|row| TrustObject::parse(&row.object)).collect::<Result<_, _>>()?;
        let roots = match objects.as_slice() {
            [] => RootsInForce::Pinned(pin),
            objects => verify_chain(&pin, None, core.repository, objects)?.known.roots,
        };
        ca_reset::check(&core, &roots, keys)?;
        let (dir, domain) = (&settings.ca_dir, settings.trust_domain.clone());
        let usable = dir.join("ca.pem").exists()
            && dir.join("ca.key").exists()
            && Ca::open_or_create(dir, domain.clone(), core.clock.clone(), random.clone()).is_ok();
        if usable && !self.yes && !self.dry_run {
            bail!(
                "there is a CA in {} that can be used: a new one makes all certificates worthless, those of admins too. With --yes it is set aside",
                dir.display()
            );
        }
        if self.dry_run {
            let there = if usable { "would be set aside" } else { "cannot be used" };
            let text = format!("hosts would obey these root keys; the CA in {} {there}", dir.display());
            show(self.output, &json!({ "usable": usable, "dry_run": true }), &text);
            return Ok(());
        }
        let new = ca_reset::reset(&core, dir, domain, &roots, keys).await?;
        self.said(settings, &new);
        Ok(())
    }

    fn said(&self, settings: &Settings, new: &NewCa) {
        let (dir, signer) =
            (settings.ca_dir.display(), Signer::of(&new.ca).key.verifying_key().fingerprint());
        let json = json!({
            "ca_sha256": new.ca.fingerprint().to_string(), "before": new.before,
            "set_aside": new.aside.as_ref().map(|dir| dir.display().to_string()),
            "signer_sha256": signer.to_string(),
        });
        let mut text = format!(
            "there is a new CA in {dir}: {}\nhosts take it for theirs when they next connect, because the root keys say so\n",
            new.ca.fingerprint()
        );
        if let Some(aside) = &new.aside {
            text.push_str(&format!("what was there lies now in {}\n", aside.display()));
        }
        text.push_str(&format!(
            "now: copy ca.key, ca.pem and ca.statement to the other coordinators, if there are any; start; make new files for every admin\n(sealift-coordinator admin), and new tokens for hosts that were about to enrol; then sealift-coordinator backup. The coordinator's\nbackups are signed by {signer} from now on"
        ));
        show(self.output, &json, &text);
    }
}
