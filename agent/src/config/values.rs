//! Values that several sections share: parsed at the edge, so that whoever holds one knows that it is well-formed.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
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

/// A number of bytes: `1048576`, `"20MiB"`, `"1.5GB"`; as a rate with `/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a size: write 1048576, \"20MiB\" or \"1.5GB\"");
        let body = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let split = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, unit) = body.split_at(split);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        let bytes = number * factor as f64;
        if bytes.is_finite() && (0.0..=9.0e18).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(bad()) }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size in bytes, as a number or like \"20MiB\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<ByteSize, E> {
                u64::try_from(number).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A length of time: `"30m"`, `"1h 30m"`, `"45s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let span: jiff::SignedDuration = text
            .parse()
            .map_err(|_| format!("{text:?} is not a length of time: write \"30m\" or \"1h 30m\""))?;
        Duration::try_from(span).map(Self).map_err(|_| format!("{text:?} is negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_as_people_write_them() {
        assert_eq!(ByteSize::parse("20MiB/s"), Ok(ByteSize(20 << 20)));
        assert_eq!(ByteSize::parse("1.5 GB"), Ok(ByteSize(1_500_000_000)));
        assert_eq!(ByteSize::parse("0"), Ok(ByteSize(0)));
        for bad in ["", "MiB", "-1", "20 mib", "1e30TiB", "20MiB/h"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Span::try_from("1h 30m".to_owned()), Ok(Span(Duration::from_secs(5400))));
        for bad in ["", "30", "-5m", "soon"] {
            assert!(Span::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

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
