//! Key slots: the data key of a backup, encrypted to the recipients (docs/format.md, Keys).
//!
//! Slots are encrypted to public keys, so anyone can make one. Nothing is believed because a slot opened: the commitment
//! of the pack or manifest decides, which is why [`KeySlots::open`] takes it as an argument.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use prost::Message;
use sealift_proto::format as wire;

use super::key_file::Identities;
use super::keys::DataKey;
use crate::id::{BackupId, RepositoryId, SeriesId, Sha256};

/// Most bytes of encoded slots that readers accept.
pub const MAX_SLOTS: usize = 64 * 1024;
/// Most bytes that an envelope decrypts to; a real one has less than 100.
const MAX_ENVELOPE: u64 = 4096;

/// A text that is not a recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a recipient: expected age1…, as `age-keygen` or `sealift keys generate` prints it")]
pub struct InvalidRecipient(String);

/// A public key that backups are encrypted to: `age1…`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient(String);

impl Recipient {
    pub(super) fn of(public: &age::x25519::Recipient) -> Self {
        Self(public.to_string())
    }

    /// SHA-256 of the recipient's text: how slots, manifests and `backup show` name it.
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(self.0.as_bytes())
    }

    /// The recipient as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = InvalidRecipient;
    fn from_str(text: &str) -> Result<Self, InvalidRecipient> {
        // What is kept is the parsed key's own spelling, so that one key has one fingerprint.
        age::x25519::Recipient::from_str(text)
            .map(|public| Self::of(&public))
            .map_err(|_| InvalidRecipient(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Slots that could not be made, read or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is nobody to encrypt to.
    #[error("no recipient to encrypt the data key to: set one with `sealift trust set --recipient age1…`")]
    NoRecipients,
    /// The bytes are not slots.
    #[error("the key slots are malformed: {0}")]
    Malformed(&'static str),
    /// More bytes than readers accept.
    #[error("the key slots are {0} bytes, at most {MAX_SLOTS} are accepted")]
    TooLong(usize),
    /// No slot is of a kind that this version knows.
    #[error("no key slot is of a kind that this version can open: use a newer one")]
    UnknownKind,
    /// None of the identities is one of the recipients.
    #[error(
        "none of the identities given opens a key slot: it is encrypted to the recipients {}",
        list(recipients)
    )]
    NoMatchingIdentity {
        /// Fingerprints of those who could, as the slots claim.
        recipients: Vec<Sha256>,
    },
    /// Slots opened, but none holds the key that the pack or manifest was sealed under.
    #[error("the key slots hold another key than the one this was sealed under")]
    WrongKey,
    /// An age file that does not decrypt although it was made for this identity.
    #[error("a key slot is damaged")]
    Damaged,
}

fn list(recipients: &[Sha256]) -> String {
    recipients.iter().map(Sha256::to_string).collect::<Vec<_>>().join(", ")
}

/// Whose data key it is: the envelope names it, and opening checks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyOwner {
    /// The repository.
    pub repository: RepositoryId,
    /// The series.
    pub series: SeriesId,
    /// The backup whose packs and manifest are sealed under the key.
    pub backup: BackupId,
}

/// One or more slots. Made once per data key and put into every pack header and the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlots(Vec<wire::KeySlot>);

impl KeySlots {
    /// Encrypts `key` to all of `recipients`, in one age file. Randomised: two calls never give the same bytes.
    ///
    /// # Errors
    /// [`SlotError::NoRecipients`]; [`SlotError::TooLong`] for some hundreds of recipients.
    #[allow(clippy::expect_used)] // age writes to memory here, and its recipients were parsed
    pub fn seal(key: &DataKey, owner: &KeyOwner, recipients: &[Recipient]) -> Result<Self, SlotError> {
        let parsed: Vec<age::x25519::Recipient> =
            recipients.iter().filter_map(|r| r.0.parse().ok()).collect();
        let encryptor = age::Encryptor::with_recipients(parsed.iter().map(|r| r as &dyn age::Recipient))
            .map_err(|_| SlotError::NoRecipients)?;
        let plaintext = zeroize::Zeroizing::new(
            wire::DataKeyEnvelope {
                repository_id: owner.repository.to_vec(),
                series_id: owner.series.to_vec(),
                backup_id: owner.backup.to_vec(),
                data_key: key.expose().to_vec(),
            }
            .encode_to_vec(),
        );
        let mut envelope = Vec::new();
        let mut writer = encryptor.wrap_output(&mut envelope).expect("writing to memory does not fail");
        writer.write_all(&plaintext).expect("writing to memory does not fail");
        writer.finish().expect("writing to memory does not fail");
        let slot = wire::KeySlot {
            kind: wire::SlotKind::Age.into(),
            envelope,
            recipients: recipients.iter().map(|r| r.fingerprint().to_vec()).collect(),
        };
        Self::from_wire(vec![slot])
    }

