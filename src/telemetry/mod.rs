//! Telemetry: traces to a collector, over OTLP (OpenTelemetry Protocol 1.x, HTTP with protobuf).
//!
//! # What it promises
//!
//! A failure of the collector never affects a request. An ended span goes into a bounded queue; if the queue is full, the
//! span is dropped and counted. One task posts batches from the queue (`exporter`). A batch that is not accepted in time
//! is dropped and counted too. There are no retries, so a recovered collector gets no backlog. The log reports the start
//! and the end of a failure, not each batch.
//!
//! Without `telemetry.endpoint` nothing is exported, and spans cost nothing (see [`crate::spans`]).
//!
//! # Sampling
//!
//! A trace that starts here is recorded with the probability `telemetry.sample_ratio`. A trace from an authenticated
//! caller or source, or from another process of this service, is recorded if it is sampled there.
//!
//! # Shutdown
//!
//! [`Telemetry::close`] posts the queued spans until its deadline, and drops the rest.

mod client;
mod exporter;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;
use crate::metrics::Metrics;
use crate::shutdown::{Controller, Shutdown};
use crate::{spans, tls};

use exporter::{Exporter, SpanQueue};

/// The most spans in the queue.
const QUEUE: usize = 4096;

/// `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The base URL of the collector; without it nothing is exported.
    #[serde(default)]
    pub endpoint: Option<Url>,
    /// The protocol of the collector.
    pub protocol: Protocol,
    /// Headers of every request to the collector.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// The name of this service in traces.
    pub service_name: String,
    /// The ratio of recorded traces, of those that start here: 0 to 1.
    pub sample_ratio: f64,
    /// The timeout of a request to the collector.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `[telemetry.tls]`.
    #[serde(default)]
    pub tls: tls::TlsFiles,
}

/// The protocol of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// OTLP over HTTP with protobuf.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// The metrics for counting spans; set once they are registered.
type SharedMetrics = Arc<OnceLock<Arc<Metrics>>>;

/// A running export of spans.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    task: Controller,
    span_metrics: SharedMetrics,
}

impl Config {
    /// Checks the rules that the types do not express.
    ///
    /// # Errors
    ///
    /// Names the first invalid option.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(InvalidSetting::new("sample_ratio", "must be from 0 to 1"));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(InvalidSetting::new("timeout", "must be above 0s and at most 60s"));
        }
        if self.service_name.is_empty() {
            return Err(InvalidSetting::new("service_name", "must not be empty"));
        }
        self.endpoint.as_ref().map_or(Ok(()), |endpoint| client::traces_url(endpoint).map(drop))?;
        client::headers(&self.headers).map(drop)
    }
}

impl Telemetry {
    /// Starts the export if a collector is configured; the caller adds [`Self::layer`] to the subscriber.
    ///
    /// # Errors
    ///
    /// An option, or a file that it names, cannot be used.
    pub fn open(config: &Config) -> Result<Option<Self>, InvalidSetting> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        config.validate()?;
        let client = client::CollectorClient::new(config, endpoint)?;
        let instance = uuid::Uuid::new_v4().to_string();
        // From our configuration only, not from OTEL_* variables.
        let resource = Resource::builder_empty().with_service_name(config.service_name.clone()).with_attributes([
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("service.instance.id", instance),
        ]);
        let (resource, span_metrics) = (resource.build(), SharedMetrics::default());
        let (ended, waiting) = mpsc::channel(QUEUE);
        let (task, shutdown) = Shutdown::new();
        let exporter = Exporter::new(client, &resource, Arc::clone(&span_metrics));
        shutdown.spawn(exporter.run(waiting, shutdown.clone()));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(SpanQueue::new(ended, Arc::clone(&span_metrics)))
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider, task, span_metrics }))
    }

    /// Returns the layer that records our trace spans, and nothing else.
    pub fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(spans::TARGET, LevelFilter::INFO))
            .boxed()
    }

    /// Sets the metrics that count spans.
    pub fn count_in(&self, metrics: Arc<Metrics>) {
        // Later calls have no effect: a process has one application.
        let _ = self.span_metrics.set(metrics);
    }

    /// Posts the queued spans until a deadline.
    pub async fn close(self, deadline: Instant) {
        self.task.drain(deadline.saturating_duration_since(Instant::now())).await;
    }
}
