//! The sections that are not sources: one file each.

mod backup;
mod log;
mod process;
pub mod proxy;
mod s3;
mod spool;
mod telemetry;
mod upload;

pub use backup::Backup;
pub use log::{Level, Log};
pub use process::{IoPriority, Process};
pub use proxy::Proxy;
pub use s3::S3;
pub use spool::Spool;
pub use telemetry::Telemetry;
pub use upload::Upload;
