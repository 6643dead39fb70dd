//! `[telemetry]`: where traces go.

use serde::Deserialize;

use crate::config::values::Endpoint;

/// OTLP export.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// OTLP collector (gRPC); none: nothing is exported.
    pub otlp_endpoint: Option<Endpoint>,
}
