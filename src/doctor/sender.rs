//! The sender of the test event: posts it as a configured webhook expects.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::RequestBuilder;
use sha2::Sha256;

use crate::domain::{Secret, Timestamp};
use crate::ingest::authenticate::{Config, Scheme};

/// Adds the credential or the signature of a webhook to a request with this id and body; `None` if its secret cannot be
/// used.
pub(super) fn authenticate(
    request: RequestBuilder,
    webhook: &Config,
    id: &str,
    body: &str,
    now: Timestamp,
) -> Option<RequestBuilder> {
    let secret = webhook.secrets.first()?;
    Some(match webhook.scheme {
        Scheme::ApiKey => request.header(webhook.header.as_deref().unwrap_or("X-API-Key"), secret.expose()),
        Scheme::Basic => request.basic_auth(webhook.username.as_deref()?, Some(secret.expose())),
        Scheme::Bearer => request.bearer_auth(secret.expose()),
        Scheme::HubSignature => {
            let mac = sign(secret.expose().as_bytes(), &[body])?;
            request.header("X-Hub-Signature-256", format!("sha256={mac}"))
        }
        Scheme::StandardWebhooks => {
            let (time, key) = ((now.as_millis() / 1_000).to_string(), standard_key(secret)?);
            let mac = sign(&key, &[id, ".", &time, ".", body])?;
            let request = request.header("webhook-id", id).header("webhook-timestamp", time);
            request.header("webhook-signature", format!("v1,{mac}"))
        }
    })
}

fn standard_key(secret: &Secret) -> Option<Vec<u8>> {
    let text = secret.expose();
    crate::authorization::LENIENT_BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok()
}

fn sign(key: &[u8], parts: &[&str]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(part.as_bytes());
    }
    Some(STANDARD.encode(mac.finalize().into_bytes()))
}
