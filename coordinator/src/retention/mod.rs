//! Which backups stay and why, and what may be deleted from the bucket.

pub mod rules;
