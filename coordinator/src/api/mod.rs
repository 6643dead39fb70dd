//! The edge: requests become domain types here, and errors become status codes ([`error`]).

pub mod error;
