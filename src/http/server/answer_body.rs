//! The body of an answer, and whether its client reads it.
//!
//! A body is asked for its next part only when the client has taken most of the last one. In HTTP/2 the client decides with its
//! flow-control window when that is: with a window of zero it would never end, and no timeout within the body would be
//! noticed. So large parts are divided, each part that is handed over is noted, and what waits for the client is ended from
//! outside: a stream of HTTP/2 by its own task ([`ReadWatch::abandoned`]), a connection by its
//! [state](super::connection_state).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::connection_state::RequestGuard;

/// The largest part that is handed over at once: what a client that reads nothing keeps in memory, for each stream.
const MAX_PART: usize = 16 << 10;

tokio::task_local! {
    /// The watch of the HTTP/2 stream that the task serves.
    static WATCH: Arc<ReadWatch>;
}

/// Since when a part of an answer waits for the client.
#[derive(Debug, Default)]
pub(super) struct ReadWatch(Mutex<Option<Instant>>);

/// An answer's body. Its guard is dropped at its end or together with it.
pub(super) struct AnswerBody {
    body: Body,
    /// What was taken from the body and not handed over.
    rest: Bytes,
    guard: Option<RequestGuard>,
    watch: Option<Arc<ReadWatch>>,
}

impl ReadWatch {
    /// Runs a task that serves an HTTP/2 stream until it ends, or until its client has read nothing for `timeout`: then the
    /// task is dropped, which resets the stream.
    pub(super) async fn watch(task: impl Future, timeout: Duration) {
        let watch = Arc::new(Self::default());
        let task = WATCH.scope(Arc::clone(&watch), task);
        tokio::select! {
            biased;
            _ = task => {}
            () = watch.abandoned(timeout) => tracing::debug!("a client does not read its answer, resetting the stream"),
        }
    }

    /// Waits until a part has waited for `timeout`. It is not woken by the parts, so that they cost nothing: it checks at
    /// least once in `timeout`.
    async fn abandoned(&self, timeout: Duration) {
        loop {
            let (since, now) = (*self.0.lock(), Instant::now());
            let until = since.unwrap_or(now) + timeout;
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl AnswerBody {
    pub(super) fn new(body: Body, guard: RequestGuard) -> Self {
        Self { body, rest: Bytes::new(), guard: Some(guard), watch: WATCH.try_with(Arc::clone).ok() }
    }

    /// Notes that the client has taken what was handed over, or that a part is handed over.
    fn note(&mut self, is_handed_over: bool) {
        if let Some(guard) = &mut self.guard {
            guard.unread(is_handed_over);
        }
        if let Some(watch) = &self.watch {
            *watch.0.lock() = is_handed_over.then(Instant::now);
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.note(false);
        let mut data = std::mem::take(&mut self.rest);
        if data.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(next))) => data = next,
                // Trailers, of which no answer has any, a failure or the end.
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => {
                    self.guard = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.guard = None;
                    return Poll::Ready(None);
                }
            }
        }
        self.rest = data.split_off(data.len().min(MAX_PART));
        if self.is_end_stream() {
            self.guard = None;
        }
        self.note(true);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
