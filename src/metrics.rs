//! The metrics catalogue: the only place for metric names and help texts; the label sets are in `labels`.
//!
//! Labels are closed sets (enums), so a label can never contain data of a tenant. Every series is registered at start, so
//! the first scrape shows zeros instead of gaps. A lint bans the raw `metrics` macros; other modules hold an
//! [`Arc<Metrics>`] with registered handles, so counting costs one atomic operation and no search.
//!
//! A process exports only the metrics of its own flows ([`Metrics::of`]): a zero of a flow that does not run would look
//! like an outage.
//!
//! Each [`Metrics`] has its own registry, so that several applications in one test process count separately.

mod labels;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, NoopRecorder, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::domain::{Kind, Shape, TenantId};
use crate::roles::Roles;

pub use labels::*;

/// The prefix of every metric, except the standard `process_*` metrics.
const PREFIX: &str = "profile_edge_";

/// Bucket bounds of every duration histogram, in seconds: from a cache hit to an exceeded deadline.
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

/// One gauge for each tenant that has such a thing; see [`Metrics::of_tenant`].
#[derive(Debug)]
pub struct ByTenant(&'static str);

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
                let recorder_of = |name: &str| -> &dyn Recorder { if is_of(name, roles) { &recorder } else { &NoopRecorder } };
                $($kind::describe(recorder_of($name), $name, $help);)+
                $(let $field = catalogue!(@make recorder_of $kind $name $([$($label: $set),+])?);)+
                Self { recorder, handle, process, $($field),+ }
            }

            /// The names of all metrics in the catalogue, as in a scrape.
            pub const NAMES: &'static [&'static str] = &[$(concat!("profile_edge_", $name)),+];
        }
    };
    (@type counter) => { Counter };
    (@type gauge) => { Gauge };
    (@type histogram) => { Histogram };
    (@type by_tenant) => { ByTenant };
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
    lookup_duration: histogram "lookup_duration_seconds" ["result": LookupResult] = "Duration of a lookup, by result.";
    lookup_in_flight: gauge "lookup_in_flight" = "Lookups in progress.";
    change_streams: gauge "change_streams" = "Open streams of changes.";
    lookup_shed: counter "lookup_shed_total" = "Lookups refused at once because the store answers too slowly for their number.";
    lookup_bypass_refused: counter "lookup_bypass_refused_total" = "Lookups refused because the store does not answer and fetches past it have spent their half of the budget.";
    identifier_pointers: counter "identifier_pointers_total" ["outcome": PointerOutcome] = "Pointers from phone numbers, e-mail addresses and external ids to customers, by what lookups made of them.";
    lookup_throttled: counter "lookup_throttled_total" = "Requests refused because the caller exceeded its rate.";
    upstream_requests: counter "upstream_requests_total" ["outcome": UpstreamOutcome] = "Profile requests to Genesys by outcome; each attempt counts.";
    upstream_duration: histogram "upstream_duration_seconds" = "Duration of one profile request to Genesys.";
    upstream_breaker_state: gauge "upstream_breaker_state" = "Worst circuit breaker of all tenants: 0 closed, 1 half-open, 2 open.";
    token_renewals: counter "token_renewals_total" ["outcome": Outcome] = "Renewals of OAuth tokens by outcome.";
    token_privileges: counter "token_privileges_total" ["outcome": PrivilegeOutcome] = "Checks of the privileges of OAuth tokens by outcome.";
    agent_verifications: counter "agent_verifications_total" ["outcome": AgentOutcome] = "Verifications of agents' own Genesys tokens at Genesys by outcome.";
    ingest_events: counter "ingest_events_total" ["shape": Shape, "outcome": IngestOutcome] = "Posted events by shape and outcome.";
    ingest_doubts: counter "ingest_doubts_total" ["reason": IngestDoubt] = "Posted events of which a part was not believed, by reason; they evict all the same.";
    ingest_duration: histogram "ingest_duration_seconds" = "Duration of one webhook request.";
    publish_confirm_duration: histogram "publish_confirm_duration_seconds" = "Time until a published event is durable.";
    outbox_events: gauge "outbox_events" = "Events in the local durable queue.";
    outbox_bytes: gauge "outbox_bytes" = "Size of the events in the local durable queue.";
    outbox_max_bytes: gauge "outbox_max_bytes" = "Limit of the events in the outbox, in bytes; 0 without an outbox.";
    outbox_oldest: gauge "outbox_oldest_seconds" = "Time since the oldest event in the local durable queue was received; 0 if there is none.";
    queue_events: gauge "queue_events" = "Events in the queue, waiting or in progress.";
    replayed_events: counter "replayed_events_total" = "Events republished from the journal, or published from the audits of Genesys.";
    replay_queries: counter "replay_queries_total" ["outcome": Outcome] = "Queries of replays about the audits of Genesys by outcome.";
    consumer_events: counter "consumer_events_total" ["kind": Kind, "outcome": ConsumerOutcome] = "Delivered events by kind and outcome.";
    consumer_undecodable: counter "consumer_undecodable_total" = "Deliveries that could not be decoded and were dead-lettered.";
    consumer_in_flight: gauge "consumer_in_flight" = "Deliveries in progress.";
    foreign_consumers: gauge "consumer_foreign" = "Other processes that take events from our work queues and apply them to another store.";
    invalidation_lag: histogram "invalidation_lag_seconds" = "Time from the acceptance of an event to its effect.";
    store_operations: counter "store_operations_total" ["op": StoreOp, "outcome": Outcome] = "Store operations by outcome.";
    store_operation_duration: histogram "store_operation_duration_seconds" ["op": StoreOp] = "Duration of one store operation.";
    source_up: by_tenant "source_up" = "1 while the changes of watched customers are received, else 0, by tenant.";
    source_watched: by_tenant "source_watched" = "Customers whose changes are received as notifications, by tenant.";
    source_gap: by_tenant "source_gap_seconds" = "Time since the start of the oldest gap in the notifications whose changes are not found yet; 0 if there is none, by tenant.";
    source_catch_ups: counter "source_catch_ups_total" ["outcome": CatchUpOutcome] = "Searches of the audits of Genesys for changes that were missed in a gap, by outcome.";
    store_up: gauge "store_up" = "1 if the store answered the last probe, else 0.";
    queue_up: gauge "queue_up" = "1 if the queue answered the last probe, else 0.";
    seal_failures: counter "seal_failures_total" = "Stored records and tombstones that could not be opened and counted as misses.";
    fills: counter "fills_total" ["outcome": FillOutcome] = "Fills by outcome.";
    refreshes: counter "refreshes_total" ["cause": RefreshCause] = "Background fetches by cause.";
    prefetches: counter "prefetches_total" ["outcome": PrefetchOutcome] = "Customers to be fetched ahead of time, by outcome.";
    dead_letters: gauge "dead_letters" = "Dead letters in the queue.";
    audit_records: counter "audit_records_total" ["outcome": AuditOutcome] = "Audit records by outcome.";
    audit_up: gauge "audit_up" = "1 if the audit sink accepts records, else 0.";
    auth_failures: counter "auth_failures_total" ["door": AuthEndpoint] = "Requests refused because of a missing or wrong credential.";
    connections: gauge "connections" ["listener": Listener] = "Open client connections.";
    connections_ended: counter "connections_ended_total" ["listener": Listener, "reason": ConnectionEnd] = "Ended client connections by reason.";
    config_reloads: counter "config_reloads_total" ["outcome": Outcome] = "Configuration reloads by outcome.";
    trace_spans: counter "trace_spans_total" ["outcome": SpanOutcome] = "Recorded spans by outcome: exported or dropped.";
    log_lines_dropped: counter "log_lines_dropped_total" = "Log lines dropped because standard error did not accept them.";
    panics: counter "panics_total" = "Requests and tasks that panicked.";
}

