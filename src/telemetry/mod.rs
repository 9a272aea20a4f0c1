//! Telemetry: traces to a collector, over OTLP (OpenTelemetry Protocol 1.x, HTTP with protobuf).
//!
//! # What it promises
//!
//! Nothing that happens to the collector happens to a request. A span that has ended is put into a bounded queue; with
//! no place in it the span is dropped and counted. One task takes batches out of it and posts them (`exporter`): a
//! batch that is not taken in time is dropped and counted too, never sent again, so that a collector which comes back
//! is not met with the past. The log says when it begins and when it ends, not for each batch.
//!
//! Without `telemetry.endpoint` none of this is there, and spans cost nothing (see [`crate::spans`]).
//!
//! # Sampling
//!
//! A trace that begins here is recorded with the probability `telemetry.sample_ratio`; one that an authenticated caller
//! or source has begun, or another process of ours, is recorded if it was there.
//!
//! # The end
//!
//! [`Telemetry::close`] posts what waits, until its deadline; what is left then is dropped.

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

use exporter::{Exporter, Outlet};

/// How many spans may wait to be posted.
const QUEUE: usize = 4096;

/// `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The collector's base URL; absent: nothing is exported.
    #[serde(default)]
    pub endpoint: Option<Url>,
    /// How the collector is spoken to.
    pub protocol: Protocol,
    /// Headers of every request to it.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// What this service is called in traces.
    pub service_name: String,
    /// The share of traces, begun here, that is recorded: 0 to 1.
    pub sample_ratio: f64,
    /// How long the collector may take to answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// `[telemetry.tls]`.
    #[serde(default)]
    pub tls: tls::Files,
}

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// OTLP over HTTP, in protobuf.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// Where spans are counted, once the metrics are there.
type Counts = Arc<OnceLock<Arc<Metrics>>>;

/// The export of spans, under way.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    task: Controller,
    counts: Counts,
}

impl Config {
    /// Checks what no type can.
    ///
    /// # Errors
    ///
    /// Names the first option that cannot work.
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
    /// Starts exporting, if a collector is configured; its layer is to be added to the subscriber.
    ///
    /// # Errors
    ///
    /// An option, or a file that one names, cannot be used.
    pub fn open(config: &Config) -> Result<Option<Self>, InvalidSetting> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        config.validate()?;
        let client = client::Client::new(config, endpoint)?;
        let instance = uuid::Uuid::new_v4().to_string();
        // Of our own configuration only: the environment is not asked.
        let resource = Resource::builder_empty().with_service_name(config.service_name.clone()).with_attributes([
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("service.instance.id", instance),
        ]);
        let (resource, counts) = (resource.build(), Counts::default());
        let (ended, waiting) = mpsc::channel(QUEUE);
        let (task, shutdown) = Shutdown::new();
        let exporter = Exporter::new(client, &resource, Arc::clone(&counts));
        shutdown.spawn(exporter.run(waiting, shutdown.clone()));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Outlet::new(ended, Arc::clone(&counts)))
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource)
            .build();
        Ok(Some(Self { provider, task, counts }))
    }

    /// Returns the layer that makes our spans parts of traces; it sees nothing else.
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

    /// Says where spans are to be counted.
    pub fn count_in(&self, metrics: Arc<Metrics>) {
        // Only the first counts: there is one application in a process.
        let _ = self.counts.set(metrics);
    }

    /// Posts what waits, until a deadline.
    pub async fn close(self, deadline: Instant) {
        self.task.drain(deadline.saturating_duration_since(Instant::now())).await;
    }
}
