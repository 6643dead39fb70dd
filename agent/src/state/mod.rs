//! What the agent keeps between two starts, all of it below one private directory.
//!
//! | file | what | if it is lost |
//! |---|---|---|
//! | `identity.json` | keys, certificate, CA, pins ([`crate::identity`]) | enrol again |
//! | `trust.json` | the trust policy in force, and which roots may sign the next ([`trust`]) | read again from the bucket, checked against the pin |
//! | `series/ID.json` | the series secret, newest manifest ([`series`]) | new epoch: one full upload |
//! | `index/SERIES/PACK` | chunk indexes of stored packs ([`index_cache`]) | read again in small ranges |
//! | `spooled/SERIES.json` | backups that wait in the spool ([`waiting`]) | the source is read again |
//! | `journal/RUN-N.json` | attempts under way, outcomes not yet reported ([`journal`]) | the coordinator's leases end them |
//!
//! To add a file: a module here that owns its name, writes it through [`dir::StateDir::write`] (one atomic step), and says in
//! the table what losing it costs.

pub mod dir;
pub mod encoded;
pub mod index_cache;
pub mod journal;
pub mod series;
pub mod trust;
pub mod waiting;
