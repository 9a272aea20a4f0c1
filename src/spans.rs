//! The spans of a trace: every name and attribute of theirs stands here, once.
//!
//! # What a trace shows
//!
//! | span | parent | attributes |
//! |---|---|---|
//! | `lookup` | the caller's `traceparent` | `request_id`, `tenant`, `caller`, `key`, `result` |
//! | `lead` | the `lookup` that began it | `key`, `cause`: one fetch and fill, for all who wait for it |
//! | `fetch` | `lead`, or a `lookup` of more than is kept | `tenant`, `outcome`, `attempts`: Genesys is told nothing of the trace |
//! | `webhook` | the sender's `traceparent` | `request_id`, `tenant`, `events`, `shape`, `event`, `outcome` |
//! | `publish` | `webhook` | `tenant`, `events`, `event` |
//! | `apply` | `publish`, through the queue; of a replay, a link to it | `tenant`, `event`, `kind`, `keys`, `redelivered`, `verdict` |
//!
//! Keys are digests; nothing else of a customer is an attribute, and no log line becomes a part of a span. A
//! `traceparent` is believed once its sender is: whoever is turned away before that has no trace, only a log line
//! and a count, and so cannot make us record anything.
//!
//! # What it costs
//!
//! The spans have a target of their own, [`TARGET`]. While nothing is exported nobody is interested in it, and making
//! such a span is the test of one atomic number; attributes are not even computed.

use futures_util::future::Either;
use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::field::{Empty, display};
use tracing::{Instrument, Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::domain::{Event, Key, TenantId, Traceparent};
use crate::metrics::{ConsumerOutcome, IngestOutcome, LabelSet, LookupResult, UpstreamOutcome};

/// The target of all spans that belong to a trace, and of nothing else.
pub const TARGET: &str = "trace::profile_edge";

/// The name of the header.
const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    /// The span of the request that the present task works for, where spans are recorded.
    static REQUEST: Span;
}

/// Why a customer is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing, or nothing of use, stood in the store.
    Miss,
    /// A record is near its end.
    Refresh,
    /// A tombstone is old enough to ask whether the customer is there again.
    Verify,
    /// The store does not answer.
    Bypass,
}

impl Cause {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Refresh => "refresh",
            Self::Verify => "verify",
            Self::Bypass => "bypass",
        }
    }
}

/// Tells whether anybody is interested in spans.
#[must_use]
pub fn are_recorded() -> bool {
    tracing::span_enabled!(target: TARGET, Level::INFO)
}

/// Returns the trace context of a request, if it names exactly one that is well-formed.
#[must_use]
pub fn heard(headers: &HeaderMap) -> Option<Traceparent> {
    let mut named = headers.get_all(TRACEPARENT).iter();
    let (value, None) = (named.next()?, named.next()) else { return None };
    value.to_str().ok()?.parse().ok()
}

/// Returns where in its trace a span is, for whatever it causes elsewhere.
#[must_use]
pub fn place(span: &Span) -> Option<Traceparent> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    Traceparent::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.is_sampled())
}

/// A caller's lookup.
#[must_use]
pub fn lookup(headers: &HeaderMap, tenant: &TenantId, caller: &str) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "lookup", otel.kind = "server", otel.status_code = Empty, request_id = Empty,
        %tenant, caller, key = Empty, result = Empty
    );
    of_request(&span, headers);
    span
}

/// How a lookup ended; its key is made only for a span that is recorded.
pub fn looked_up(span: &Span, result: LookupResult, key: impl FnOnce() -> Key) {
    if !span.is_disabled() {
        span.record("key", display(key())).record("result", result.value());
        failed_if(span, result == LookupResult::Error);
    }
}

/// Makes a request's span, which its log lines are in, known to whatever the request begins.
pub fn begin<F: Future>(request: Span, work: F) -> impl Future<Output = F::Output> {
    if are_recorded() {
        Either::Left(REQUEST.scope(request.clone(), work.instrument(request)))
    } else {
        // Then it is the present span of everything.
        Either::Right(work.instrument(request))
    }
}

