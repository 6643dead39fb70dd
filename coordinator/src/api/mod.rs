//! The edge: requests become domain types here, and errors become status codes ([`error`]).
//!
//! | file | what it is for |
//! |---|---|
//! | [`listener`] | TLS, and who is at the other end |
//! | [`limits`] | how often each caller may call |
//! | [`grpc`] | agents and admins |
//! | [`http`] | health, over HTTPS |
//! | [`error`] | errors become status codes |

pub mod error;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod listener;
