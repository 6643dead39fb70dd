//! The data key of a backup, the series secret of a host, and every key derived from them (docs/format.md, Keys).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use super::aead::AeadKey;
use crate::id::{PackId, Random, RepositoryId, SeriesId, Sha256};
use crate::secret::Secret;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA256 (RFC 5869), `N` bytes out; an absent salt is 32 zero bytes, `info` is concatenated.
///
/// # Panics
/// For `N` above 8,160, the most that HKDF-SHA256 gives.
#[allow(clippy::expect_used)]
pub fn hkdf<const N: usize>(ikm: &[u8], salt: Option<&[u8]>, info: &[&[u8]]) -> [u8; N] {
    let prk = Salt::new(HKDF_SHA256, salt.unwrap_or(&[0; 32])).extract(ikm);
    let mut out = [0; N];
    prk.expand(info, Length(N)).and_then(|okm| okm.fill(&mut out)).expect("HKDF gives up to 8,160 bytes");
    out
}

/// The key `E` that the packs and the manifest of one backup are sealed under: 32 bytes, in the agent's memory while the
/// backup runs, and in slots, encrypted to the recipients.
#[derive(Clone)]
pub struct DataKey(Secret<[u8; 32]>);

impl DataKey {
    /// A fresh key for one agent session and backup. Randomness of the host, a nonce of the coordinator and the series
    /// secret go in: no one of them being weak or repeated (a reverted VM) gives a key away or makes one come twice.
    pub fn derive(random: &Random, session_nonce: &[u8; 32], series: &SeriesSecret) -> Self {
        let mut ikm = [0; 96];
        ikm[..32].copy_from_slice(&random.bytes::<32>());
        ikm[32..64].copy_from_slice(session_nonce);
        ikm[64..].copy_from_slice(series.expose());
        let ikm = Secret::new(ikm);
        Self(Secret::new(hkdf(ikm.expose(), None, &[b"sealift/1/data-key"])))
    }

    /// The key under which packs of one attempt wait on the host's own disk. What goes to the bucket is sealed anew: the data
    /// key of a backup never touches a disk. Neither the salt nor the series secret opens anything alone.
    pub fn of_spool(salt: &Secret<[u8; 32]>, series: &SeriesSecret) -> Self {
        let mut ikm = [0; 64];
        ikm[..32].copy_from_slice(salt.expose());
        ikm[32..].copy_from_slice(series.expose());
        let ikm = Secret::new(ikm);
        Self(Secret::new(hkdf(ikm.expose(), None, &[b"sealift/1/spool"])))
    }

    /// The key with these bytes, as an opened slot gives them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The key of what a spool holds besides packs.
    pub fn spool_plan_key(&self) -> AeadKey {
        AeadKey::new(Secret::new(hkdf(self.expose(), None, &[b"sealift/1/spool-plan"])).expose())
    }

    /// The 32 bytes, for a slot's envelope.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The key of the frames and the directory of one pack.
    pub fn pack_key(&self, pack: PackId, repository: RepositoryId, series: SeriesId) -> AeadKey {
        let info: [&[u8]; 3] = [b"sealift/1/pack", repository.as_bytes(), series.as_bytes()];
        AeadKey::new(Secret::new(hkdf(self.expose(), Some(pack.as_bytes()), &info)).expose())
    }

    /// What commits a pack (`id` = pack id) or a manifest (`id` = seal id) to this key: AES-GCM alone would open under
    /// more than one key. Compare with [`DataKey::commits_to`].
    pub fn commitment(&self, id: &[u8; 16]) -> [u8; 32] {
        hkdf(self.expose(), Some(id), &[b"sealift/1/commitment"])
    }