/// A task that fetches and fills, on behalf of one or many lookups; its log lines name the request that began it.
pub fn lead<F: Future>(key: &Key, cause: Cause, task: F) -> impl Future<Output = F::Output> + use<F> {
    carried(tracing::info_span!(target: TARGET, "lead", %key, cause = cause.as_str()), task)
}

/// A task that is a part of the present one.
pub fn part<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    carried(if are_recorded() { Span::current() } else { Span::none() }, task)
}

/// Log lines do not see the spans of a trace, and so do not find the request behind one: it has to be entered too.
fn carried<F: Future>(span: Span, task: F) -> impl Future<Output = F::Output> + use<F> {
    let request = REQUEST.try_with(Span::clone);
    let request = request.unwrap_or_else(|_| if are_recorded() { Span::none() } else { Span::current() });
    REQUEST.scope(request.clone(), task.instrument(span)).instrument(request)
}

/// A fetch from Genesys.
#[must_use]
pub fn fetch(tenant: &TenantId) -> Span {
    tracing::info_span!(
        target: TARGET, "fetch", otel.kind = "client", otel.status_code = Empty, %tenant, outcome = Empty, attempts = Empty
    )
}

/// How many requests the present fetch took.
pub fn attempted(attempts: usize) {
    if are_recorded() {
        Span::current().record("attempts", attempts);
    }
}

/// How a fetch ended.
pub fn fetched(span: &Span, outcome: UpstreamOutcome) {
    span.record("outcome", outcome.value());
    failed_if(span, !matches!(outcome, UpstreamOutcome::Found | UpstreamOutcome::Absent));
}

/// A request of a source that has proved itself.
#[must_use]
pub fn webhook(headers: &HeaderMap, tenant: &TenantId) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "webhook", otel.kind = "server", otel.status_code = Empty, request_id = Empty,
        %tenant, events = Empty, shape = Empty, event = Empty, outcome = Empty
    );
    of_request(&span, headers);
    span
}

/// What a webhook holds: how many events, and which is the first.
pub fn posted(span: &Span, events: &[Event]) {
    span.record("events", events.len());
    if let Some(first) = events.first() {
        span.record("shape", first.shape.as_str()).record("event", first.id.as_str());
    }
}

/// How a webhook ended.
pub fn accepted(span: &Span, outcome: IngestOutcome) {
    span.record("outcome", outcome.value());
    failed_if(span, outcome == IngestOutcome::Unavailable);
}

/// Making events durable.
#[must_use]
pub fn publish(events: &[Event]) -> Span {
    let first = events.first();
    tracing::info_span!(
        target: TARGET, "publish", otel.kind = "producer", otel.status_code = Empty, events = events.len(),
        tenant = first.map(|event| display(&event.tenant)), event = first.map(|event| display(&event.id))
    )
}

/// Whether events became durable.
pub fn published(span: &Span, is_durable: bool) {
    failed_if(span, !is_durable);
}

/// Applying an event.
#[must_use]
pub fn apply(event: &Event, redelivered: u32) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "apply", otel.kind = "consumer", otel.status_code = Empty, tenant = %event.tenant,
        event = %event.id, kind = event.kind.as_str(), keys = ?event.keys, redelivered, verdict = Empty
    );
    if !span.is_disabled()
        && let Some(cause) = event.traceparent.and_then(remote)
    {
        if event.again.is_some() {
            // What caused it may be days old; its trace is closed.
            span.add_link(cause);
        } else {
            begin_under(&span, cause);
        }
    }
    span
}

/// What applying the present event came to.
pub fn applied(outcome: ConsumerOutcome) {
    if are_recorded() {
        let span = Span::current();
        span.record("verdict", outcome.value());
        failed_if(&span, matches!(outcome, ConsumerOutcome::Retried | ConsumerOutcome::DeadLettered));
    }
}

