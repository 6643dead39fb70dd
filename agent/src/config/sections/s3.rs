//! `[s3]`: how this host trusts, and proves itself to, the S3 gateway. Where objects go is never the host's to say.

use serde::Deserialize;

use crate::config::values::AbsolutePath;

/// TLS towards S3.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// PEM file with the private CA of the gateway, in place of the public ones.
    pub ca: Option<AbsolutePath>,
    /// PEM file with a client certificate, for gateways that speak mTLS.
    pub client_certificate: Option<AbsolutePath>,
    /// PEM file with its key.
    pub client_key: Option<AbsolutePath>,
    /// Whether packs (which are sealed) may go to a store over plain HTTP. To this very machine they always may.
    pub allow_plain_http: bool,
}

impl S3 {
    /// What is wrong with the section as a whole.
    pub(in crate::config) fn problem(&self) -> Option<&'static str> {
        (self.client_certificate.is_some() != self.client_key.is_some())
            .then_some("[s3] needs client_certificate and client_key together")
    }
}
