//! The coordinator's own disasters: its database is set back, or lost.
//!
//! | file | what it is for |
//! |---|---|
//! | [`state`] | what this process may do now |
//! | [`generation`] | how an old copy of the database is known |
//! | [`heads`] | what hosts report tells of it |
//! | [`backup`] | the coordinator's own backup, daily and on demand |
//! | [`lines`] | what is in it: the database and the catalogue as lines of JSON |
//! | [`seal`] | streams into packs |
//! | [`ca`] | the CA's files, there and back |
//! | [`own`] | reads the coordinator's own backups |
//! | [`import`] | the database of one into an empty database |
//! | [`reconcile`] | the database takes in what the bucket knows |
//! | [`service`] | what a running coordinator does when it is asked |
//! | [`names`] | what series and hosts are called |
//! | [`source`] | the bucket as restores read it |

pub mod backup;
pub mod ca;
pub mod generation;
pub mod heads;
pub mod import;
pub mod lines;
pub mod names;
pub mod own;
pub mod reconcile;
pub mod seal;
pub mod service;
pub mod source;
pub mod state;

pub use backup::OwnBackups;
pub use ca::PutBack;
pub use generation::{Generations, Mark};
pub use names::Names;
pub use reconcile::{Reconciler, Report};
pub use service::RecoveryService;
pub use state::{NotServing, Standing, State};

use std::path::PathBuf;

use sealift_common::id::Sha256;
use sealift_common::restore::RestoreError;

use crate::audit::{AccessError, OpError};
use crate::backups::BackupError;
use crate::core::Core;
use crate::identity::IdentityError;
use crate::objects::key::InvalidObjectKey;
use crate::objects::{ObjectError, ObjectStore};
use crate::runs::RunError;
use crate::store::StoreError;

/// Why a recovery, or what leads to one, did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The database is not in step with the bucket.
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// The bucket.
    #[error("the bucket could not be asked")]
    Objects(#[from] ObjectError),
    /// Nobody could open it.
    #[error(
        "there is nobody to seal the coordinator's backup to: the trust policy needs a rule for every scope, or one for the scope `coordinator`"
    )]
    NoRecipients,
    /// Packs or manifest could not be made.
    #[error("the coordinator's backup cannot be sealed: {0}")]
    Seal(String),
    /// What is in a backup of the coordinator's cannot be used.
    #[error("the coordinator's backup cannot be used: {0}")]
    Content(String),
    /// A line of it.
    #[error(transparent)]
    Line(#[from] lines::BadLine),
    /// It cannot be read, or not with this identity.
    #[error("no backup of the coordinator can be opened")]
    Restore(#[from] RestoreError),
    /// Several keys have signed backups of the coordinator.
    #[error(
        "the coordinator's backups are signed by more than one key, and the trust policy attests none: say whose to believe, --signer-sha256 one of {}",
        list(.0)
    )]
    Signers(Vec<Sha256>),
    /// The bucket is of another repository than the database.
    #[error(
        "the bucket holds repository {bucket}, the database is of {database}: check bucket and prefix in the configuration, or move the database away"
    )]
    OtherRepository {
        /// The bucket's.
        bucket: String,
        /// The database's.
        database: String,
    },
    /// There is nothing to recover.
    #[error("the database is in step with the bucket: there is nothing to recover")]
    InStep,
    /// All of the database is missing.
    #[error(
        "this database is new, and the bucket is not: stop the coordinator and recover all of it with --identity FILE (a private key of a recipient), or, without the coordinator's own backup, with --without-backup"
    )]
    Unused,
    /// Somebody is at it.
    #[error("a recovery is under way already")]
    Busy,
    /// Backups.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Runs.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Trust policy and CA.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A name that cannot be.
    #[error("an object cannot be named")]
    Key(#[from] InvalidObjectKey),
    /// Not allowed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database's own.
    #[error("the database could not be read or written")]
    Store(#[from] StoreError),
}

impl OpError for RecoveryError {}

fn list(all: &[Sha256]) -> String {
    all.iter().map(Sha256::to_string).collect::<Vec<_>>().join(", ")
}

/// Makes every copy of the database that there is by now recognisable: counts a mark and puts it into the bucket. Call it
/// before a round of deletions, and delete nothing where it fails.
///
/// # Errors
/// As [`deletion_allowed`].
pub async fn deletion_begins(core: &Core, objects: &ObjectStore) -> Result<(), RecoveryError> {
    core.standing.serving()?;
    let generations = Generations::new(core.clone(), objects.clone());
    let bucket = generations.check().await?;
    core.standing.serving()?;
    // Another generation has just begun: it was not compared yet.
    if generations.mark(&bucket).await? { Ok(()) } else { Err(NotServing::Unchecked.into()) }
}

/// Whether anything may be deleted from the bucket now. Asks bucket and database anew: call it before each batch of
/// deletions, and delete nothing where it fails.
///
/// # Errors
/// [`RecoveryError::NotServing`] where the database is behind; those of bucket and database.
pub async fn deletion_allowed(core: &Core, objects: &ObjectStore) -> Result<(), RecoveryError> {
    core.standing.serving()?;
    Generations::new(core.clone(), objects.clone()).check().await?;
    Ok(core.standing.serving()?)
}
