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
use crate::invalid::InvalidSetting;

use super::chain::Hasher;

/// How many records may wait, at least and at most: the writer lingers for some milliseconds, and meanwhile a burst of
/// lookups must fit.
const BUFFERS: RangeInclusive<usize> = 1_000..=1_000_000;

/// `[audit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where records go.
    pub sink: Sink,
    /// The file of the file sink.
    pub path: PathBuf,
    /// Which lookups are recorded.
    pub lookups: Lookups,
    /// What the chain is keyed with: base64 of 32 bytes or more.
    #[serde(default)]
    pub key: Option<Secret>,
    /// Whether what cannot be recorded is refused.
    pub strict: bool,
    /// How many records may wait to be written.
    pub buffer: usize,
    /// When the file sink makes records durable.
    pub fsync: Fsync,
    /// How large the file may become before the next one is begun.
    pub max_bytes: ByteSize,
    /// How many full files are kept; 0: all.
    pub keep: usize,
}

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file.
    File,
    /// Nowhere: nothing is recorded.
    None,
}

/// Which lookups are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookups {
    /// All of them.
    All,
    /// Those that were denied.
    Denied,
}

/// When the file sink makes records durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before anyone is told that a record is written; one fsync serves all that wait.
    Always,
    /// So often.
    Every(Duration),
}

impl Config {
    /// Checks what types cannot say.
    ///
    /// # Errors
    ///
    /// Names the first setting that is unusable.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if self.key.is_some() && self.key_material().is_none() {
            return Err(InvalidSetting::new("key", "must be base64 of 32 bytes or more"));
        }
        if self.sink == Sink::File && self.path.file_name().is_none() {
            return Err(InvalidSetting::new("path", "must name a file"));
        }
        if self.max_bytes < ByteSize::kib(64) {
            return Err(InvalidSetting::new("max_bytes", "must be at least 64KiB"));
        }
        if !BUFFERS.contains(&self.buffer) {
            return Err(InvalidSetting::new("buffer", "must be from 1000 to 1000000"));
        }
        if self.sink == Sink::None && self.strict {
            return Err(InvalidSetting::new("strict", "needs a sink: \"stdout\" or \"file\""));
        }
        Ok(())
    }

    /// Makes the hasher of the chain.
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
        let every = humantime::parse_duration(&text).ok().filter(|every| !every.is_zero());
        every.map(Self::Every).ok_or_else(|| serde::de::Error::custom("expected \"always\" or a time such as \"1s\""))
    }
}
