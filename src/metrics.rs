//! The metrics catalogue: every name and help text stands here, once, and every label set in `labels`.
//!
//! Labels are closed sets (enums), so a label can never hold a tenant's data, and every series is
//! registered at start: a scrape of a fresh process shows zeros instead of holes. The raw `metrics`
//! macros are banned by lint everywhere else; the rest of the program holds an [`Arc<Metrics>`] and
//! touches pre-registered handles, so counting costs one atomic operation and no look-up.
//!
//! A process shows the metrics of the flows that it runs ([`Metrics::of`]): a zero for something that is not
//! there would look like an outage.
//!
//! Each [`Metrics`] has a registry of its own, so that several applications in one test process do
//! not count into each other.

mod labels;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, NoopRecorder, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::domain::{Kind, Shape};
use crate::roles::Roles;

pub use labels::*;

/// Prefix of every metric of ours; `process_*` come without it.
const PREFIX: &str = "profile_edge_";

/// Bucket bounds of every duration histogram, in seconds: from a hit to an exhausted deadline.
const BUCKETS: [f64; 16] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// One metric per value of a label set.
pub struct Family<L, M> {
    members: Vec<M>,
    labels: std::marker::PhantomData<fn(L)>,
}

impl<L: LabelSet, M> Family<L, M> {
    fn new(make: impl FnMut(L) -> M) -> Self {
        Self { members: L::ALL.iter().copied().map(make).collect(), labels: std::marker::PhantomData }
    }

    /// Returns the metric with this label.
    pub fn with(&self, label: L) -> &M {
        &self.members[label.index()]
    }
}

