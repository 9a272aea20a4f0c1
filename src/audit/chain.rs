//! The hash chain: each record carries the hash of the previous record.
//!
//! A record is one line of JSON that ends in `,"prev":"…","hash":"…"}`. `hash` is SHA-256 (FIPS 180-4), or with a key
//! HMAC-SHA-256 (RFC 2104), over the exact bytes of the line before `,"hash"`. `prev` is the hash of the previous
//! record, zeros at the start of a chain; `seq` counts from 1.
//!
//! A changed record does not match its hash; a removed, added or moved record does not match its neighbours. Records
//! removed at the end leave a valid chain: only a head that was stored elsewhere reveals them. Without a key, anyone
//! who can write the file can also write a new valid chain, and again only a stored head reveals it. With a key, only
//! the holder of the key can write a valid chain.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::Timestamp;

use super::record::Text;
use super::system_record::CHAIN;

/// The bytes between a record's body and its hash.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";

/// The bytes after the hash.
const AFTER_HASH: &[u8] = b"\"}";

/// The number of hex digits of a hash.
const DIGITS: usize = 64;

/// The hash of a record: 32 bytes, shown as 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordHash([u8; 32]);

/// The text is not the hash of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 lowercase hex digits")]
pub struct InvalidHash;

/// Hashes records.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256,
    /// HMAC-SHA-256, keyed.
    HmacSha256(Box<Hmac<Sha256>>),
}

/// The last record of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// The id of the chain: 16 random hex digits.
    pub chain: String,
    /// The number of its last record.
    pub seq: u64,
    /// The hash of its last record.
    pub hash: RecordHash,
}

/// A chain that records are appended to.
#[derive(Debug)]
pub(super) struct Chain {
    hasher: Hasher,
    head: ChainHead,
}

/// The position of a record in its chain.
#[derive(Debug)]
pub(super) struct RecordPosition {
    pub(super) head: ChainHead,
    pub(super) prev: RecordHash,
    /// The record starts a chain or a file, so it may be the first one of its chain that a reader sees.
    pub(super) starts: bool,
}

/// A line is not a valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvalidRecord {
    /// It does not have the form of a record.
    Form,
    /// It does not match its own hash.
    Hash,
}

impl RecordHash {
    /// The `prev` of the first record of a chain.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Display for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; DIGITS];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let mut bytes = [0; 32];
        let lowercase = !text.bytes().any(|b| b.is_ascii_uppercase());
        hex::decode_to_slice(text, &mut bytes).ok().filter(|()| lowercase).map(|()| Self(bytes)).ok_or(InvalidHash)
    }
}

impl Hasher {
    /// Creates a hasher, keyed with `audit.key` if there is one.
    #[must_use]
    pub fn new(key: Option<&[u8]>) -> Self {
        // HMAC takes a key of any length (RFC 2104 section 2), so this never fails.
        let keyed = key.and_then(|key| Hmac::<Sha256>::new_from_slice(key).ok());
        keyed.map_or(Self::Sha256, |mac| Self::HmacSha256(Box::new(mac)))
    }

    /// Returns the name of the algorithm.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::HmacSha256(_) => "hmac-sha256",
        }
    }

    fn hash(&self, bytes: &[u8]) -> RecordHash {
        RecordHash(match self {
            Self::Sha256 => Sha256::digest(bytes).into(),
            Self::HmacSha256(mac) => mac.as_ref().clone().chain_update(bytes).finalize().into_bytes().into(),
        })
    }

    /// Returns the position of a record, if the line (without its line end) is one and matches its own hash.
    pub(super) fn position(&self, line: &[u8]) -> Result<RecordPosition, InvalidRecord> {
        /// The members that matter here.
        #[derive(Deserialize)]
        struct ChainMembers<'a> {
            chain: String,
            seq: u64,
            #[serde(rename = "type")]
            kind: &'a str,
            prev: &'a str,
        }

        let rest = line.strip_suffix(AFTER_HASH).ok_or(InvalidRecord::Form)?;
        let (rest, digits) = rest.split_at_checked(rest.len().wrapping_sub(DIGITS)).ok_or(InvalidRecord::Form)?;
        let hash =
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(InvalidRecord::Form)?;
        let body = rest.strip_suffix(BEFORE_HASH).ok_or(InvalidRecord::Form)?;
        if self.hash(body) != hash {
            return Err(InvalidRecord::Hash);
        }
        let members: ChainMembers<'_> = serde_json::from_slice(line).map_err(|_| InvalidRecord::Form)?;
        let prev = members.prev.parse().map_err(|_| InvalidRecord::Form)?;
        let head = ChainHead { chain: members.chain, seq: members.seq, hash };
        Ok(RecordPosition { head, prev, starts: members.kind == CHAIN })
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Chain {
    /// Starts a new chain.
    pub(super) fn start(hasher: Hasher) -> Self {
        let chain = hex::encode(rand::random::<[u8; 8]>());
        Self { hasher, head: ChainHead { chain, seq: 0, hash: RecordHash::NONE } }
    }

    /// Continues a chain after its head.
    pub(super) const fn resume(hasher: Hasher, head: ChainHead) -> Self {
        Self { hasher, head }
    }

    pub(super) const fn head(&self) -> &ChainHead {
        &self.head
    }

    pub(super) const fn algorithm(&self) -> &'static str {
        self.hasher.as_str()
    }

    /// Appends one record to `out`, as a complete line.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, time: Timestamp, record: &impl Serialize) {
        /// A record and its position, in the order of the line.
        #[derive(Serialize)]
        struct ChainedRecord<'a, R> {
            v: u8,
            chain: &'a str,
            seq: u64,
            time: Text<Timestamp>,
            #[serde(flatten)]
            record: &'a R,
            prev: Text<RecordHash>,
        }

        let (start, seq) = (out.len(), self.head.seq + 1);
        let (chain, time, prev) = (self.head.chain.as_str(), Text(time), Text(self.head.hash));
        // A record has no map with other keys than text, and writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, &ChainedRecord { v: 1, chain, seq, time, record, prev });
        // The hash is the last member, and covers all others.
        out.pop();
        let hash = self.hasher.hash(&out[start..]);
        out.extend_from_slice(BEFORE_HASH);
        out.extend_from_slice(hash.to_string().as_bytes());
        out.extend_from_slice(AFTER_HASH);
        out.push(b'\n');
        (self.head.seq, self.head.hash) = (seq, hash);
    }
}

/// Returns whether a record directly follows the head of its chain.
pub(super) fn follows(position: &RecordPosition, head: &ChainHead) -> bool {
    position.head.seq == head.seq + 1 && position.prev == head.hash
}