fn of_request(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    if let Some(cause) = heard(headers).and_then(remote) {
        begin_under(span, cause);
    }
    if let Some(place) = place(span) {
        // The log lines of the request.
        Span::current().record("trace_id", hex::encode(place.trace_id()));
    }
    if let Some(id) = headers.get("x-request-id").and_then(|id| id.to_str().ok()) {
        span.record("request_id", id);
    }
}

fn begin_under(span: &Span, cause: SpanContext) {
    let context = opentelemetry::Context::new().with_remote_span_context(cause);
    // It fails for a span that has begun, which this one has not, or that nobody exports.
    let _ = span.set_parent(context);
}

fn remote(traceparent: Traceparent) -> Option<SpanContext> {
    let flags = if traceparent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (traceparent.trace_id(), traceparent.parent_id());
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

fn failed_if(span: &Span, failed: bool) {
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};
    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    use crate::domain::Redelivery;

    use super::*;

    const CAUSE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Keeps what has ended.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// Returns what is recorded while something is done.
    fn recorded(act: impl FnOnce()) -> Vec<SpanData> {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_span_processor(kept.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_context_activation(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), act);
        std::mem::take(&mut *kept.0.lock())
    }

    fn event(traceparent: Option<&str>) -> Event {
        Event { traceparent: traceparent.map(|text| text.parse().unwrap()), ..Event::example() }
    }

    #[test]
    fn an_event_is_applied_in_the_trace_that_published_it_and_a_replay_is_linked_to_it() {
        let cause: Traceparent = CAUSE.parse().unwrap();
        let spans = recorded(|| {
            drop(apply(&event(Some(CAUSE)), 0));
            let again = Some(Redelivery::Restored);
            drop(apply(&Event { again, ..event(Some(CAUSE)) }, 0));
            drop(apply(&event(None), 0));
        });
        let [applied, replayed, alone] = &spans[..] else { panic!("{spans:?}") };
        let trace = |span: &SpanData| span.span_context.trace_id().to_bytes();
        assert_eq!((trace(applied), applied.parent_span_id.to_bytes()), (cause.trace_id(), cause.parent_id()));
        assert!(applied.parent_span_is_remote && applied.links.is_empty());
        for other in [replayed, alone] {
            assert_ne!(trace(other), cause.trace_id());
            assert_eq!(other.parent_span_id, SpanId::INVALID);
        }
        let [link] = &replayed.links[..] else { panic!("{replayed:?}") };
        assert_eq!(link.span_context.trace_id().to_bytes(), cause.trace_id());
        assert!(alone.links.is_empty());
    }

    #[test]
    fn what_is_published_names_the_span_that_published_it() {
        let mut named = None;
        let spans = recorded(|| named = place(&publish(&[event(None)])));
        let [published] = &spans[..] else { panic!("{spans:?}") };
        let named = named.unwrap();
        assert_eq!(published.span_context.trace_id().to_bytes(), named.trace_id());
        assert_eq!(published.span_context.span_id().to_bytes(), named.parent_id());
    }

    #[test]
    fn without_anybody_interested_there_is_no_place_in_a_trace() {
        assert!(!are_recorded());
        assert_eq!(place(&publish(&[event(None)])), None);
    }

    #[test]
    fn one_well_formed_trace_context_is_heard_and_nothing_else() {
        let of = |values: &[&str]| {
            let header = http::HeaderName::from_static(TRACEPARENT);
            heard(&values.iter().map(|value| (header.clone(), value.parse().unwrap())).collect())
        };
        assert_eq!(of(&[CAUSE]).map(|heard| heard.to_string()).as_deref(), Some(CAUSE));
        for none in [&[][..], &[CAUSE, CAUSE], &["00-1-1-01"], &["é"]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
