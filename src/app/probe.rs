//! The probe: checks every dependency about once a second, for readiness and for the gauges.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::audit::Audit;
use crate::clock::SharedClock;
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
    pub(super) clock: SharedClock,
    pub(super) audit: Audit,
    pub(super) store: Arc<dyn store::Inspect>,
    pub(super) queue: Option<Arc<dyn queue::Queue>>,
    pub(super) outbox: Option<Arc<queue::outbox::Outbox>>,
    pub(super) foreign: ForeignConsumers,
}

impl Probe {
    /// Checks at an interval, until shutdown. A dependency that is silent delays only what is known of itself.
    pub(super) async fn run(self, shutdown: Shutdown) {
        tokio::join!(
            every(&shutdown, || self.check_store()),
            every(&shutdown, || self.check_queue()),
            every(&shutdown, || self.check_outbox()),
            every(&shutdown, || async { self.check_rest() }),
        );
    }

    /// Checks once.
    pub(super) async fn check(&self) {
        tokio::join!(self.check_store(), self.check_queue(), self.check_outbox());
        self.check_rest();
    }

    async fn check_store(&self) {
        let answer = self.store.ping().await;
        let usable = matches!(answer, Ok(()) | Err(store::Error::Partial { .. } | store::Error::Slow { .. }));
        self.readiness.store(answer.map_err(|error| error.to_string()), usable, &self.metrics);
    }

    async fn check_queue(&self) {
        if let Some(queue) = &self.queue {
            let answer = queue::metered::refresh(queue.as_ref(), &self.metrics, self.clock.now()).await;
            self.readiness.queue(answer.map_err(|error| error.to_string()), &self.metrics);
        }
        self.readiness.foreign_consumers(self.foreign.count());
    }

    async fn check_outbox(&self) {
        if let Some(outbox) = &self.outbox {
            let status = outbox.refresh(&self.metrics).await;
            self.readiness.outbox(status.refusal, status.events, status.oldest_age);
        }
    }

    fn check_rest(&self) {
        self.readiness.audit(self.audit.is_working(), &self.metrics);
        let refusals = self.refused.refusals().into_iter();
        self.readiness.upstreams(refusals.map(|(tenant, reason)| (tenant.to_string(), reason.to_string())));
        let missing = self.sources.refresh().into_iter();
        self.readiness.sources(missing.map(|(tenant, reason)| (tenant.to_string(), reason)));
        self.metrics.log_lines_dropped.absolute(logging::dropped_lines());
        self.metrics.upkeep();
    }
}

/// Calls `check` at an interval, until shutdown.
async fn every<Checked: Future<Output = ()>>(shutdown: &Shutdown, check: impl Fn() -> Checked) {
    let mut ticks = interval(PROBE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            _ = ticks.tick() => check().await,
        }
    }
}
