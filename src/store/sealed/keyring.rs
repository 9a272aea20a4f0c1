//! The keys of `[store.sealing]`, and the seal.
//!
//! # The seal
//!
//! XAES-256-GCM (C2SP): AES-256-GCM under a key that is derived from the tenant's key and the first half of a
//! 24-byte nonce. The nonces are random. 192 bits do not repeat by chance, for any number of messages, processes and
//! restarts, so no counter must be stored. The implementation is `RustCrypto`'s (the `aes-gcm` crate, audited by
//! NCC Group). The tenant's key is HKDF-SHA-256 (RFC 5869) of the configured key with the tenant in its info, so no
//! two tenants share a key.
//!
//! ```text
//! sealed  = length of the key's name (1) │ name │ nonce (24) │ ciphertext │ tag (16)
//! text    = the content's letter (1) │ the content, encoded as in a record in clear
//! data    = version (1) │ entry key │ the key's name │ token │ identity │ four times │ settled │ generation, if not zero
//! ```
//!
//! The associated data holds everything else in the record, and the entry key, which the record does not hold. Names
//! are preceded by their length and the rest has a fixed length (the generation is at the end), so two records never have the same data.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hkdf::Hkdf;
use serde::Deserialize;
use sha2::Sha256;
use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Nonce, Tag, Xaes256Gcm};
use zeroize::Zeroizing;

use crate::domain::{Key, Secret, TenantId};
use crate::invalid::InvalidSetting;
use crate::store::{Ciphertext, Content, Record, encoding};

/// The version of the format, which is part of the associated data.
const VERSION: u8 = 1;

/// The purposes of derived keys; the id of the tenant follows.
const LABEL: &[u8] = b"profile-edge store sealing 1\0";
const MAC_LABEL: &[u8] = b"profile-edge store mac 1\0";

const NONCE: usize = 24;
const TAG: usize = 16;

/// The longest name of a key.
const LONGEST_NAME: usize = 32;

/// More than the length of the associated data: an entry key has at most 110 bytes, a name 32, the rest 155.
const MAX_DATA: usize = 320;

/// `[store.sealing]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of the key that macs.
    pub active: String,
    /// Every key that opens, by its name.
    pub keys: BTreeMap<String, Secret>,
}

/// The keys that open records, and the one that macs them. Without keys records stay in clear.
#[derive(Default)]
pub struct Keyring {
    keys: Vec<SealingKey>,
    /// The position of the key that macs.
    active: usize,
}

/// One key and the keys derived from it.
struct SealingKey {
    name: String,
    material: Zeroizing<Vec<u8>>,
    /// The ciphers of the configured tenants.
    derived: HashMap<TenantId, Xaes256Gcm>,
}

/// Why a record cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// It is in clear, although keys are configured.
    #[error("not sealed")]
    InClear,
    /// It is sealed under a key that is not configured.
    #[error("unknown key")]
    UnknownKey,
    /// It was sealed for another entry key or under another key of the same name, or it was altered.
    #[error("not authentic")]
    NotAuthentic,
}

impl Config {
    /// Checks the keys.
    ///
    /// # Errors
    ///
    /// A name or key is invalid, or the active key is not among the keys.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        Keyring::new(self, &[]).map(drop)
    }
}

impl Keyring {
    /// Creates a keyring and derives the keys of these tenants.
    ///
    /// # Errors
    ///
    /// As [`Config::validate`].
    pub fn new(config: &Config, tenants: &[TenantId]) -> Result<Self, InvalidSetting> {
        let mut keys = Vec::new();
        for (name, secret) in &config.keys {
            let refuse = |reason| InvalidSetting::new(format!("keys.{name}"), reason);
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
            if !(1..=LONGEST_NAME).contains(&name.len()) || !name.bytes().all(allowed) {
                return Err(refuse("a key's name must be 1 to 32 characters of A-Z, a-z, 0-9, '_' and '-'"));
            }
            let material = secret.key_material().ok_or_else(|| refuse("must be base64 of 32 bytes or more"))?;
            let derived = tenants.iter().map(|tenant| (tenant.clone(), derive(&material, tenant))).collect();
            keys.push(SealingKey { name: name.clone(), material, derived });
        }
        let active = keys.iter().position(|key| key.name == config.active);
        let missing = || InvalidSetting::new("active", "must name one of store.sealing.keys");
        Ok(Self { active: active.ok_or_else(missing)?, keys })
    }

    /// Returns whether there are no keys, so that nothing is sealed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the keys for the tombstones of a tenant, first the one that macs.
    pub(super) fn mac_keys(&self, tenant: &TenantId) -> impl Iterator<Item = Zeroizing<[u8; 32]>> {
        let (before, after) = self.keys.split_at(self.active.min(self.keys.len()));
        after.iter().chain(before).map(|key| expand(&key.material, MAC_LABEL, tenant))
    }

