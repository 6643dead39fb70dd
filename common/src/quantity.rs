//! Sizes and lengths of time as people write them in configurations and policies: `"20MiB/s"`, `"1h 30m"`, `"90d"`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes: `1048576`, `"20MiB"`, `"1.5GB"`; as a rate with `/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Parses a size as people write it.
    ///
    /// # Errors
    /// Says how sizes are written.
    pub fn parse(text: &str) -> Result<Self, String> {
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

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// A length of time: `"30m"`, `"1h 30m"`, `"45s"`, `"90d"` (days of 24 hours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a length of time: write \"30m\", \"1h 30m\" or \"90d\"");
        let span: jiff::Span = text.parse().map_err(|_| bad())?;
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        let signed: jiff::SignedDuration = span.to_duration(days).map_err(|_| bad())?;
        Duration::try_from(signed).map(Self).map_err(|_| format!("{text:?} is negative"))
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, mut written) = (self.0.as_millis(), false);
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
        let mut rest = ms;
        for (unit, factor) in units {
            let count = rest / factor;
            rest %= factor;
            if count > 0 {
                write!(f, "{}{count}{unit}", if written { " " } else { "" })?;
                written = true;
            }
        }
        if written { Ok(()) } else { f.write_str("0s") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(ByteSize::parse("20MiB/s"), Ok(ByteSize(20 << 20)));
        assert_eq!(ByteSize::parse("1.5 GB"), Ok(ByteSize(1_500_000_000)));
        assert_eq!(ByteSize::parse("0"), Ok(ByteSize(0)));
        for bad in ["", "MiB", "-1", "20 mib", "1e30TiB", "20MiB/h"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
        for text in ["20MiB", "1GiB", "1500B", "3KiB"] {
            assert_eq!(ByteSize::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn spans_read_as_people_write_them() {
        let span = |text: &str| Span::try_from(text.to_owned());
        assert_eq!(span("1h 30m"), Ok(Span(Duration::from_secs(5400))));
        assert_eq!(span("90d"), Ok(Span(Duration::from_secs(90 * 86_400))));
        for bad in ["", "30", "-5m", "soon", "1 month"] {
            assert!(span(bad).is_err(), "{bad}");
        }
        for text in ["0s", "45s", "1h 30m", "2d 1h", "10ms"] {
            assert_eq!(span(text).unwrap().to_string(), text);
        }
    }
}
