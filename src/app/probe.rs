//! The probe: checks every dependency about once a second, for readiness and for the gauges.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::audit::Audit;
use crate::consumer::foreign::ForeignConsumers;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::shutdown::Shutdown;
use crate::sources::Sources;
use crate::{logging, queue, store, upstream};

/// How often dependencies are probed and gauges refreshed.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Checks the dependencies.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) refused: upstream::tenants::TenantHealth,
    pub(super) sources: Sources,
    pub(super) readiness: Arc<Readiness>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Audit,
    pub(super) store: Arc<dyn store::Inspect>,
    pub(super) queue: Option<Arc<dyn queue::Queue>>,
    pub(super) outbox: Option<Arc<queue::outbox::Outbox>>,
    pub(super) foreign: ForeignConsumers,
}

impl Probe {
    /// Checks at an interval, until shutdown.
    pub(super) async fn run(self, shutdown: Shutdown) {
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                _ = ticks.tick() => self.check().await,
            }
        }
    }

    /// Checks once.
    pub(super) async fn check(&self) {
        let answer = self.store.ping().await;
        let usable = matches!(answer, Ok(()) | Err(store::Error::Partial { .. } | store::Error::Slow { .. }));
        self.readiness.store(answer.map_err(|error| error.to_string()), usable, &self.metrics);
        if let Some(queue) = &self.queue {
            let answer = queue::metered::refresh(queue.as_ref(), &self.metrics).await;
            self.readiness.queue(answer.map_err(|error| error.to_string()), &self.metrics);
        }
        self.readiness.foreign_consumers(self.foreign.count());
        if let Some(outbox) = &self.outbox {
            let status = outbox.refresh(&self.metrics).await;
            self.readiness.outbox(status.refusal, status.events, status.oldest_age);
        }
        self.readiness.audit(self.audit.is_working(), &self.metrics);
        let refusals = self.refused.refusals().into_iter();
        self.readiness.upstreams(refusals.map(|(tenant, reason)| (tenant.to_string(), reason.to_string())));
        let missing = self.sources.refresh().into_iter();
        self.readiness.sources(missing.map(|(tenant, reason)| (tenant.to_string(), reason)));
        self.metrics.log_lines_dropped.absolute(logging::dropped_lines());
        self.metrics.upkeep();
    }
}
