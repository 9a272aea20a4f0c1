//! Secrets: text that is compared or sent, but never printed.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A secret text (key, password, token).
///
/// It has no `Display`, its `Debug` shows `[redacted]`, and dropping it clears its memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// Returns the text, for sending or as the key of a MAC; never for printing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares the secret with a candidate, in a time that depends only on the lengths.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(candidate).into()
    }

    /// Decodes the text as a key: base64 of 32 bytes or more; `None` for any other text.
    #[must_use]
    pub fn key_material(&self) -> Option<Zeroizing<Vec<u8>>> {
        STANDARD.decode(self.0.as_bytes()).ok().map(Zeroizing::new).filter(|key| key.len() >= 32)
    }

    /// Returns whether the secret is empty, which no configuration allows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The newtype name under which a secret is deserialized.
///
/// The deserializer of the configuration recognises it: it resolves `env:NAME` and `file:PATH`, and redacts the value
/// in its output.
pub const SECRET: &str = "profile_edge::Secret";

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret: a text, \"env:NAME\" or \"file:PATH\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Secret, D::Error> {
                inner.deserialize_str(self)
            }
        }

        deserializer.deserialize_newtype_struct(SECRET, Visitor)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
