//! A body that holds something until its end: a permit, or a note that it is under way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::HttpBody;
use hyper::body::{Frame, SizeHint};

/// A body with something that is dropped when all of it has passed, or with it.
#[derive(Debug)]
pub(super) struct Held<B, G> {
    body: B,
    held: Option<G>,
}

impl<B, G> Held<B, G> {
    pub(super) const fn new(body: B, held: Option<G>) -> Self {
        Self { body, held }
    }
}

impl<B: HttpBody + Unpin, G: Unpin> HttpBody for Held<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.held = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
