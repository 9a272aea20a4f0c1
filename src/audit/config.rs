//! `[audit]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::domain::Secret;
use crate::invalid::{InvalidSetting, LONGEST_TIME};

use super::chain::Hasher;

/// The range of `audit.buffer`: the buffer must hold a burst of lookups while the writer waits some milliseconds for a
/// batch.
const BUFFERS: RangeInclusive<usize> = 1_000..=1_000_000;

/// `[audit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The destination of records.
    pub sink: SinkKind,
    /// The path of the file sink.
    pub path: PathBuf,
    /// Which lookups are recorded.
    pub lookups: Lookups,
    /// The key of the hash chain: base64 of at least 32 bytes.
    #[serde(default)]
    pub key: Option<Secret>,
    /// Whether actions that cannot be recorded are refused.
    pub strict: bool,
    /// How many records may wait for the writer.
    pub buffer: usize,
    /// When the file sink makes records durable.
    pub fsync: Fsync,
    /// The size at which the next file starts.
    pub max_bytes: ByteSize,
    /// How many full files are kept; 0 keeps all.
    pub keep: usize,
}

/// The destination of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SinkKind {
    /// Standard output.
    Stdout,
    /// A file.
    File,
    /// No destination: nothing is recorded.
    None,
}

/// Which lookups are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookups {
    /// All lookups.
    All,
    /// Denied lookups only.
    Denied,
}

/// When the file sink makes records durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before a record counts as written; one fsync serves all waiting callers.
    Always,
    /// At this interval.
    Every(Duration),
}

impl Config {
    /// Checks the rules that the types do not express.
    ///
    /// # Errors
    ///
    /// Names the first invalid setting.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if self.key.is_some() && self.key_material().is_none() {
            return Err(InvalidSetting::new("key", "must be base64 of 32 bytes or more"));
        }
        if self.sink == SinkKind::File && self.path.file_name().is_none() {
            return Err(InvalidSetting::new("path", "must name a file"));
        }
        if self.max_bytes < ByteSize::kib(64) {
            return Err(InvalidSetting::new("max_bytes", "must be at least 64KiB"));
        }
        if !BUFFERS.contains(&self.buffer) {
            return Err(InvalidSetting::new("buffer", "must be from 1000 to 1000000"));
        }
        if self.sink == SinkKind::None && self.strict {
            return Err(InvalidSetting::new("strict", "needs a sink: \"stdout\" or \"file\""));
        }
        Ok(())
    }

    /// Creates the hasher of the chain.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.key_material().as_ref().map(|key| key.as_slice()))
    }

    fn key_material(&self) -> Option<Zeroizing<Vec<u8>>> {
        let key = STANDARD.decode(self.key.as_ref()?.expose()).ok()?;
        Some(Zeroizing::new(key)).filter(|key| key.len() >= 32)
    }
}

impl<'de> Deserialize<'de> for Fsync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "always" {
            return Ok(Self::Always);
        }
        let every = humantime::parse_duration(&text).ok().filter(|every| !every.is_zero() && *every <= LONGEST_TIME);
        let expected = "expected \"always\" or a time such as \"1s\", at most 3650d";
        every.map(Self::Every).ok_or_else(|| serde::de::Error::custom(expected))
    }
}
