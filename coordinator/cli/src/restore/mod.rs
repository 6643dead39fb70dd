//! `sealift restore`, and what else opens backups: `browse`, `backup verify --level decrypt`, `keys test`.

mod pins;

pub use pins::{Pins, backup_name};