impl Metrics {
    /// Registers the whole catalogue in a registry of its own.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::of(Roles::ALL)
    }

    /// Registers the metrics of these flows in a registry of its own; counts of other metrics are not exported.
    ///
    /// # Panics
    ///
    /// Never: the builder can refuse only empty bucket bounds, and the bounds are a constant.
    #[must_use]
    pub fn of(roles: Roles) -> Arc<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
            // The builder checks only that the bounds are not empty.
            .expect("bucket bounds are not empty");
        let metrics = Self::register(builder.build_recorder(), roles);
        gauge::describe(
            &metrics.recorder,
            "build_info",
            "Always 1; the labels are the version and commit of the program.",
        );
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

    /// Renders all metrics in the Prometheus text format, with the `process_*` metrics.
    #[must_use]
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Returns the gauge of a tenant. Tenants are named by the configuration, so their number is bounded.
    pub fn of_tenant(&self, family: &ByTenant, tenant: &TenantId) -> Gauge {
        gauge::register(&self.recorder, family.0, vec![Label::new("tenant", tenant.to_string())])
    }

    /// Runs the maintenance of the registry; the caller must call it every few seconds.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({} names)", Self::NAMES.len())
    }
}

/// Increments a gauge until the returned guard is dropped.
#[must_use]
pub fn in_progress(gauge: &Gauge) -> InProgress {
    gauge.increment(1.0);
    InProgress(gauge.clone())
}

