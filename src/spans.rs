//! The spans of traces: the only place for their names and attributes.
//!
//! # What a trace shows
//!
//! | span | parent | attributes |
//! |---|---|---|
//! | `lookup` | the caller's `traceparent` | `request_id`, `tenant`, `caller`, `key`, `result` |
//! | `lead` | the `lookup` that started it | `key`, `cause`: one fetch and fill, for all waiting lookups |
//! | `fetch` | `lead`, or a `lookup` that bypasses the store | `tenant`, `outcome`, `attempts`: requests to Genesys carry no trace context |
//! | `webhook` | the sender's `traceparent` | `request_id`, `tenant`, `events`, `shape`, `event`, `outcome` |
//! | `publish` | `webhook` | `tenant`, `events`, `event` |
//! | `apply` | `publish`, through the queue; a replay has a link to it instead | `tenant`, `event`, `kind`, `keys`, `redelivered`, `verdict` |
//!
//! Keys are digests; no other customer data is an attribute, and spans contain no log lines. A `traceparent` is used only
//! after its sender is authenticated: a refused request gets a log line and a count but no trace, so it cannot make the
//! service record anything.
//!
//! # What it costs
//!
//! The spans have their own target, [`TARGET`]. Without an export no subscriber enables it, and creating a span is the
//! check of one atomic number; attributes are not computed.

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::field::{Empty, display};
use tracing::{Instrument, Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::domain::{Event, Key, TenantId, Traceparent};
use crate::metrics::{ConsumerOutcome, IngestOutcome, LabelSet, LookupResult, UpstreamOutcome};
use crate::request_context;

/// The target of all trace spans, and of nothing else.
pub const TARGET: &str = "trace::profile_edge";

/// The name of the header.
const TRACEPARENT: &str = "traceparent";

/// Why a customer is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The store has no usable entry.
    Miss,
    /// The record is close to its expiry.
    Refresh,
    /// A tombstone is old enough to check whether the customer exists again.
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

/// Returns whether spans are recorded.
#[must_use]
pub fn are_recorded() -> bool {
    tracing::span_enabled!(target: TARGET, Level::INFO)
}

/// Returns the trace context of a request, if it has exactly one that is well-formed.
#[must_use]
pub fn received_context(headers: &HeaderMap) -> Option<Traceparent> {
    let mut named = headers.get_all(TRACEPARENT).iter();
    let (value, None) = (named.next()?, named.next()) else { return None };
    value.to_str().ok()?.parse().ok()
}

/// Returns the trace context of a span, to pass to other processes.
#[must_use]
pub fn context_of(span: &Span) -> Option<Traceparent> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    Traceparent::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.is_sampled())
}

/// Creates the span of a lookup.
#[must_use]
pub fn lookup(headers: &HeaderMap, tenant: &TenantId, caller: &str) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "lookup", otel.kind = "server", otel.status_code = Empty, request_id = Empty,
        %tenant, caller, key = Empty, result = Empty
    );
    of_request(&span, headers, Some(headers));
    span
}

/// Records the result of a lookup; `key` is called only if the span is recorded.
pub fn looked_up(span: &Span, result: LookupResult, key: impl FnOnce() -> Option<Key>) {
    if !span.is_disabled() {
        if let Some(key) = key() {
            span.record("key", display(key));
        }
        span.record("result", result.value());
        failed_if(span, result == LookupResult::Error);
    }
}

/// Wraps a task that fetches and fills for one or more lookups; its log lines name the request that started it.
pub fn lead<F: Future>(key: &Key, cause: Cause, task: F) -> impl Future<Output = F::Output> + use<F> {
    let span = tracing::info_span!(target: TARGET, "lead", %key, cause = cause.as_str());
    request_context::continued(task.instrument(span))
}

/// Wraps a task that is part of the current one.
pub fn part<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    request_context::continued(task.in_current_span())
}

/// Creates the span of a fetch from Genesys.
#[must_use]
pub fn fetch(tenant: &TenantId) -> Span {
    tracing::info_span!(
        target: TARGET, "fetch", otel.kind = "client", otel.status_code = Empty, %tenant, outcome = Empty, attempts = Empty
    )
}

/// Records the number of requests of the current fetch.
pub fn attempted(attempts: usize) {
    if are_recorded() {
        Span::current().record("attempts", attempts);
    }
}

/// Records the outcome of a fetch.
pub fn fetched(span: &Span, outcome: UpstreamOutcome) {
    span.record("outcome", outcome.value());
    failed_if(span, !matches!(outcome, UpstreamOutcome::Found | UpstreamOutcome::Absent));
}

