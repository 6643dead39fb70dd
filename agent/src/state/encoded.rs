//! Keys as state files hold them: base64, zeroed in memory when dropped, never shown.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Key bytes in base64.
pub struct Encoded(Zeroizing<String>);

impl Encoded {
    /// Encodes a key.
    pub fn new(key: &[u8]) -> Self {
        Self(Zeroizing::new(BASE64_STANDARD.encode(key)))
    }

    /// The key's bytes; `None` where this is not base64.
    pub fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        BASE64_STANDARD.decode(self.0.as_bytes()).map(Zeroizing::new).ok()
    }

    /// The bytes of a key of 32; `None` where this is not one.
    pub fn decode_32(&self) -> Option<[u8; 32]> {
        self.decode()?.as_slice().try_into().ok()
    }
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}
