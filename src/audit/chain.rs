//! The chain: each record carries the hash of the one before it.
//!
//! A record is one line of JSON that ends in `,"prev":"…","hash":"…"}`. `hash` is SHA-256 (FIPS 180-4), or with a key
//! HMAC-SHA-256 (RFC 2104), over the exact bytes of the line before `,"hash"`; `prev` is the hash of the record before
//! it, zeros at the start of a chain; `seq` counts from 1. So a record that is changed no longer fits its hash, and
//! one that is removed, added or moved no longer fits its neighbours. What is cut off at the end leaves a whole
//! chain: only its head, which was noted elsewhere, tells. Without a key whoever can write the file can also write
//! another chain: again the head tells; with a key nobody can who has not got it.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::line::Line;

/// What stands between a record's body and its hash.
const BEFORE_HASH: &[u8] = b",\"hash\":\"";

/// What ends a record.
const AFTER_HASH: &[u8] = b"\"}";

/// How many hex digits a hash has.
const DIGITS: usize = 64;

/// The hash of a record: 32 bytes, shown as 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordHash([u8; 32]);

/// The text is not the hash of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 lowercase hex digits")]
pub struct InvalidHash;

/// Makes hashes of records.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256,
    /// HMAC-SHA-256, ready with its key.
    HmacSha256(Box<Hmac<Sha256>>),
}

/// How far a chain has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which chain: 16 hex digits, drawn when it began.
    pub chain: String,
    /// The number of its last record.
    pub seq: u64,
    /// The hash of its last record.
    pub hash: RecordHash,
}

/// A chain that is being written.
#[derive(Debug)]
pub(super) struct Chain {
    hasher: Hasher,
    head: Head,
}

/// What a record says of its place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) head: Head,
    pub(super) prev: RecordHash,
    /// It may be the first that is seen of its chain: the chain begins with it, or a new file does.
    pub(super) begins: bool,
}

/// A line is no record as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It has not the form of a record.
    Form,
    /// It does not fit its own hash.
    Hash,
}

impl RecordHash {
    /// What the first record of a chain has before it.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Display for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
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
    /// Makes the hasher of `audit.key`, or the plain one.
    #[must_use]
    pub fn new(key: Option<&[u8]>) -> Self {
        // HMAC takes a key of any length (RFC 2104 section 2), so there is always one.
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

    /// Reads where a line (without its line end) stands, if it is a record that fits its own hash.
    pub(super) fn place(&self, line: &[u8]) -> Result<Place, Unfit> {
        /// What is looked at.
        #[derive(Deserialize)]
        struct Fields<'a> {
            chain: String,
            seq: u64,
            #[serde(rename = "type")]
            kind: &'a str,
            prev: &'a str,
        }

        let rest = line.strip_suffix(AFTER_HASH).ok_or(Unfit::Form)?;
        let (rest, digits) = rest.split_at_checked(rest.len().wrapping_sub(DIGITS)).ok_or(Unfit::Form)?;
        let hash = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Unfit::Form)?;
        let body = rest.strip_suffix(BEFORE_HASH).ok_or(Unfit::Form)?;
        if self.hash(body) != hash {
            return Err(Unfit::Hash);
        }
        let fields: Fields<'_> = serde_json::from_slice(line).map_err(|_| Unfit::Form)?;
        let prev = fields.prev.parse().map_err(|_| Unfit::Form)?;
        let head = Head { chain: fields.chain, seq: fields.seq, hash };
        Ok(Place { head, prev, begins: fields.kind == super::record::CHAIN })
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Chain {
    /// Begins a chain of its own.
    pub(super) fn begin(hasher: Hasher) -> Self {
        let chain = hex::encode(rand::random::<[u8; 8]>());
        Self { hasher, head: Head { chain, seq: 0, hash: RecordHash::NONE } }
    }

    /// Goes on with a chain whose head is known.
    pub(super) const fn resume(hasher: Hasher, head: Head) -> Self {
        Self { hasher, head }
    }

    pub(super) const fn head(&self) -> &Head {
        &self.head
    }

    pub(super) const fn algorithm(&self) -> &'static str {
        self.hasher.as_str()
    }

    /// Appends a record to `out`, as a whole line; `fill` writes what it says.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Line<'_>)) {
        let start = out.len();
        let seq = self.head.seq + 1;
        let mut line = Line::begin(out);
        line.number("v", 1);
        line.plain("chain", &self.head.chain);
        line.number("seq", seq);
        fill(&mut line);
        line.hex("prev", &self.head.hash.0);
        let hash = self.hasher.hash(&out[start..]);
        Line::resume(out).hex("hash", &hash.0);
        out.extend_from_slice(b"}\n");
        (self.head.seq, self.head.hash) = (seq, hash);
    }
}

/// Tells whether a record stands directly behind another one of its chain.
pub(super) fn follows(place: &Place, head: &Head) -> bool {
    place.head.seq == head.seq + 1 && place.prev == head.hash
}
