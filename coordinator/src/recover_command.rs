//! `sealift-coordinator backup` and `recover`.
//!
//! A SQLite database belongs to one process. Where a coordinator runs on it, the command asks that coordinator, with a
//! certificate of ten minutes that it issues itself: whoever has the CA's key may do so. Where none runs, and on
//! PostgreSQL, the command does the work itself. A private key is never sent anywhere: what needs one, this process does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use sealift_common::clock::Clock;
use sealift_common::crypto::Identities;
use sealift_common::id::{Random, Sha256};
use sealift_common::lifecycle::Lifecycle;
use sealift_common::secret::Secret;
use sealift_common::tls;
use sealift_coordinator::app::Coordinator;
use sealift_coordinator::audit::OpContext;
use sealift_coordinator::backups::Backups;
use sealift_coordinator::config::Settings;
use sealift_coordinator::config::dev::{DevDir, DevListen, loopback};
use sealift_coordinator::config::file::ConfigFile;
use sealift_coordinator::core::Core;
use sealift_coordinator::identity::ca::Ca;
use sealift_coordinator::identity::peer::Subject;
use sealift_coordinator::objects::{ObjectStore, embedded, probe};
use sealift_coordinator::recovery::own::{self, Own};
use sealift_coordinator::recovery::{
    Generations, Mark, Names, PutBack, Reconciler, RecoveryError, Report, State, backup, ca, import,
};
use sealift_coordinator::runs::Runs;
use sealift_coordinator::store::{DatabaseUrl, Store, StoreError, generation};
use sealift_proto::v1;
use sealift_proto::v1::recovery_admin_client::RecoveryAdminClient;
use serde_json::json;
use tonic::transport::Channel;
use url::Url;

/// How long the certificate is good with which a running coordinator is asked.
const LIFE: Duration = Duration::from_secs(600);

