//! AES-256-GCM. The tag is 16 bytes and comes last, as everywhere in the format.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Bytes that sealing adds.
pub const TAG_LEN: usize = 16;

/// The bytes were altered, or sealed under another key, nonce or context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not decrypt: its bytes were altered, or it belongs elsewhere")]
pub struct OpenError;

/// One AES-256-GCM key. Its users see to it that no nonce is used twice: the format derives a key per pack and per
/// manifest, and counts within it.
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// The key with these bytes.
    ///
    /// # Panics
    /// Never: 32 bytes are always an AES-256 key.
    #[allow(clippy::expect_used)]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key")))
    }

    /// Encrypts `buffer` in place and appends the tag; reserve [`TAG_LEN`] bytes to spare a copy.
    ///
    /// # Panics
    /// Beyond 64 GiB in one message, which no cap of the format allows.
    #[allow(clippy::expect_used)]
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], buffer: &mut Vec<u8>) {
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), buffer)
            .expect("AES-GCM seals any message the format allows");
    }

    /// Decrypts `sealed` (tag last) into a new buffer.
    ///
    /// # Errors
    /// [`OpenError`] where anything does not match; nothing of the plaintext is given out then.
    pub fn open(&self, nonce: [u8; 12], aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let split = sealed.len().checked_sub(TAG_LEN).ok_or(OpenError)?;
        let (ciphertext, tag) = sealed.split_at(split);
        let mut plaintext = vec![0; ciphertext.len()];
        self.0
            .open_separate_gather(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                ciphertext,
                tag,
                &mut plaintext,
            )
            .map_err(|_| OpenError)?;
        Ok(plaintext)
    }
}

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AeadKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_and_refuses_everything_else() {
        let key = AeadKey::new(&[7; 32]);
        let mut sealed = b"till receipt".to_vec();
        key.seal([1; 12], b"context", &mut sealed);
        assert_eq!(sealed.len(), 12 + TAG_LEN);
        assert_eq!(key.open([1; 12], b"context", &sealed), Ok(b"till receipt".to_vec()));
        assert_eq!(key.open([2; 12], b"context", &sealed), Err(OpenError));
        assert_eq!(key.open([1; 12], b"Context", &sealed), Err(OpenError));
        assert_eq!(AeadKey::new(&[8; 32]).open([1; 12], b"context", &sealed), Err(OpenError));
        assert_eq!(key.open([1; 12], b"context", &sealed[..15]), Err(OpenError));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open([1; 12], b"context", &flipped), Err(OpenError), "bit {bit}");
        }
    }

    #[test]
    fn the_empty_message_of_nist_gives_the_known_tag() {
        // McGrew and Viega, "The Galois/Counter Mode of Operation", test case 13.
        let mut sealed = Vec::new();
        AeadKey::new(&[0; 32]).seal([0; 12], b"", &mut sealed);
        assert_eq!(hex::encode(sealed), "530f8afbc74536b9a963b4f1c4cb738b");
    }
}
