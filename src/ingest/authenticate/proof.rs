//! Requests before and after their authentication.

use std::net::IpAddr;

use http::HeaderMap;
use subtle::Choice;

use crate::domain::Timestamp;

use super::super::shapes::SenderId;
use super::standard::StandardWebhooks;
use super::{Authenticator, Credentials, HUB_SIGNATURE, hub_signature, only};

/// A request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedRequest<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The raw body.
    pub body: &'a [u8],
    /// The address of the peer of the connection.
    pub peer: Option<IpAddr>,
}

/// An authenticated request: only the parts that its proof covers.
#[derive(Clone, Debug)]
pub struct Proof<'a> {
    /// The raw body, which every proof covers.
    pub body: &'a [u8],
    /// The headers, if a credential vouches for the sender. A signature covers none of them, except its own.
    pub headers: Option<&'a HeaderMap>,
    /// The `webhook-id`, if a signature covers it.
    pub message_id: Option<SenderId>,
}

impl Proof<'_> {
    /// Returns whether anybody who recorded the request could send it again at any time: it is signed, without a time.
    #[must_use]
    pub const fn is_repeatable(&self) -> bool {
        self.headers.is_none() && self.message_id.is_none()
    }
}

/// What the headers of a request prove, without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderProof {
    /// No scheme accepts the request, whatever its body is.
    Refused,
    /// A scheme may accept the request, once its body is read.
    NeedsBody,
    /// The headers have a valid credential.
    Proven,
}

/// Checks the headers and the peer of a request with all schemes of a tenant; its body is ignored.
#[must_use]
pub fn header_proof(authenticators: &[Authenticator], request: &ReceivedRequest<'_>, now: Timestamp) -> HeaderProof {
    let (mut proven, mut may_sign) = (Choice::from(0), false);
    for authenticator in authenticators {
        let headers = request.headers;
        let signed = match &authenticator.credentials {
            Credentials::ApiKey { .. } | Credentials::Basic(_) | Credentials::Bearer(_) => {
                proven |= authenticator.accepts(request, now);
                false
            }
            Credentials::HubSignature { .. } => only(headers, &HUB_SIGNATURE).and_then(hub_signature).is_some(),
            Credentials::StandardWebhooks(_) => StandardWebhooks::may_accept(headers, now),
        };
        may_sign |= signed && authenticator.is_from_its_network(request.peer);
    }
    match (bool::from(proven), may_sign) {
        (true, _) => HeaderProof::Proven,
        (false, true) => HeaderProof::NeedsBody,
        (false, false) => HeaderProof::Refused,
    }
}
