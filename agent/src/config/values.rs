//! Values that several sections share: parsed at the edge, so that whoever holds one knows that it is well-formed.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use url::Url;

/// Longest path in a configuration, in bytes (Linux's `PATH_MAX`).
const MAX_PATH: usize = 4096;

/// An absolute path without `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let path = PathBuf::from(&text);
        if text.len() > MAX_PATH || text.contains('\0') || text.contains('\n') {
            return Err(format!("a path must be one line of at most {MAX_PATH} bytes"));
        }
        if !path.is_absolute() {
            return Err(format!("the path {text:?} must be absolute: start it with \"/\""));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("the path {text:?} must not contain \"..\": write where it leads"));
        }
        Ok(Self(path))
    }
}

/// The address of a coordinator or collector: `https://`, or `http://` on this very machine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint(Url);

impl Endpoint {
    /// The address.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let url: Url =
            text.parse().map_err(|e| format!("{text:?} is not an address ({e}): write https://HOST:PORT"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("an address must not contain a user or password".to_owned());
        }
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if is_loopback(url.host()) => Ok(Self(url)),
            "http" => Err(format!("{text:?} would go over the network in clear: write https://")),
            other => Err(format!("{text:?} must start with https://, not {other}://")),
        }
    }
}

fn is_loopback(host: Option<url::Host<&str>>) -> bool {
    match host {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_lead_elsewhere() {
        assert!(AbsolutePath::try_from("/var/lib/x".to_owned()).is_ok());
        assert!(AbsolutePath::try_from("/var/lib/..x".to_owned()).is_ok());
        for bad in ["", "relative", "/var/../etc", "/..", "/a\0b", "/a\nb"] {
            assert!(AbsolutePath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_https_or_this_machine() {
        for good in
            ["https://backup.example.com:7443", "http://localhost:1", "http://127.0.0.1", "http://[::1]:9"]
        {
            assert!(Endpoint::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in
            ["http://backup.example.com", "ftp://x", "backup:7443", "https://u:p@x", "http://localhost.evil"]
        {
            assert!(Endpoint::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