/// Creates the span of a webhook request from an authenticated source. It continues the trace of the sender only if the
/// proof of the sender covers the headers.
#[must_use]
pub fn webhook(headers: &HeaderMap, proven: Option<&HeaderMap>, tenant: &TenantId) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "webhook", otel.kind = "server", otel.status_code = Empty, request_id = Empty,
        %tenant, events = Empty, shape = Empty, event = Empty, outcome = Empty
    );
    of_request(&span, headers, proven);
    span
}

/// Records the number of events of a webhook request, and the first one.
pub fn posted(span: &Span, events: &[Event]) {
    span.record("events", events.len());
    if let Some(first) = events.first() {
        span.record("shape", first.shape.as_str()).record("event", first.id.as_str());
    }
}

/// Records the outcome of a webhook request.
pub fn accepted(span: &Span, outcome: IngestOutcome) {
    span.record("outcome", outcome.value());
    failed_if(span, outcome == IngestOutcome::Unavailable);
}

/// Creates the span of a publish.
#[must_use]
pub fn publish(events: &[Event]) -> Span {
    let first = events.first();
    tracing::info_span!(
        target: TARGET, "publish", otel.kind = "producer", otel.status_code = Empty, events = events.len(),
        tenant = first.map(|event| display(&event.tenant)), event = first.map(|event| display(&event.id))
    )
}

/// Records whether the events became durable.
pub fn published(span: &Span, is_durable: bool) {
    failed_if(span, !is_durable);
}

/// Creates the span of an event that is applied.
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
            // The original trace may be days old and closed.
            span.add_link(cause);
        } else {
            begin_under(&span, cause);
        }
    }
    span
}

/// Records the effect of the current event.
pub fn applied(outcome: ConsumerOutcome) {
    if are_recorded() {
        let span = Span::current();
        span.record("verdict", outcome.value());
        failed_if(&span, matches!(outcome, ConsumerOutcome::Retried | ConsumerOutcome::DeadLettered));
    }
}

fn of_request(span: &Span, headers: &HeaderMap, proven: Option<&HeaderMap>) {
    if span.is_disabled() {
        return;
    }
    if let Some(cause) = proven.and_then(received_context).and_then(remote) {
        begin_under(span, cause);
    }
    if let Some(place) = context_of(span) {
        request_context::set_trace_id(hex::encode(place.trace_id()));
    }
    if let Some(id) = headers.get("x-request-id").and_then(|id| id.to_str().ok()) {
        span.record("request_id", id);
    }
}

fn begin_under(span: &Span, cause: SpanContext) {
    let context = opentelemetry::Context::new().with_remote_span_context(cause);
    // It fails only for a started span, which this one is not, or for a span that is not exported.
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

    /// Collects ended spans.
    #[derive(Clone, Debug, Default)]
    struct SpanCollector(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for SpanCollector {
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

    /// Returns the spans that `act` records.
    fn recorded(act: impl FnOnce()) -> Vec<SpanData> {
        let collector = SpanCollector::default();
        let provider = SdkTracerProvider::builder().with_span_processor(collector.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_context_activation(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), act);
        std::mem::take(&mut *collector.0.lock())
    }

    fn event(traceparent: Option<&str>) -> Event {
        Event { traceparent: traceparent.map(|text| text.parse().unwrap()), ..Event::example() }
    }

    #[test]
    fn apply_continues_the_trace_of_publish_and_a_replay_links_to_it() {
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
    fn a_published_event_carries_the_context_of_its_publish_span() {
        let mut named = None;
        let spans = recorded(|| named = context_of(&publish(&[event(None)])));
        let [published] = &spans[..] else { panic!("{spans:?}") };
        let named = named.unwrap();
        assert_eq!(published.span_context.trace_id().to_bytes(), named.trace_id());
        assert_eq!(published.span_context.span_id().to_bytes(), named.parent_id());
    }

    #[test]
    fn without_recording_a_span_has_no_trace_context() {
        assert!(!are_recorded());
        assert_eq!(context_of(&publish(&[event(None)])), None);
    }

    #[test]
    fn only_a_single_well_formed_trace_context_is_accepted() {
        let of = |values: &[&str]| {
            let header = http::HeaderName::from_static(TRACEPARENT);
            received_context(&values.iter().map(|value| (header.clone(), value.parse().unwrap())).collect())
        };
        assert_eq!(of(&[CAUSE]).map(|heard| heard.to_string()).as_deref(), Some(CAUSE));
        for none in [&[][..], &[CAUSE, CAUSE], &["00-1-1-01"], &["é"]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
