//! Prefetching: fetches customers before somebody looks them up.
//!
//! Each tenant has a bounded queue and a task that takes up to `BATCH` customers at a time. It looks them up as a batch of
//! lookups does, under the same leases, but as [`Requester::Background`](crate::upstream::Requester::Background): it spends only what no lookup needs. While there is
//! no such budget it waits, and gives up a customer after `MAX_WAIT`: by then the lookup has probably come. A full queue
//! refuses customers; nobody waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::domain::{CustomerQuery, TenantId};
use crate::metrics::{Metrics, PrefetchOutcome};
use crate::shutdown::Shutdown;
use crate::upstream::Error;

use super::{AnswerSource, Lookup, LookupError};

/// The maximum number of customers that are looked up at once.
const BATCH: usize = 100;

/// The maximum number of waiting customers of a tenant.
const MAX_WAITING: usize = 10_000;

/// How long a customer waits for budget.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The queues of all tenants.
#[derive(Debug)]
pub struct Prefetcher {
    queues: HashMap<TenantId, mpsc::Sender<WaitingCustomer>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct WaitingCustomer {
    customer: CustomerQuery,
    until: Instant,
}

/// The task of one tenant.
struct PrefetchTask {
    lookup: Lookup,
    tenant: TenantId,
    queue: mpsc::Receiver<WaitingCustomer>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl Prefetcher {
    /// Starts the tasks of all tenants of a lookup flow.
    #[must_use]
    pub fn start(lookup: &Lookup) -> Self {
        let deps = &lookup.context.deps;
        let (metrics, shutdown) = (Arc::clone(&deps.metrics), deps.shutdown.clone());
        let start = |tenant: &TenantId| {
            let (sender, queue) = mpsc::channel(MAX_WAITING);
            let task = PrefetchTask {
                lookup: lookup.clone(),
                tenant: tenant.clone(),
                queue,
                metrics: Arc::clone(&metrics),
                shutdown: shutdown.clone(),
            };
            shutdown.spawn(task.run());
            (tenant.clone(), sender)
        };
        Self { queues: deps.tenants.keys().map(start).collect(), metrics: Arc::clone(&metrics) }
    }

    /// Queues customers of a tenant; returns how many: the queue may be full, or the tenant not configured.
    pub fn submit(&self, tenant: &TenantId, customers: impl IntoIterator<Item = CustomerQuery>) -> usize {
        let (until, mut queued) = (Instant::now() + MAX_WAIT, 0);
        for customer in customers {
            let waiting = WaitingCustomer { customer, until };
            match self.queues.get(tenant).map(|queue| queue.try_send(waiting)) {
                Some(Ok(())) => queued += 1,
                Some(Err(_)) | None => self.metrics.prefetches.with(PrefetchOutcome::Dropped).increment(1),
            }
        }
        queued
    }
}

impl PrefetchTask {
    async fn run(mut self) {
        loop {
            let mut batch = Vec::new();
            let taken = tokio::select! {
                biased;
                () = self.shutdown.requested() => 0,
                taken = self.queue.recv_many(&mut batch, BATCH) => taken,
            };
            if taken == 0 {
                break;
            }
            while !batch.is_empty() {
                batch = self.fetch(batch).await;
            }
        }
        self.queue.close();
        while self.queue.try_recv().is_ok() {
            self.count(PrefetchOutcome::Dropped);
        }
    }

    /// Looks customers up once; returns those that the budget did not allow, when it may allow them.
    async fn fetch(&self, batch: Vec<WaitingCustomer>) -> Vec<WaitingCustomer> {
        let customers: Vec<_> = batch.iter().map(|waiting| waiting.customer.clone()).collect();
        let answers = self.lookup.warm(&self.tenant, &customers).await;
        let (mut left, mut pause) = (Vec::new(), Duration::ZERO);
        for (waiting, answer) in batch.into_iter().zip(answers) {
            match answer {
                Err(LookupError::Upstream(Error::BudgetSpent { retry_after })) => {
                    pause = pause.max(retry_after);
                    left.push(waiting);
                }
                Err(_) => self.count(PrefetchOutcome::Failed),
                Ok(answer) if matches!(answer.how, AnswerSource::Fetched { .. } | AnswerSource::Bypass) => {
                    self.count(PrefetchOutcome::Fetched);
                }
                Ok(_) => self.count(PrefetchOutcome::Present),
            }
        }
        if !left.is_empty() && timeout(pause, self.shutdown.requested()).await.is_ok() {
            left.drain(..).for_each(|_| self.count(PrefetchOutcome::Dropped));
        }
        let now = Instant::now();
        left.retain(|waiting| {
            let is_in_time = waiting.until > now;
            if !is_in_time {
                self.count(PrefetchOutcome::Expired);
            }
            is_in_time
        });
        left
    }

    fn count(&self, outcome: PrefetchOutcome) {
        self.metrics.prefetches.with(outcome).increment(1);
    }
}
