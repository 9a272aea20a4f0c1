//! The body of an answer about many customers: texts of this answer, and profiles that it shares with the store and with equal
//! customers of the same answer. Its bytes belong to a caller's share until the client has taken them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::{Frame, SizeHint};

use crate::shares::Share;

/// From this size on a profile is not copied between the texts, in bytes.
const SHARED_FROM: usize = 8 << 10;

/// What the body of an answer is made of.
#[derive(Default)]
pub(in crate::http) struct BatchText {
    parts: VecDeque<Bytes>,
    /// The text after the last part.
    pub(in crate::http) text: Vec<u8>,
}

/// A text that may occur again in the same answer.
#[derive(Default)]
pub(in crate::http) struct ProfileText {
    /// What stands before the profile, or all if there is none.
    pub(in crate::http) before: Vec<u8>,
    /// The profile.
    pub(in crate::http) profile: Bytes,
    /// What stands after it.
    pub(in crate::http) after: &'static [u8],
}

/// The body of a complete answer.
struct BatchBody {
    parts: VecDeque<Bytes>,
    left: u64,
    _share: Share,
}

impl BatchText {
    /// Adds a text.
    pub(in crate::http) fn add(&mut self, text: &ProfileText) {
        self.text.extend_from_slice(&text.before);
        self.add_profile(&text.profile);
        self.text.extend_from_slice(text.after);
    }

    fn add_profile(&mut self, profile: &Bytes) {
        if profile.len() < SHARED_FROM {
            self.text.extend_from_slice(profile);
        } else {
            self.end_text();
            self.parts.push_back(profile.clone());
        }
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.parts.push_back(std::mem::take(&mut self.text).into());
        }
    }

    /// Returns how many bytes this keeps in memory: equal profiles count once.
    pub(in crate::http) fn memory(&mut self) -> usize {
        self.end_text();
        let mut parts: Vec<_> = self.parts.iter().map(|part| (part.as_ptr().addr(), part.len())).collect();
        parts.sort_unstable();
        parts.dedup();
        parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the answer, whose memory belongs to a share.
    pub(in crate::http) fn into_response(mut self, share: Share) -> Response {
        self.end_text();
        let left = self.parts.iter().map(|part| part.len() as u64).sum();
        let mut response = Response::new(Body::new(BatchBody { parts: self.parts, left, _share: share }));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
        response
    }
}

impl HttpBody for BatchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.left -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