    /// Seals a record for an entry key.
    ///
    /// # Panics
    ///
    /// Never: only a content of 64 GiB would be too long to seal.
    #[must_use]
    pub fn seal(&self, key: &Key, mut record: Record) -> Record {
        let Some(active) = self.keys.get(self.active) else { return record };
        let nonce: [u8; NONCE] = rand::random();
        let content = encoding::length_of(&record.content);
        let mut out = BytesMut::with_capacity(1 + active.name.len() + NONCE + 1 + content + TAG);
        put_name(&mut out, &active.name);
        out.put_slice(&nonce);
        let head = out.len();
        out.put_u8(encoding::kind_of(&record.content));
        encoding::put_content(&mut out, &record.content, record.settled, 0);
        let data = AssociatedData::of(key, &active.name, &record);
        let sealed = active.with_cipher(key.tenant(), |cipher| {
            cipher.encrypt_inout_detached(&nonce.into(), data.bytes(), (&mut out[head..]).into())
        });
        // The size of bodies is limited far below 64 GiB, the only reason for a failure.
        let tag = sealed.expect("the content is shorter than 64 GiB");
        out.put_slice(&tag);
        record.content = Content::Sealed(Ciphertext::new(out.freeze()));
        record
    }

    /// Opens a record of an entry key, in place if its bytes are not shared. A record that cannot be opened has sealed
    /// content afterwards.
    ///
    /// # Errors
    ///
    /// The reason why it cannot be opened.
    pub fn open(&self, key: &Key, record: &mut Record) -> Result<(), UnsealError> {
        if !matches!(record.content, Content::Sealed(_)) && self.is_empty() {
            return Ok(());
        }
        let content = std::mem::replace(&mut record.content, Content::Sealed(Ciphertext::default()));
        let Content::Sealed(ciphertext) = content else { return Err(UnsealError::InClear) };
        let opened = self.decrypt(key, record, ciphertext)?;
        let content = take_text(opened).ok_or(UnsealError::NotAuthentic)?;
        record.content = content;
        Ok(())
    }

    /// Decrypts a ciphertext.
    fn decrypt(&self, key: &Key, record: &Record, ciphertext: Ciphertext) -> Result<Bytes, UnsealError> {
        let sealed = ciphertext.into_bytes();
        let (length, rest) = sealed.split_first().ok_or(UnsealError::NotAuthentic)?;
        let name = rest.get(..usize::from(*length)).ok_or(UnsealError::NotAuthentic)?;
        let sealing_key = self.keys.iter().find(|key| key.name.as_bytes() == name).ok_or(UnsealError::UnknownKey)?;
        let head = 1 + name.len() + NONCE;
        // The text has at least the letter of the content.
        let end = sealed.len().checked_sub(TAG).filter(|end| *end > head).ok_or(UnsealError::NotAuthentic)?;
        let mut buffer = sealed.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let (before, text) = buffer.split_at_mut(head);
        let (text, tag) = text.split_at_mut(end - head);
        let nonce = before.last_chunk::<NONCE>().ok_or(UnsealError::NotAuthentic)?;
        let tag = tag.first_chunk::<TAG>().ok_or(UnsealError::NotAuthentic)?;
        let data = AssociatedData::of(key, &sealing_key.name, record);
        sealing_key
            .with_cipher(key.tenant(), |cipher| {
                cipher.decrypt_inout_detached(<&Nonce>::from(nonce), data.bytes(), text.into(), <&Tag>::from(tag))
            })
            .map_err(|_| UnsealError::NotAuthentic)?;
        buffer.truncate(end);
        buffer.advance(head);
        Ok(buffer.freeze())
    }
}

impl SealingKey {
    /// Runs with the cipher of a tenant. That of a tenant that is not configured (in tests and tools) is derived here.
    fn with_cipher<T>(&self, tenant: &TenantId, run: impl FnOnce(&Xaes256Gcm) -> T) -> T {
        match self.derived.get(tenant) {
            Some(cipher) => run(cipher),
            None => run(&derive(&self.material, tenant)),
        }
    }
}

/// What a seal authenticates besides its text.
struct AssociatedData {
    buffer: [u8; MAX_DATA],
    length: usize,
}

impl AssociatedData {
    fn of(key: &Key, name: &str, record: &Record) -> Self {
        let mut buffer = [0; MAX_DATA];
        let mut rest = &mut buffer[..];
        rest.put_u8(VERSION);
        put_name(&mut rest, key.as_str());
        put_name(&mut rest, name);
        rest.put_slice(record.token.as_bytes());
        encoding::put_clear(&mut rest, record);
        rest.put_u8(record.settled.into());
        if record.generation > 0 {
            rest.put_u64(record.generation);
        }
        let length = MAX_DATA - rest.len();
        Self { buffer, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Returns the cipher of a tenant.
fn derive(material: &[u8], tenant: &TenantId) -> Xaes256Gcm {
    Xaes256Gcm::new((&*expand(material, LABEL, tenant)).into())
}

/// Returns the key of a tenant for this purpose.
fn expand(material: &[u8], label: &[u8], tenant: &TenantId) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    // HKDF gives up to 255 times 32 bytes (RFC 5869 section 2.3).
    let expanded =
        Hkdf::<Sha256>::new(None, material).expand_multi_info(&[label, tenant.as_str().as_bytes()], &mut *derived);
    expanded.expect("hkdf gives 32 bytes");
    derived
}

fn put_name(out: &mut impl BufMut, name: &str) {
    // An entry key has at most 110 bytes, the name of a key 32.
    out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.put_slice(name.as_bytes());
}

/// Reads a decrypted text. A sealed content in it is refused: this program never writes one.
fn take_text(mut text: Bytes) -> Option<Content> {
    let kind = text.try_get_u8().ok()?;
    let (content, ..) = encoding::take_content(kind, text)?;
    (!matches!(content, Content::Sealed(_))).then_some(content)
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.iter().map(|key| &key.name)).finish()
    }
}
