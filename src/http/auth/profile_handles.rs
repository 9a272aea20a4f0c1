//! Opaque handles: how a caller recognises a customer in the change feed without knowing our key, or another caller's handle.
//!
//! A handle is an HMAC over the caller's name and the entry key. It contains nothing about the customer, is the same in each
//! process that shares `http.token_secret`, and the handles of two callers cannot be linked.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue};
use sha2::Sha256;

use crate::domain::{Digest, TenantId};

/// The header of an answer that has the handle of its customer.
pub(in crate::http) const PROFILE_KEY: HeaderName = HeaderName::from_static("x-profile-key");

/// The bytes of a handle: a collision is as unlikely as that of two entry keys.
const LENGTH: usize = 16;

/// Computes handles.
#[derive(Debug)]
pub struct ProfileHandles(Hmac<Sha256>);

impl ProfileHandles {
    /// Creates the handles that belong to a key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        // HMAC takes a key of any length (RFC 2104 section 2), so this cannot fail.
        Self(Hmac::new_from_slice(key).expect("hmac takes keys of any length"))
    }

    /// Returns the handle of a customer for a caller: 22 characters of base64url (RFC 4648 section 5).
    #[must_use]
    pub fn of(&self, caller: &str, tenant: &TenantId, customer: Digest) -> String {
        let mut mac = self.0.clone();
        // Names have no zero byte.
        for part in [caller.as_bytes(), &[0], tenant.as_str().as_bytes(), &[0], customer.as_bytes()] {
            mac.update(part);
        }
        URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..LENGTH])
    }

    /// Returns the handle as the value of a header.
    pub(in crate::http) fn header(&self, caller: &str, tenant: &TenantId, customer: Digest) -> HeaderValue {
        // Base64url is a valid header value.
        HeaderValue::try_from(self.of(caller, tenant, customer)).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}
