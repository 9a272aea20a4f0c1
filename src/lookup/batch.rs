//! Batches: the lookups of one request fetch together.
//!
//! The entries are read with one request where the store can. Then each lookup of a batch takes its own way: it requests its
//! lease, waits for its leader. Of the rest only the request to Genesys is shared. A lookup that must fetch waits, with its
//! lease, until every other lookup of the batch is decided (it is answered, waits for somebody else, or must fetch too), or
//! until none was decided for [`SEND_AFTER`]. Then one request is sent for all of them. So a request is sent after every
//! lease that it serves was granted, as [`rules::lease-is-the-value`](crate::rules#lease-is-the-value) demands, and a slow
//! part of the store delays the others only briefly.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::patience::Patience;
use crate::spans;
use crate::upstream::{Error, FetchTimes, Fetched, Requester};

use super::LookupContext;

/// How long a fetch waits for another decision. What this process lacks processor time for does not count, so that it costs
/// no further request to Genesys.
const SEND_AFTER: Duration = Duration::from_millis(25);

/// The fetches of one batch of lookups.
#[derive(Debug)]
pub(super) struct Batch {
    context: Arc<LookupContext>,
    tenant: TenantId,
    requester: Requester,
    /// The lookups that may still have to fetch.
    undecided: AtomicUsize,
    decided: Notify,
    patience: Patience,
    waiting: Mutex<Vec<WaitingFetch>>,
}

#[derive(Debug)]
struct WaitingFetch {
    customer: CustomerId,
    result: oneshot::Sender<(Result<Fetched, Error>, FetchTimes)>,
}

/// The place of one lookup in its batch. Dropping it reports that the lookup does not fetch.
#[derive(Debug)]
pub(super) struct BatchSeat(Arc<Batch>);

impl Batch {
    /// Creates the seats of a batch, one for each of its lookups.
    pub(super) fn seats(
        context: &Arc<LookupContext>,
        tenant: &TenantId,
        requester: &Requester,
        lookups: usize,
    ) -> impl Iterator<Item = BatchSeat> + use<> {
        let batch = Arc::new(Self {
            context: Arc::clone(context),
            tenant: tenant.clone(),
            requester: requester.clone(),
            undecided: AtomicUsize::new(lookups),
            decided: Notify::new(),
            patience: Patience::new(SEND_AFTER),
            waiting: Mutex::default(),
        });
        (0..lookups).map(move |_| BatchSeat(Arc::clone(&batch)))
    }

    /// Sends one request for the fetches that wait when all lookups are decided.
    async fn send(self: Arc<Self>, deadline: Instant) {
        // If it is too late for the others, they send a request of their own.
        let _ = self.patience.answer(pin!(self.all_decided())).await;
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let (customers, results): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|fetch| (fetch.customer, fetch.result)).unzip();
        let mut times = FetchTimes::default();
        let fetched = FetchTimes::measure(self.fetch(&customers, deadline), &mut times).await;
        for (result, fetched) in results.into_iter().zip(fetched) {
            // Nobody listens if the task of that fetch is gone.
            let _ = result.send((fetched, times));
        }
    }

    async fn fetch(&self, customers: &[CustomerId], deadline: Instant) -> Vec<Result<Fetched, Error>> {
        let upstream = &self.context.deps.upstream;
        match customers {
            [] => Vec::new(),
            [customer] => vec![upstream.fetch(&self.tenant, customer, &self.requester, deadline).await],
            many => match upstream.fetch_many(&self.tenant, many, &self.requester, deadline).await {
                Ok(fetched) => fetched,
                Err(error) => many.iter().map(|_| Err(error.clone())).collect(),
            },
        }
    }

    async fn all_decided(&self) {
        let mut decided = std::pin::pin!(self.decided.notified());
        decided.as_mut().enable();
        if self.undecided.load(Ordering::Acquire) > 0 {
            decided.await;
        }
    }
}

impl BatchSeat {
    /// Fetches a customer together with the other lookups of the batch.
    pub(super) async fn fetch(self, customer: CustomerId, deadline: Instant) -> Result<Fetched, Error> {
        let (result, fetched) = oneshot::channel();
        let is_first = {
            let mut waiting = self.0.waiting.lock();
            waiting.push(WaitingFetch { customer, result });
            waiting.len() == 1
        };
        if is_first {
            let send = Arc::clone(&self.0).send(deadline);
            self.0.context.deps.shutdown.spawn(spans::part(send));
        }
        drop(self);
        // The task ends without a result only when the process ends.
        let (fetched, times) = fetched.await.unwrap_or((Err(Error::Unreachable(None)), FetchTimes::default()));
        times.add_to_task();
        fetched
    }
}

impl Drop for BatchSeat {
    fn drop(&mut self) {
        self.0.patience.answered();
        if self.0.undecided.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.decided.notify_waiters();
        }
    }
}