/// Decrements its gauge when dropped.
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

/// Returns whether a metric belongs to one of these flows, or to no flow in particular.
fn is_of(name: &str, roles: Roles) -> bool {
    let has_prefix = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if has_prefix(&["agent_", "lookup_", "identifier_", "upstream_", "token_", "fills_", "refreshes_", "prefetches_"]) {
        roles.lookup
    } else if has_prefix(&["ingest_"]) {
        roles.ingest
    } else if has_prefix(&["consumer_", "invalidation_"]) {
        roles.consumer
    } else if has_prefix(&["source_"]) {
        roles.ingest && roles.lookup
    } else if has_prefix(&["publish_", "outbox_", "queue_", "dead_letters", "replay"]) {
        roles.use_the_queue()
    } else if has_prefix(&["store_", "seal_"]) {
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

mod by_tenant {
    use super::*;

    pub(super) use super::gauge::describe;

    pub(super) fn register(_: &dyn Recorder, name: &'static str, _: Vec<Label>) -> ByTenant {
        ByTenant(name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_first_scrape_shows_every_counter_at_zero() {
        let text = Metrics::new().render();
        assert!(text.contains("profile_edge_lookup_requests_total{result=\"hit\"} 0"), "{text}");
        assert!(text.contains("profile_edge_ingest_events_total{shape=\"flat\",outcome=\"queued\"} 0"), "{text}");
        assert!(text.contains("profile_edge_build_info{"), "{text}");
        assert!(text.contains("process_"), "{text}");
    }

    /// `promtool check metrics` refuses a family without help.
    #[test]
    fn every_metric_family_has_help_and_type() {
        let text = Metrics::new().render();
        let families = |keyword: &str| -> BTreeSet<&str> {
            text.lines().filter_map(|line| line.strip_prefix(keyword)?.split(' ').next()).collect()
        };
        let (help, types) = (families("# HELP "), families("# TYPE "));
        assert_eq!(help, types);
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            assert!(types.contains(name) || parts.is_some_and(|family| types.contains(family)), "{line}");
        }
    }

    #[test]
    fn registries_are_separate() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.panics.increment(1);
        assert!(one.render().contains("profile_edge_panics_total 1"));
        assert!(other.render().contains("profile_edge_panics_total 0"));
    }
}
