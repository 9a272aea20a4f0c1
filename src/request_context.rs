//! The request that a task works for: every log line of the task names it.
//!
//! It is not a span of the log, because nearly all requests log nothing: creating, entering and closing a span took a
//! tenth of the CPU time of a hit, and this takes almost none.

use std::cell::OnceCell;

use http::HeaderValue;

tokio::task_local! {
    static CURRENT: Option<RequestContext>;
}

/// A request.
#[derive(Clone, Debug)]
pub struct RequestContext {
    id: HeaderValue,
    trace_id: OnceCell<String>,
}

impl RequestContext {
    /// Creates the context of a request with this id.
    #[must_use]
    pub const fn new(id: HeaderValue) -> Self {
        Self { id, trace_id: OnceCell::new() }
    }

    /// Runs the work of the request.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Some(self), work)
    }

    /// Returns the names and values that the log lines of the request have.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let id = self.id.to_str().ok().map(|id| ("request_id", id));
        id.into_iter().chain(self.trace_id.get().map(|id| ("trace_id", id.as_str())))
    }
}

/// Calls `see` with the request of the current task; returns `None` if it works for none.
pub fn with_current<T>(see: impl FnOnce(&RequestContext) -> T) -> Option<T> {
    CURRENT.try_with(|request| request.as_ref().map(see)).ok().flatten()
}

/// Notes the trace of the current request.
pub fn set_trace_id(id: String) {
    // A request is part of one trace: the first one stays.
    with_current(|request| drop(request.trace_id.set(id)));
}

/// Wraps a task that works for the current request, if there is one.
pub fn continued<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(with_current(RequestContext::clone), task)
}