/// Which coordinator.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of `sealift-coordinator dev`
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// How to say what was done.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// `sealift-coordinator recover`
#[derive(Debug, clap::Args)]
pub struct Recover {
    #[command(flatten)]
    place: Place,
    /// Take in what the bucket knows (there is no other way yet)
    #[arg(long, required = true)]
    from_bucket: bool,
    /// A private key that opens the coordinator's own backups; may be repeated. Needed where the database is lost
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// A file with the passphrase of the private key
    #[arg(long, value_name = "FILE", requires = "identity")]
    passphrase_file: Option<PathBuf>,
    /// The key that signed the coordinator's backups, where several have
    #[arg(long, value_name = "HEX", requires = "identity")]
    signer_sha256: Option<Sha256>,
    /// Do without a backup of the coordinator, although there is one
    #[arg(long, conflicts_with = "signer_sha256")]
    without_backup: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Settings, where a running coordinator of them answers, and what the settings need while they are used.
pub struct Found {
    /// What the configuration says.
    pub settings: Settings,
    coordinators: Vec<Url>,
    /// To be stopped when all is done.
    pub lifecycle: Lifecycle,
}

impl Place {
    /// Reads the configuration, or what `dev` made.
    pub async fn find(&self, random: &Random) -> anyhow::Result<Found> {
        let lifecycle = Lifecycle::default();
        if let Some(config) = &self.config {
            let settings = ConfigFile::read(config)?.settings()?;
            let coordinators = settings.identity.coordinators.clone();
            return Ok(Found { settings, coordinators, lifecycle });
        }
        let dir = self.data_dir.as_deref().unwrap_or(Path::new("."));
        let dir = DevDir::open(dir)?;
        let root = dir.root(random)?;
        let listen = DevListen { grpc: loopback(0), http: loopback(0), s3: loopback(0) };
        let storage = embedded::start(dir.path(), listen.s3, random, &lifecycle).await?;
        let settings = dir.settings(listen, root, storage, "sealift.dev".parse()?);
        Ok(Found { settings, coordinators: dir.coordinators(), lifecycle })
    }
}

/// `sealift-coordinator backup`
pub async fn store_backup(place: &Place, output: Output) -> anyhow::Result<()> {
    let random = Random::from_os();
    let found = place.find(&random).await?;
    let (settings, coordinators) = (found.settings.clone(), found.coordinators.clone());
    let reply = match Coordinator::open(settings, Clock::system(), random.clone()).await {
        Ok(coordinator) => {
            probe::run(&coordinator.objects, &random).await;
            coordinator.generations().check().await?;
            let made = coordinator.own_backups().store(&OpContext::coordinator(&coordinator.core)).await;
            coordinator.core.store.close().await;
            let made = made?;
            v1::StoreOwnBackupReply {
                object: made.name.to_string(),
                sequence: made.sequence,
                rows: made.rows,
                stored_bytes: made.stored_bytes,
                recipients: made.recipients.iter().map(Sha256::to_vec).collect(),
            }
        }
        Err(error) if is_locked(&error) => {
            let mut client = ask(&found.settings, &coordinators, &random).await?;
            let asked = client.store_own_backup(v1::StoreOwnBackupRequest {}).await;
            asked.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner()
        }
        Err(error) => return Err(error.into()),
    };
    found.lifecycle.hard.cancel();
    let recipients: Vec<String> = reply.recipients.iter().map(hex::encode).collect();
    show(
        output,
        &json!({ "object": reply.object, "sequence": reply.sequence, "rows": reply.rows,
                 "stored_bytes": reply.stored_bytes, "recipients": recipients }),
        &format!(
            "backup {} of the coordinator is in the bucket: {} rows, {} bytes, sealed to {}\n{}",
            reply.sequence,
            reply.rows,
            reply.stored_bytes,
            recipients.join(", "),
            reply.object
        ),
    );
    Ok(())
}

/// Prints what was done.
#[allow(clippy::print_stdout)]
pub fn show(output: Output, json: &serde_json::Value, text: &str) {
    match output {
        Output::Table => println!("{text}"),
        Output::Json => println!("{json:#}"),
    }
}

/// Whether another process has the database.
fn is_locked(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    chain.any(|error| matches!(error.downcast_ref(), Some(StoreError::Locked { .. })))
}

/// A client of the coordinator that runs here.
async fn ask(
    settings: &Settings,
    coordinators: &[Url],
    random: &Random,
) -> anyhow::Result<RecoveryAdminClient<Channel>> {
    let (dir, domain) = (&settings.ca_dir, settings.trust_domain.clone());
    let ca = Ca::open_or_create(dir, domain, Clock::system(), random.clone())?;
    let (_, identity) = ca.issue_admin(&Subject::Admin("local".parse()?), LIFE)?;
    let config = tls::client_config(&[ca.certificate().clone()], Some(&identity))?;
    let mut failure = None;
    for url in coordinators {
        let mut client = RecoveryAdminClient::new(tls::channel(url, config.clone())?);
        // Connects on first use: the list's first that answers is asked.
        match tokio::net::TcpStream::connect((
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or(443),
        ))
        .await
        {
            Ok(_) => {
                client = client.max_decoding_message_size(64 << 20);
                return Ok(client);
            }
            Err(error) => {
                failure = Some(
                    anyhow::Error::from(error)
                        .context(format!("cannot reach the coordinator that runs here at {url}")),
                )
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        anyhow::anyhow!("the configuration names no address of the coordinator that runs here")
    }))
}

/// A database that this process has.
struct Offline {
    core: Core,
    objects: ObjectStore,
    generations: Generations,
}

impl Offline {
    async fn open(settings: &Settings, store: Store, random: &Random) -> anyhow::Result<Self> {
        let core = Core::load(store, Clock::system(), random.clone()).await?;
        let objects = ObjectStore::new(settings.storage.clone(), Clock::system())?;
        let probed = probe::run(&objects, random).await;
        if !probed.usable {
            bail!("the object store cannot be used: {}", probed.error.unwrap_or_default());
        }
        let generations = Generations::new(core.clone(), objects.clone());
        generations.check().await?;
        Ok(Self { core, objects, generations })
    }
}

impl Recover {
    /// Recovers.
    pub async fn run(&self) -> anyhow::Result<()> {
        let random = Random::from_os();
        let found = self.place.find(&random).await?;
        let done = match Store::open(&found.settings.database).await {
            Ok(store) => self.offline(&found.settings, store, &random).await,
            Err(StoreError::Locked { .. }) if self.identity.is_empty() && !self.dry_run => {
                let mut client = ask(&found.settings, &found.coordinators, &random).await?;
                let reply = client.recover_database(v1::RecoverDatabaseRequest {}).await;
                let reply = reply.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
                self.said(&reply);
                Ok(())
            }
            Err(error @ StoreError::Locked { .. }) => Err(error).context(
                "a coordinator runs on this database: stop it (systemctl stop sealift-coordinator) and say this again",
            ),
            Err(error) => Err(error.into()),
        };
        found.lifecycle.hard.cancel();
        done
    }

