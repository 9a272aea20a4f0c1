//! The exporter: a bounded queue of ended spans, and one task that posts them.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep_until};

use crate::metrics::SpanOutcome;
use crate::shutdown::Shutdown;

use super::SharedMetrics;
use super::client::{CollectorClient, PostError};

/// The most spans in one batch.
const BATCH: usize = 512;

/// How long the first span of a batch waits for more.
const LINGER: Duration = Duration::from_secs(1);

/// Puts ended spans into the queue.
#[derive(Debug)]
pub(super) struct SpanQueue {
    queue: Sender<SpanData>,
    metrics: SharedMetrics,
}

impl SpanQueue {
    pub(super) const fn new(queue: Sender<SpanData>, metrics: SharedMetrics) -> Self {
        Self { queue, metrics }
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.try_send(span).is_err() {
            count(&self.metrics, SpanOutcome::Dropped, 1);
        }
    }

    /// Does nothing: the task posts by itself.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// Does nothing: [`super::Telemetry::close`] stops the task.
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Posts spans.
pub(super) struct Exporter {
    client: CollectorClient,
    resource: ResourceAttributesWithSchema,
    metrics: SharedMetrics,
    /// The collector rejected the last batch.
    is_failing: bool,
}

impl Exporter {
    pub(super) fn new(client: CollectorClient, resource: &Resource, metrics: SharedMetrics) -> Self {
        Self { client, resource: resource.into(), metrics, is_failing: false }
    }

    /// Posts batches until shutdown, then the remaining spans.
    pub(super) async fn run(mut self, mut queue: Receiver<SpanData>, shutdown: Shutdown) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            collect_batch(&mut queue, &mut batch, &shutdown).await;
            if batch.is_empty() {
                return;
            }
            self.post(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).await;
        }
    }

    async fn post(&mut self, spans: Vec<SpanData>) {
        let posted = spans.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let outcome = self.client.post(body).await;
        count(&self.metrics, if outcome.is_ok() { SpanOutcome::Exported } else { SpanOutcome::Dropped }, posted);
        self.log_change(outcome);
    }

    /// Logs the first failure and the first success after it.
    fn log_change(&mut self, outcome: Result<(), PostError>) {
        match outcome {
            Err(reason) if !self.is_failing => {
                tracing::warn!(%reason, "the collector does not accept traces, dropping them until it does");
            }
            Ok(()) if self.is_failing => tracing::info!("the collector accepts traces again"),
            Ok(()) | Err(_) => {}
        }
        self.is_failing = outcome.is_err();
    }
}

/// Collects spans until the batch is full or the first span has waited long enough; after shutdown, only queued spans.
async fn collect_batch(queue: &mut Receiver<SpanData>, batch: &mut Vec<SpanData>, shutdown: &Shutdown) {
    let mut until = None;
    while batch.len() < BATCH && !shutdown.is_requested() {
        let due = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.requested() => {}
            () = due => return,
            received = queue.recv_many(batch, BATCH - batch.len()) => {
                if received == 0 {
                    return;
                }
                until = until.or_else(|| Some(Instant::now() + LINGER));
            }
        }
    }
    while batch.len() < BATCH
        && let Ok(span) = queue.try_recv()
    {
        batch.push(span);
    }
}

fn count(metrics: &SharedMetrics, outcome: SpanOutcome, spans: u64) {
    if let Some(metrics) = metrics.get() {
        metrics.trace_spans.with(outcome).increment(spans);
    }
}
