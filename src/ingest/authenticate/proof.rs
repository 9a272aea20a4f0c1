//! Requests before and after their authentication.

use std::net::IpAddr;

use http::HeaderMap;

use super::super::shapes::SenderId;

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
