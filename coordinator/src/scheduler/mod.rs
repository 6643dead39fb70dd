//! When backups are made: from the policies in force to runs that are due.
//!
//! [`next_run`] knows cron, zones and the spread; [`plan`] decides what becomes of an instant; both are pure. [`assign`] keeps
//! what is in force for each source, [`service`] makes runs of what is due and ends those that are too late. One coordinator
//! does it at a time; where two should do it for a moment, an instant still gives a source one run (`runs_instant`).

pub mod assign;
pub mod next_run;
pub mod plan;
pub mod service;

pub use service::{ASSIGN_EVERY, INTERVAL, PROMISES_EVERY, Scheduler};
