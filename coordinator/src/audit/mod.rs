//! Who may do what, and the record of it.
//!
//! Every domain operation takes an [`OpContext`]: it authorises, and it audits in the operation's own transaction, so that
//! what is done and what is recorded cannot part. To add an operation: a variant of [`Action`] with its name and who may.

mod action;
mod context;
mod operation;

pub use action::{Action, Subject};
pub use context::{AccessError, Actor, Details, OpContext, OpError, Outcome};
pub use operation::Operation;