    async fn offline(&self, settings: &Settings, store: Store, random: &Random) -> anyhow::Result<()> {
        let mut offline = Offline::open(settings, store, random).await?;
        let unused = import::is_unused(&offline.core.store).await?;
        let state = offline.core.standing.state();
        let roots = &settings.identity.roots;
        let identities = self.identities()?;
        let own = match &identities {
            Some(identities) if !self.without_backup => {
                own::newest(&offline.objects, roots, identities.clone(), self.signer_sha256).await?
            }
            _ => None,
        };
        if unused
            && identities.is_none()
            && !self.without_backup
            && !backup::manifests(&offline.objects).await?.is_empty()
        {
            return Err(RecoveryError::Unused.into());
        }
        let row = generation::get(&mut *offline.core.store.reader().await?).await?;
        let here = Mark::from(&row);
        // What is newer: this database, or the backup?
        let own = own.filter(|own| unused || (own.mark.number, own.mark.mark) > (here.number, here.mark));
        let in_step = !matches!(state, State::Recovering { .. });
        if in_step && (own.is_none() || !unused) {
            bail!("the database is in step with the bucket: there is nothing to recover");
        }
        self.plan(&state, own.as_ref(), unused);
        if self.dry_run {
            offline.core.store.close().await;
            return Ok(());
        }
        let mut names = Names::default();
        if let Some(own) = &own {
            if !unused {
                offline.core.store.close().await;
                let aside = set_aside(settings)?;
                eprintln_note(&format!("the database that was here lies now at {}", aside.display()));
                offline = Offline::open(settings, Store::open(&settings.database).await?, random).await?;
            }
            self.put_back(settings, own).await?;
            let rows = import::import(&offline.core.store, own).await?;
            eprintln_note(&format!("{rows} rows came out of the backup"));
            names = own.names().await?;
            // It is another installation now.
            offline.core = Core::load(offline.core.store.clone(), Clock::system(), random.clone()).await?;
            offline.generations = Generations::new(offline.core.clone(), offline.objects.clone());
            offline.generations.check().await?;
        }
        if let Some(identities) = &identities {
            own::open_names(&offline.core, &offline.objects, roots, identities.clone(), &mut names).await?;
        }
        let (core, objects) = (offline.core.clone(), offline.objects.clone());
        let runs = Runs::new(core.clone(), Arc::default(), settings.sessions.lease());
        let backups = Backups::new(core.clone(), objects.clone(), runs);
        let reconciler = Reconciler::new(core.clone(), objects, backups, roots.clone());
        let report = reconciler.run(&OpContext::coordinator(&core), names).await?;
        core.store.close().await;
        self.said(&Report::into(report));
        Ok(())
    }

