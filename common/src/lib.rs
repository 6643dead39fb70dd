//! What agent, coordinator and CLI share.
//!
//! | module | what it is for |
//! |---|---|
//! | [`id`] | one id type per noun, and where their randomness comes from |
//! | [`name`] | names and labels of agents and sources, parsed at the edge |
//! | [`selector`] | what selects agents by labels and sources by name or kind |
//! | [`quantity`] | sizes and lengths of time as people write them |
//! | [`clock`] | time as an argument |
//! | [`secret`] | values that must not be printed |
//! | [`lifecycle`] | soft and hard stop, signals, readiness |
//! | [`telemetry`] | logs and OTLP traces, the same in all three programs |
//! | [`protocol`] | versions and features of the protocol, and what two builds agree on |
//! | [`proxy`] | HTTPS proxies, and which hosts are reached without one |
//! | `s3_sdk` | the S3 SDK over reqwest (feature `s3-sdk`) |
//! | [`tls`] | PEM files, pinned roots, client and server configurations |
//! | [`format`] | the bytes in the bucket (docs/format.md), both directions |
//! | [`crypto`] | keys, slots and signatures of the format |
//! | [`restore`] | from objects back to streams and files, online or offline |

pub mod clock;
pub mod crypto;
pub mod format;
pub mod id;
pub mod lifecycle;
pub mod name;
pub mod protocol;
pub mod proxy;
pub mod quantity;
pub mod restore;
#[cfg(feature = "s3-sdk")]
pub mod s3_sdk;
pub mod secret;
pub mod selector;
pub mod telemetry;
pub mod tls;
