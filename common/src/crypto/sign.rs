//! Ed25519 keys: root keys sign the trust policy, agents sign manifests and their next key.
//!
//! Every signature is over `context ‖ 0x00 ‖ parts`, so that one made for one purpose never serves another.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::id::{Random, Sha256};
use crate::secret::Secret;

/// A signature that is not this key's over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not hold")]
pub struct BadSignature;

/// Bytes that are not an Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Ed25519 public key is 32 bytes, got {0}")]
pub struct InvalidKey(pub usize);

fn message(context: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 1 + parts.iter().map(|p| p.len()).sum::<usize>());
    message.extend_from_slice(context.as_bytes());
    message.push(0);
    parts.iter().for_each(|part| message.extend_from_slice(part));
    message
}

/// The private half of an Ed25519 key.
pub struct SigningKey {
    seed: Secret<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A fresh key.
    pub fn generate(random: &Random) -> Self {
        Self::from_seed(random.bytes())
    }

    /// The key with this seed (RFC 8032's 32-byte private key).
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    #[allow(clippy::expect_used)]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are an Ed25519 seed");
        Self { seed: Secret::new(seed), pair }
    }

    /// The seed, to be kept in a file.
    pub fn seed(&self) -> &Secret<[u8; 32]> {
        &self.seed
    }

    /// The public half.
    #[allow(clippy::expect_used)]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.pair.public_key().as_ref().try_into().expect("Ed25519 public keys are 32 bytes"))
    }

    /// Signs `context ‖ 0x00 ‖ parts`. `context` names the purpose, as in `sealift/1/manifest`.
    #[allow(clippy::expect_used)]
    pub fn sign(&self, context: &str, parts: &[&[u8]]) -> [u8; 64] {
        let signature = self.pair.sign(&message(context, parts));
        signature.as_ref().try_into().expect("Ed25519 signatures are 64 bytes")
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self::from_seed(*self.seed.expose())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.verifying_key())
    }
}

/// The public half of an Ed25519 key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// The key with these bytes. Bytes that are no point of the curve verify nothing.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The raw bytes in a vector, as protobuf fields want them.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// SHA-256 of the 32 bytes: what people compare and agents pin.
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(&self.0)
    }

    /// Checks a signature over `context ‖ 0x00 ‖ parts`.
    ///
    /// # Errors
    /// [`BadSignature`] where it is not this key's, or not over these bytes, or not 64 bytes.
    pub fn verify(&self, context: &str, parts: &[&[u8]], signature: &[u8]) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(&message(context, parts), signature)
            .map_err(|_| BadSignature)
    }
}

impl TryFrom<&[u8]> for VerifyingKey {
    type Error = InvalidKey;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidKey> {
        bytes.try_into().map(Self).map_err(|_| InvalidKey(bytes.len()))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_public_key_of_rfc_8032() {
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let key = SigningKey::from_seed(seed.try_into().unwrap());
        assert_eq!(
            hex::encode(key.verifying_key().as_bytes()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn a_signature_holds_for_its_key_context_and_bytes_alone() {
        let key = SigningKey::generate(&Random::from_seed(1));
        let public = key.verifying_key();
        let signature = key.sign("sealift/1/test", &[b"one", b"two"]);
        assert_eq!(public.verify("sealift/1/test", &[b"onetwo"], &signature), Ok(()));
        assert_eq!(public.verify("sealift/1/tes", &[b"onetwo"], &signature), Err(BadSignature));
        assert_eq!(public.verify("sealift/1/test", &[b"oneTwo"], &signature), Err(BadSignature));
        assert_eq!(public.verify("sealift/1/test", &[b"onetwo"], &signature[..63]), Err(BadSignature));
        let other = SigningKey::generate(&Random::from_seed(2)).verifying_key();
        assert_eq!(other.verify("sealift/1/test", &[b"onetwo"], &signature), Err(BadSignature));
        assert_eq!(key.clone().verifying_key(), public);
        assert!(!format!("{key:?}").contains(&hex::encode(key.seed().expose())));
    }
}