    fn identities(&self) -> anyhow::Result<Option<Arc<Identities>>> {
        let mut all: Option<Identities> = None;
        for path in &self.identity {
            let one = Identities::load(path, || passphrase(self.passphrase_file.as_deref()))?;
            all = Some(match all {
                Some(others) => others.and(one),
                None => one,
            });
        }
        Ok(all.map(Arc::new))
    }

    async fn put_back(&self, settings: &Settings, own: &Own) -> anyhow::Result<()> {
        let stamp = Clock::system().now().0.to_string();
        match ca::put_back(&settings.ca_dir, &own.ca().await?, &stamp)? {
            PutBack::Same => {}
            PutBack::Written => eprintln_note(&format!("the CA is back in {}", settings.ca_dir.display())),
            PutBack::Replaced(aside) => eprintln_note(&format!(
                "the CA is back in {}; the one that was there lies now in {}",
                settings.ca_dir.display(),
                aside.display()
            )),
        }
        Ok(())
    }

    fn plan(&self, state: &State, own: Option<&Own>, unused: bool) {
        if let State::Recovering { reason } = state {
            eprintln_note(reason);
        }
        match own {
            Some(own) => eprintln_note(&format!(
                "begins with the coordinator's backup of {} ({}), then takes in what the bucket got since",
                own.created, own.name
            )),
            None if unused => eprintln_note(
                "there is no backup of the coordinator to begin with: names, labels and policies cannot come back, all backups can",
            ),
            None => eprintln_note(
                "begins with the database that is here, then takes in what the bucket got since",
            ),
        }
        if self.dry_run {
            eprintln_note("nothing was done: --dry-run");
        }
    }

    fn said(&self, reply: &v1::RecoverDatabaseReply) {
        let json = json!({
            "generation": reply.generation, "trust_versions_added": reply.trust_versions_added,
            "agents_added": reply.agents_added, "series": reply.series, "series_added": reply.series_added,
            "backups": reply.backups, "backups_added": reply.backups_added, "backups_gone": reply.backups_gone,
            "packs_added": reply.packs_added, "packs_lost": reply.packs_lost,
            "attempts_ended": reply.attempts_ended, "left_alone": reply.left_alone,
        });
        let mut text = format!(
            "recovered: generation {} begins\n{} backups of {} series are in the bucket; {} backups, {} series, {} hosts and {} versions of the trust policy were forgotten and are back\n{} backups that the database had are gone from the bucket; {} packs are lost; {} attempts of before were ended",
            reply.generation,
            reply.backups,
            reply.series,
            reply.backups_added,
            reply.series_added,
            reply.agents_added,
            reply.trust_versions_added,
            reply.backups_gone,
            reply.packs_lost,
            reply.attempts_ended
        );
        for left in &reply.left_alone {
            text.push_str(&format!("\nleft alone: {left}"));
        }
        show(self.output, &json, &text);
    }
}

/// The passphrase of a private key: the first line of a file.
pub fn passphrase(file: Option<&Path>) -> std::io::Result<Secret<String>> {
    let Some(file) = file else {
        return Err(std::io::Error::other("it has a passphrase: say --passphrase-file FILE"));
    };
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(file)?);
    Ok(Secret::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// Moves a SQLite database away, whole.
fn set_aside(settings: &Settings) -> anyhow::Result<PathBuf> {
    let stamp = Clock::system().now().0;
    let DatabaseUrl::Sqlite(path) = &settings.database else {
        bail!(
            "the coordinator's backup is newer than the database: make a new, empty one, name it in the configuration, and say this again"
        );
    };
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with(suffix), with(&format!(".set-aside-{stamp}{suffix}")));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(format!("cannot move {} away", from.display()));
            }
            _ => {}
        }
    }
    Ok(with(&format!(".set-aside-{stamp}")))
}

#[allow(clippy::print_stderr)]
fn eprintln_note(text: &str) {
    eprintln!("{text}");
}