impl<L, M> fmt::Debug for Family<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({} members)", self.members.len())
    }
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $field:ident: $kind:tt $name:literal $([$($label:literal: $set:ty),+])? = $help:literal;)+) => {
        /// All metrics of one application.
        pub struct Metrics {
            recorder: PrometheusRecorder,
            handle: PrometheusHandle,
            process: metrics_process::Collector,
            $(#[doc = concat!("`profile_edge_", $name, "`: ", $help)] $(#[$doc])* pub $field: catalogue!(@type $kind $($($set),+)?),)+
        }

        impl Metrics {
            fn register(recorder: PrometheusRecorder, roles: Roles) -> Self {
                let handle = recorder.handle();
                let process = metrics_process::Collector::default();
                metrics::with_local_recorder(&recorder, || process.describe());
                let of = |name: &str| -> &dyn Recorder { if is_of(name, roles) { &recorder } else { &NoopRecorder } };
                $($kind::describe(of($name), $name, $help);)+
                $(let $field = catalogue!(@make of $kind $name $([$($label: $set),+])?);)+
                Self { recorder, handle, process, $($field),+ }
            }

            /// The names of all metrics in the catalogue, as they stand in a scrape.
            pub const NAMES: &'static [&'static str] = &[$(concat!("profile_edge_", $name)),+];
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
    (@type $kind:tt $set:ty) => { Family<$set, catalogue!(@type $kind)> };
    (@type $kind:tt $one:ty, $two:ty) => { Family<$one, Family<$two, catalogue!(@type $kind)>> };
    (@make $of:ident $kind:tt $name:literal) => { $kind::register($of($name), $name, Vec::new()) };
    (@make $of:ident $kind:tt $name:literal [$label:literal: $set:ty]) => {
        Family::new(|value: $set| $kind::register($of($name), $name, vec![Label::new($label, value.value())]))
    };
    (@make $of:ident $kind:tt $name:literal [$one:literal: $first:ty, $two:literal: $second:ty]) => {
        Family::new(|a: $first| Family::new(|b: $second| {
            $kind::register($of($name), $name, vec![Label::new($one, a.value()), Label::new($two, b.value())])
        }))
    };
}

catalogue! {
    lookup_requests: counter "lookup_requests_total" ["result": LookupResult] = "Lookups by result.";
    lookup_duration: histogram "lookup_duration_seconds" ["result": LookupResult] = "Time of a lookup, by result.";
    lookup_in_flight: gauge "lookup_in_flight" = "Lookups under way.";
    lookup_throttled: counter "lookup_throttled_total" = "Requests over their caller's rate.";
    upstream_requests: counter "upstream_requests_total" ["outcome": UpstreamOutcome] = "Profile requests to Genesys by outcome, each attempt counted.";
    upstream_duration: histogram "upstream_duration_seconds" = "Time of one profile request to Genesys.";
    upstream_breaker_state: gauge "upstream_breaker_state" = "Worst breaker over all tenants: 0 closed, 1 half-open, 2 open.";
    token_renewals: counter "token_renewals_total" ["outcome": Outcome] = "Renewals of an OAuth token.";
    token_privileges: counter "token_privileges_total" ["outcome": PrivilegeOutcome] = "Judgements of an OAuth token's privileges.";
    ingest_events: counter "ingest_events_total" ["shape": Shape, "outcome": IngestOutcome] = "Posted events by shape and outcome.";
    ingest_duration: histogram "ingest_duration_seconds" = "Time of one webhook request.";
    publish_confirm_duration: histogram "publish_confirm_duration_seconds" = "Time until a published event was durable.";
    outbox_events: gauge "outbox_events" = "Events that wait in the local durable queue.";
    outbox_bytes: gauge "outbox_bytes" = "Size of the events that wait in the local durable queue.";
    queue_events: gauge "queue_events" = "Events that wait in the queue or are being applied.";
    replayed_events: counter "replayed_events_total" = "Events that were published again from the journal.";
    consumer_events: counter "consumer_events_total" ["kind": Kind, "outcome": ConsumerOutcome] = "Delivered events by kind and outcome.";
    consumer_undecodable: counter "consumer_undecodable_total" = "Deliveries that were no event and went to the dead letters.";
    consumer_in_flight: gauge "consumer_in_flight" = "Deliveries being applied.";
    invalidation_lag: histogram "invalidation_lag_seconds" = "Time from an event's acceptance to its effect.";
    store_operations: counter "store_operations_total" ["op": StoreOp, "outcome": Outcome] = "Operations of the store.";
    store_operation_duration: histogram "store_operation_duration_seconds" ["op": StoreOp] = "Time of one operation of the store.";
    store_up: gauge "store_up" = "1 when the store answered last, else 0.";
    queue_up: gauge "queue_up" = "1 when the queue answered last, else 0.";
    seal_failures: counter "seal_failures_total" = "Stored records that did not open, and so were misses.";
    fills: counter "fills_total" ["outcome": FillOutcome] = "Fills by outcome.";
    refreshes: counter "refreshes_total" ["cause": RefreshCause] = "Fetches in the background, by cause.";
    dead_letters: gauge "dead_letters" = "Dead letters kept by the queue.";
    audit_records: counter "audit_records_total" ["outcome": AuditOutcome] = "Audit records by outcome.";
    audit_up: gauge "audit_up" = "1 when the audit's sink takes records, else 0.";
    auth_failures: counter "auth_failures_total" ["door": Door] = "Requests turned away for a missing or wrong credential.";
    connections: gauge "connections" ["listener": Listener] = "Open connections of clients.";
    connections_ended: counter "connections_ended_total" ["listener": Listener, "reason": ConnectionEnd] = "Connections of clients that ended, by reason.";
    config_reloads: counter "config_reloads_total" ["outcome": Outcome] = "Configurations that were read again, by outcome.";
    trace_spans: counter "trace_spans_total" ["outcome": SpanOutcome] = "Recorded spans that the collector took, and those that were dropped.";
    panics: counter "panics_total" = "Requests and tasks that ended in a panic.";
}

impl Metrics {
    /// Registers the whole catalogue in a registry of its own.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::of(Roles::ALL)
    }

    /// Registers the part of the catalogue that these flows use in a registry of its own; what is counted in
    /// the rest is not shown.
    ///
    /// # Panics
    ///
    /// Never: the bucket bounds, the one thing the builder can refuse, are a non-empty constant.
    #[must_use]
    pub fn of(roles: Roles) -> Arc<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
            // The bounds are a non-empty constant, and that is all that is checked.
            .expect("bucket bounds are not empty");
        let metrics = Self::register(builder.build_recorder(), roles);
        gauge::register(
            &metrics.recorder,
            "build_info",
            vec![
                Label::new("version", env!("CARGO_PKG_VERSION")),
                Label::new("commit", option_env!("PROFILE_EDGE_COMMIT").unwrap_or("unknown")),
            ],
        )
        .set(1.0);
        Arc::new(metrics)
    }

    /// Renders everything in the Prometheus text format, with the process' own figures.
    #[must_use]
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Does the registry's housekeeping; to be called every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({} names)", Self::NAMES.len())
    }
}