    /// Takes slots as a header or a manifest carries them.
    ///
    /// # Errors
    /// [`SlotError::UnknownKind`] where no slot is of a known kind, [`SlotError::Malformed`] and [`SlotError::TooLong`].
    pub fn from_wire(slots: Vec<wire::KeySlot>) -> Result<Self, SlotError> {
        if !slots.iter().any(|slot| slot.kind() == wire::SlotKind::Age) {
            return Err(SlotError::UnknownKind);
        }
        if slots.iter().flat_map(|slot| &slot.recipients).any(|fingerprint| fingerprint.len() != 32) {
            return Err(SlotError::Malformed("a recipient's fingerprint is not 32 bytes"));
        }
        let slots = Self(slots);
        let len = slots.encode().len();
        if len > MAX_SLOTS { Err(SlotError::TooLong(len)) } else { Ok(slots) }
    }

    /// The slots as a header carries them.
    pub fn to_wire(&self) -> Vec<wire::KeySlot> {
        self.0.clone()
    }

    /// The bytes of a manifest's `slots` part, and of a `slots/` object.
    pub fn encode(&self) -> Vec<u8> {
        wire::KeySlots { slots: self.0.clone() }.encode_to_vec()
    }

    /// Reads the bytes of a manifest's `slots` part, or of a `slots/` object.
    ///
    /// # Errors
    /// As [`KeySlots::from_wire`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SlotError> {
        if bytes.len() > MAX_SLOTS {
            return Err(SlotError::TooLong(bytes.len()));
        }
        let slots =
            wire::KeySlots::decode(bytes).map_err(|_| SlotError::Malformed("not a KeySlots message"))?;
        Self::from_wire(slots.slots)
    }

    /// Fingerprints of the recipients, as the slots claim them; only opening proves it.
    pub fn recipients(&self) -> Vec<Sha256> {
        let fingerprints = self.0.iter().flat_map(|slot| &slot.recipients);
        fingerprints.filter_map(|fingerprint| Sha256::try_from(fingerprint.as_slice()).ok()).collect()
    }

    /// Tries every slot and gives the first key that names `owner` and that `commits` accepts: pass the check against the
    /// commitment of the pack or manifest, [`DataKey::commits_to`].
    ///
    /// # Errors
    /// [`SlotError::NoMatchingIdentity`] with a wrong identity, [`SlotError::WrongKey`] where slots open but do not hold
    /// the key, [`SlotError::Damaged`].
    pub fn open(
        &self,
        identities: &Identities,
        owner: &KeyOwner,
        commits: impl Fn(&DataKey) -> bool,
    ) -> Result<DataKey, SlotError> {
        let mut failure = SlotError::NoMatchingIdentity { recipients: self.recipients() };
        for slot in self.0.iter().filter(|slot| slot.kind() == wire::SlotKind::Age) {
            match open_envelope(&slot.envelope, identities, owner) {
                Ok(Some(key)) if commits(&key) => return Ok(key),
                Ok(Some(_)) => failure = SlotError::WrongKey,
                Ok(None) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Tries several sets of slots: those of a pack or manifest, and those that were added later (`slots/` objects).
    ///
    /// # Errors
    /// As [`KeySlots::open`]; that no identity fits says less than anything else that went wrong, and is told last.
    pub fn open_any<'a>(
        sets: impl IntoIterator<Item = &'a Self>,
        identities: &Identities,
        owner: &KeyOwner,
        commits: impl Fn(&DataKey) -> bool,
    ) -> Result<DataKey, SlotError> {
        let mut recipients = Vec::new();
        let mut failure = None;
        for slots in sets {
            match slots.open(identities, owner, &commits) {
                Ok(key) => return Ok(key),
                Err(SlotError::NoMatchingIdentity { recipients: more }) => recipients.extend(more),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(SlotError::NoMatchingIdentity { recipients }))
    }
}

/// The key in one age file; `None` where no identity fits it.
fn open_envelope(
    envelope: &[u8],
    identities: &Identities,
    owner: &KeyOwner,
) -> Result<Option<DataKey>, SlotError> {
    let decryptor = age::Decryptor::new_buffered(envelope).map_err(|_| SlotError::Damaged)?;
    let reader = match decryptor.decrypt(identities.as_age()) {
        Ok(reader) => reader,
        Err(age::DecryptError::NoMatchingKeys) => return Ok(None),
        Err(_) => return Err(SlotError::Damaged),
    };
    let mut plaintext = zeroize::Zeroizing::new(Vec::new());
    reader.take(MAX_ENVELOPE).read_to_end(&mut plaintext).map_err(|_| SlotError::Damaged)?;
    let malformed = |_| SlotError::Malformed("its envelope is not a DataKeyEnvelope");
    let opened = wire::DataKeyEnvelope::decode(plaintext.as_slice()).map_err(malformed)?;
    let data_key = zeroize::Zeroizing::new(opened.data_key);
    let named = opened.repository_id == owner.repository.as_bytes()
        && opened.series_id == owner.series.as_bytes()
        && opened.backup_id == owner.backup.as_bytes();
    let key = <[u8; 32]>::try_from(data_key.as_slice());
    let key = key.map_err(|_| SlotError::Malformed("its data key is not 32 bytes"))?;
    if named { Ok(Some(DataKey::from_bytes(key))) } else { Err(SlotError::WrongKey) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::UnixMillis;
    use crate::crypto::key_file::generate_identity;
    use crate::id::Random;

    fn person() -> (Identities, Recipient) {
        let (text, recipient) = generate_identity(UnixMillis(0));
        (Identities::parse(Path::new("key.txt"), text.expose()).unwrap(), recipient)
    }

    fn owner(seed: u64) -> KeyOwner {
        let random = Random::from_seed(seed);
        KeyOwner {
            repository: RepositoryId::generate(&random),
            series: SeriesId::generate(&random),
            backup: BackupId::generate(&random),
        }
    }

    #[test]
    fn each_recipient_opens_alone_and_nobody_else_does() {
        let ((ann, ann_key), (bob, bob_key), (eve, _)) = (person(), person(), person());
        let key = DataKey::from_bytes([5; 32]);
        let slots = KeySlots::seal(&key, &owner(1), &[ann_key.clone(), bob_key.clone()]).unwrap();
        let slots = KeySlots::parse(&slots.encode()).unwrap();
        assert_eq!(slots.recipients(), [ann_key.fingerprint(), bob_key.fingerprint()]);
        for identities in [&ann, &bob] {
            let opened = slots.open(identities, &owner(1), |_| true).unwrap();
            assert_eq!(opened.expose(), key.expose());
        }
        let refused = slots.open(&eve, &owner(1), |_| true).unwrap_err();
        assert_eq!(refused, SlotError::NoMatchingIdentity { recipients: slots.recipients() });
    }

    #[test]
    fn a_slot_of_another_backup_or_key_is_refused() {
        let (ann, ann_key) = person();
        let slots = KeySlots::seal(&DataKey::from_bytes([5; 32]), &owner(1), &[ann_key]).unwrap();
        assert_eq!(slots.open(&ann, &owner(2), |_| true).unwrap_err(), SlotError::WrongKey);
        assert_eq!(slots.open(&ann, &owner(1), |_| false).unwrap_err(), SlotError::WrongKey);
    }

    #[test]
    fn a_forged_slot_beside_the_right_one_does_no_harm() {
        let (ann, ann_key) = person();
        let right = DataKey::from_bytes([5; 32]);
        let forged =
            KeySlots::seal(&DataKey::from_bytes([6; 32]), &owner(1), std::slice::from_ref(&ann_key)).unwrap();
        let real = KeySlots::seal(&right, &owner(1), &[ann_key]).unwrap();
        let both = KeySlots::from_wire([forged.to_wire(), real.to_wire()].concat()).unwrap();
        let opened = both.open(&ann, &owner(1), |key| key.expose() == right.expose()).unwrap();
        assert_eq!(opened.expose(), right.expose());
    }

    #[test]
    fn unknown_kinds_are_refused_unless_a_known_one_is_beside_them() {
        let (_, ann_key) = person();
        let unknown = wire::KeySlot { kind: 77, envelope: vec![1], recipients: vec![] };
        assert_eq!(KeySlots::from_wire(vec![unknown.clone()]), Err(SlotError::UnknownKind));
        assert_eq!(KeySlots::from_wire(vec![]), Err(SlotError::UnknownKind));
        let mut slots =
            KeySlots::seal(&DataKey::from_bytes([5; 32]), &owner(1), &[ann_key]).unwrap().to_wire();
        slots.push(unknown);
        assert!(KeySlots::from_wire(slots).is_ok());
        assert_eq!(
            KeySlots::seal(&DataKey::from_bytes([5; 32]), &owner(1), &[]),
            Err(SlotError::NoRecipients)
        );
    }

    #[test]
    fn a_recipient_has_one_spelling() {
        let (_, recipient) = person();
        assert_eq!(recipient.as_str().parse(), Ok(recipient.clone()));
        assert!("age1tooshort".parse::<Recipient>().is_err());
        assert!("ssh-ed25519 AAAA".parse::<Recipient>().is_err());
    }
}
