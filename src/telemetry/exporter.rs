//! The exporter: a bounded queue of ended spans, and the one task that posts them.

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

use super::Counts;
use super::client::{Client, Refused};

/// How many spans are posted as one.
const BATCH: usize = 512;

/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// Puts spans that have ended into the queue.
#[derive(Debug)]
pub(super) struct Outlet {
    queue: Sender<SpanData>,
    counts: Counts,
}

impl Outlet {
    pub(super) const fn new(queue: Sender<SpanData>, counts: Counts) -> Self {
        Self { queue, counts }
    }
}

impl SpanProcessor for Outlet {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.try_send(span).is_err() {
            count(&self.counts, SpanOutcome::Dropped, 1);
        }
    }

    /// The task does so by itself.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The task is ended by whoever started it.
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Posts spans.
pub(super) struct Exporter {
    client: Client,
    resource: ResourceAttributesWithSchema,
    counts: Counts,
    /// The collector did not take the last batch.
    is_refused: bool,
}

impl Exporter {
    pub(super) fn new(client: Client, resource: &Resource, counts: Counts) -> Self {
        Self { client, resource: resource.into(), counts, is_refused: false }
    }

    /// Posts batch after batch until shutdown, then what waits.
    pub(super) async fn run(mut self, mut queue: Receiver<SpanData>, shutdown: Shutdown) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            gather(&mut queue, &mut batch, &shutdown).await;
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
        count(&self.counts, if outcome.is_ok() { SpanOutcome::Exported } else { SpanOutcome::Dropped }, posted);
        self.tell(outcome);
    }

    /// Logs when refusals begin and when they end.
    fn tell(&mut self, outcome: Result<(), Refused>) {
        match outcome {
            Err(reason) if !self.is_refused => {
                tracing::warn!(%reason, "the collector takes no traces, they are dropped until it does");
            }
            Ok(()) if self.is_refused => tracing::info!("the collector takes traces again"),
            Ok(()) | Err(_) => {}
        }
        self.is_refused = outcome.is_err();
    }
}

/// Takes spans until there is a batch of them or the first has waited long enough; from shutdown on, what is there.
async fn gather(queue: &mut Receiver<SpanData>, batch: &mut Vec<SpanData>, shutdown: &Shutdown) {
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
            taken = queue.recv_many(batch, BATCH - batch.len()) => {
                if taken == 0 {
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

fn count(counts: &Counts, outcome: SpanOutcome, spans: u64) {
    if let Some(metrics) = counts.get() {
        metrics.trace_spans.with(outcome).increment(spans);
    }
}