/// Counts something in progress for as long as the returned guard lives.
#[must_use]
pub fn in_progress(gauge: &Gauge) -> InProgress {
    gauge.increment(1.0);
    InProgress(gauge.clone())
}

/// Lowers a gauge when it is dropped.
#[derive(Debug)]
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Records a duration in seconds.
pub fn observe(histogram: &Histogram, duration: Duration) {
    histogram.record(duration.as_secs_f64());
}

/// Tells whether a metric is of a flow that runs, or of no flow in particular.
fn is_of(name: &str, roles: Roles) -> bool {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if begins(&["lookup_", "upstream_", "token_", "fills_", "refreshes_"]) {
        roles.lookup
    } else if begins(&["ingest_"]) {
        roles.ingest
    } else if begins(&["consumer_", "invalidation_", "replayed_"]) {
        roles.consumer
    } else if begins(&["publish_", "outbox_", "queue_", "dead_letters"]) {
        roles.use_the_queue()
    } else if begins(&["store_", "seal_"]) {
        roles.use_the_store()
    } else {
        true
    }
}

fn metadata() -> Metadata<'static> {
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()))
}

fn key(name: &str, labels: Vec<Label>) -> Key {
    Key::from_parts(format!("{PREFIX}{name}"), labels)
}

macro_rules! instrument {
    ($module:ident: $type:ty, $describe:ident, $register:ident, $unit:expr) => {
        mod $module {
            use super::*;

            pub(super) fn describe(recorder: &dyn Recorder, name: &str, help: &'static str) {
                let name = KeyName::from(format!("{PREFIX}{name}"));
                recorder.$describe(name, $unit, SharedString::const_str(help));
            }

            pub(super) fn register(recorder: &dyn Recorder, name: &str, labels: Vec<Label>) -> $type {
                recorder.$register(&key(name, labels), &metadata())
            }
        }
    };
}

instrument!(counter: Counter, describe_counter, register_counter, None::<Unit>);
instrument!(gauge: Gauge, describe_gauge, register_gauge, None::<Unit>);
instrument!(histogram: Histogram, describe_histogram, register_histogram, None::<Unit>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_scrape_shows_every_counter_at_zero() {
        let text = Metrics::new().render();
        assert!(text.contains("profile_edge_lookup_requests_total{result=\"hit\"} 0"), "{text}");
        assert!(text.contains("profile_edge_ingest_events_total{shape=\"flat\",outcome=\"queued\"} 0"), "{text}");
        assert!(text.contains("profile_edge_build_info{"), "{text}");
        assert!(text.contains("process_"), "{text}");
    }

    #[test]
    fn registries_are_separate() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.panics.increment(1);
        assert!(one.render().contains("profile_edge_panics_total 1"));
        assert!(other.render().contains("profile_edge_panics_total 0"));
    }
}