    /// Whether `commitment` under `id` was made with this key.
    pub fn commits_to(&self, id: &[u8; 16], commitment: &[u8]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.commitment(id), commitment).is_ok()
    }

    /// The key of the sealed part of the manifest whose public part has this hash.
    pub fn manifest_key(&self, public_sha256: &Sha256) -> AeadKey {
        let key = hkdf(self.expose(), Some(public_sha256.as_bytes()), &[b"sealift/1/manifest"]);
        AeadKey::new(Secret::new(key).expose())
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

/// A byte string or a text that is not an epoch id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an epoch id is 16 bytes, or 32 hex digits as text")]
pub struct InvalidEpochId;

/// Names a dedup epoch: the time for which one [`SeriesSecret`] is in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId([u8; 16]);

impl EpochId {
    /// The 16 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The raw bytes in a vector, as protobuf fields want them.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl TryFrom<&[u8]> for EpochId {
    type Error = InvalidEpochId;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidEpochId> {
        bytes.try_into().map(Self).map_err(|_| InvalidEpochId)
    }
}

impl FromStr for EpochId {
    type Err = InvalidEpochId;
    fn from_str(text: &str) -> Result<Self, InvalidEpochId> {
        let mut out = [0; 16];
        hex::decode_to_slice(text, &mut out).map_err(|_| InvalidEpochId)?;
        Ok(Self(out))
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochId({self})")
    }
}

/// The secret `S` of one dedup epoch of one series: 32 random bytes in the host's state directory and nowhere else. A host
/// that lost it starts a new epoch and uploads once anew.
#[derive(Clone)]
pub struct SeriesSecret(Secret<[u8; 32]>);

impl SeriesSecret {
    /// A fresh secret: a new epoch.
    pub fn generate(random: &Random) -> Self {
        Self(Secret::new(random.bytes()))
    }

    /// The secret with these bytes, as the state directory keeps them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The 32 bytes, for the state directory.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The epoch that this secret makes.
    pub fn epoch_id(&self) -> EpochId {
        EpochId(hkdf(self.expose(), None, &[b"sealift/1/epoch"]))
    }

    /// The gear table of the chunker: cut points are not predictable without the secret.
    pub fn gear(&self, series: SeriesId) -> Box<[u64; 256]> {
        let bytes: [u8; 2048] = hkdf(self.expose(), Some(series.as_bytes()), &[b"sealift/1/gear"]);
        let mut gear = Box::new([0; 256]);
        for (entry, bytes) in gear.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
        gear
    }

    /// The key of the BLAKE3 that names chunks.
    pub fn chunk_id_key(&self, series: SeriesId) -> Secret<[u8; 32]> {
        Secret::new(hkdf(self.expose(), Some(series.as_bytes()), &[b"sealift/1/chunk-id"]))
    }

    /// The key of the chunk index of one pack.
    pub fn index_key(&self, pack: PackId) -> AeadKey {
        AeadKey::new(Secret::new(hkdf(self.expose(), Some(pack.as_bytes()), &[b"sealift/1/index"])).expose())
    }
}

impl fmt::Debug for SeriesSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeriesSecret({})", self.epoch_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hkdf_gives_the_vectors_of_rfc_5869() {
        let okm: [u8; 42] = hkdf(
            &[0x0b; 22],
            Some(&hex::decode("000102030405060708090a0b0c").unwrap()),
            &[&hex::decode("f0f1f2f3f4").unwrap(), &hex::decode("f5f6f7f8f9").unwrap()],
        );
        assert_eq!(
            hex::encode(okm),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
        let okm: [u8; 42] = hkdf(&[0x0b; 22], None, &[]);
        assert_eq!(
            hex::encode(okm),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
        );
    }

    #[test]
    fn a_commitment_holds_for_its_key_and_id_alone() {
        let (key, other) = (DataKey::from_bytes([1; 32]), DataKey::from_bytes([2; 32]));
        let commitment = key.commitment(&[9; 16]);
        assert!(key.commits_to(&[9; 16], &commitment));
        assert!(!key.commits_to(&[8; 16], &commitment));
        assert!(!other.commits_to(&[9; 16], &commitment));
        assert!(!key.commits_to(&[9; 16], &commitment[..31]));
    }

    #[test]
    fn data_keys_never_repeat_even_where_two_of_three_inputs_do() {
        let series = SeriesSecret::from_bytes([3; 32]);
        let key = |seed, nonce: u8, series: &SeriesSecret| {
            *DataKey::derive(&Random::from_seed(seed), &[nonce; 32], series).expose()
        };
        let first = key(1, 1, &series);
        assert_eq!(first, key(1, 1, &series));
        assert_ne!(first, key(2, 1, &series));
        assert_ne!(first, key(1, 2, &series));
        assert_ne!(first, key(1, 1, &SeriesSecret::from_bytes([4; 32])));
    }

    #[test]
    fn a_spools_key_needs_the_salt_and_the_series_secret() {
        let key = |salt, secret| {
            *DataKey::of_spool(&Secret::new([salt; 32]), &SeriesSecret::from_bytes([secret; 32])).expose()
        };
        assert_eq!(key(1, 3), key(1, 3));
        assert_ne!(key(1, 3), key(2, 3));
        assert_ne!(key(1, 3), key(1, 4));
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = SeriesSecret::from_bytes([0xab; 32]);
        assert!(!format!("{secret:?} {:?}", DataKey::from_bytes([0xab; 32])).contains("abab"));
        assert_eq!(secret.epoch_id().to_string().parse::<EpochId>(), Ok(secret.epoch_id()));
    }
}
