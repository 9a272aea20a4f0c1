//! Prefetching: fetches customers before somebody looks them up.
//!
//! For each tenant there is a bounded queue of the customers of conversations, and one of each caller that asks for some: no caller
//! displaces or delays what others wait for. A queue exists only while it holds something, with a task that takes up to `BATCH` customers at a time. It
//! looks them up as a batch of lookups does, under the same leases, but spends only what no lookup needs. While there is
//! no such budget it waits, and gives up a customer after `MAX_WAIT`: by then the lookup has probably come. A full queue
//! refuses customers; nobody waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::domain::{CustomerQuery, TenantId};
use crate::metrics::{Metrics, PrefetchOutcome};
use crate::shares::{FairShares, Share};
use crate::shutdown::Shutdown;
use crate::upstream::{Error, Requester};

use super::{AnswerSource, Lookup, LookupError};

/// The maximum number of customers that are looked up at once.
const BATCH: usize = 100;

/// The maximum number of waiting customers of a tenant: of conversations, and again of all its callers.
const MAX_WAITING: usize = 10_000;

/// How long a customer waits for budget.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The queues of all tenants.
#[derive(Debug)]
pub struct Prefetcher {
    lookup: Lookup,
    tenants: HashMap<TenantId, Arc<TenantQueues>>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

/// The queues of one tenant. Each has a task.
#[derive(Debug)]
struct TenantQueues {
    queues: Mutex<HashMap<Requester, VecDeque<WaitingCustomer>>>,
    /// The places in the queues of callers.
    places: Arc<FairShares>,
}

#[derive(Debug)]
struct WaitingCustomer {
    customer: CustomerQuery,
    until: Instant,
    _place: Option<Share>,
}

/// The task of one queue.
struct PrefetchTask {
    lookup: Lookup,
    tenant: TenantId,
    requester: Requester,
    queues: Arc<TenantQueues>,
    /// The queue was empty and is removed.
    is_over: bool,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl Prefetcher {
    /// Creates the queues of all tenants of a lookup flow.
    #[must_use]
    pub fn new(lookup: &Lookup) -> Self {
        let deps = &lookup.context.deps;
        let queues = |tenant: &TenantId| {
            let queues = TenantQueues { queues: Mutex::default(), places: FairShares::new(MAX_WAITING) };
            (tenant.clone(), Arc::new(queues))
        };
        Self {
            lookup: lookup.clone(),
            tenants: deps.tenants.keys().map(queues).collect(),
            metrics: Arc::clone(&deps.metrics),
            shutdown: deps.shutdown.clone(),
        }
    }

    /// Queues the customer of a conversation that has begun.
    pub fn expect(&self, tenant: &TenantId, customers: impl IntoIterator<Item = CustomerQuery>) {
        self.submit(tenant, &Requester::Background, customers);
    }

    /// Queues customers for a caller; returns how many: its part of the queue may be full, or the tenant not configured.
    pub fn prefetch(
        &self,
        tenant: &TenantId,
        caller: &Arc<str>,
        customers: impl IntoIterator<Item = CustomerQuery>,
    ) -> usize {
        self.submit(tenant, &Requester::Prefetch(Arc::clone(caller)), customers)
    }

    fn submit(
        &self,
        tenant: &TenantId,
        requester: &Requester,
        customers: impl IntoIterator<Item = CustomerQuery>,
    ) -> usize {
        let tenant = self.tenants.get_key_value(tenant).filter(|_| !self.shutdown.is_requested());
        let (until, mut queued) = (Instant::now() + MAX_WAIT, 0);
        for customer in customers {
            if tenant.is_some_and(|(tenant, queues)| self.push(tenant, queues, requester, customer, until)) {
                queued += 1;
            } else {
                self.metrics.prefetches.with(PrefetchOutcome::Dropped).increment(1);
            }
        }
        queued
    }

    /// Adds a customer to its queue, and starts the task of a new queue; returns whether there is room.
    fn push(
        &self,
        tenant: &TenantId,
        queues: &Arc<TenantQueues>,
        requester: &Requester,
        customer: CustomerQuery,
        until: Instant,
    ) -> bool {
        let mut all = queues.queues.lock();
        let waiting = all.get(requester).map_or(0, VecDeque::len);
        let place = match requester {
            Requester::Prefetch(caller) => match queues.places.take(caller, 1) {
                Ok(place) => Some(place),
                Err(_no_share) => return false,
            },
            Requester::Background | Requester::Caller(_) | Requester::Bypass(_) if waiting >= MAX_WAITING => {
                return false;
            }
            Requester::Background | Requester::Caller(_) | Requester::Bypass(_) => None,
        };
        let is_new = !all.contains_key(requester);
        all.entry(requester.clone()).or_default().push_back(WaitingCustomer { customer, until, _place: place });
        drop(all);
        if is_new {
            let task = PrefetchTask {
                lookup: self.lookup.clone(),
                tenant: tenant.clone(),
                requester: requester.clone(),
                queues: Arc::clone(queues),
                is_over: false,
                metrics: Arc::clone(&self.metrics),
                shutdown: self.shutdown.clone(),
            };
            self.shutdown.spawn(task.run());
        }
        true
    }
}

impl PrefetchTask {
    async fn run(mut self) {
        while !self.shutdown.is_requested() {
            let mut batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            while !batch.is_empty() {
                batch = self.fetch(batch).await;
            }
        }
    }

    /// Takes the next customers, or removes the queue if there are none.
    fn next_batch(&mut self) -> Vec<WaitingCustomer> {
        let mut queues = self.queues.queues.lock();
        let queue = queues.get_mut(&self.requester);
        let batch: Vec<_> = queue.into_iter().flat_map(|queue| queue.drain(..queue.len().min(BATCH))).collect();
        if batch.is_empty() {
            queues.remove(&self.requester);
            self.is_over = true;
        }
        batch
    }

    /// Looks customers up once; returns those that the budget did not allow, when it may allow them.
    async fn fetch(&self, batch: Vec<WaitingCustomer>) -> Vec<WaitingCustomer> {
        let customers: Vec<_> = batch.iter().map(|waiting| waiting.customer.clone()).collect();
        let answers = self.lookup.warm(&self.tenant, &customers, &self.requester).await;
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
        if !left.is_empty() && timeout(pause.min(MAX_WAIT), self.shutdown.requested()).await.is_ok() {
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

/// Removes the queue of a task that ends because of a shutdown or a panic.
impl Drop for PrefetchTask {
    fn drop(&mut self) {
        if !self.is_over {
            let left = self.queues.queues.lock().remove(&self.requester);
            left.into_iter().flatten().for_each(|_| self.count(PrefetchOutcome::Dropped));
        }
    }
}
