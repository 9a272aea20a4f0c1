//! Bypass: lookups that ask Genesys directly, because the store does not answer.
//!
//! Without the entry, a lookup may share a fetch only if its request is sent after the lookup began
//! ([`rules::witness`](crate::rules#witness)). So the lookups of one customer are collected in a batch until the next
//! request is sent. While requests are under way, one is sent per [`BATCH_INTERVAL`]: any number of lookups of one
//! customer costs Genesys at most ten requests a second, and delays each lookup only briefly. All of them together may
//! spend half of the tenant's budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::domain::{CustomerQuery, Key, TenantId, Timestamp};
use crate::spans::{self, Cause};
use crate::upstream::{self, Fetched, Requester, Search};

use super::batch::BatchSeat;
use super::{AnswerSource, LookupAnswer, LookupContext, LookupError, LookupOutcome};

/// How long a batch collects lookups while a fetch of their customer is under way.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The result of a fetch, and when its request was sent.
#[derive(Clone, Debug)]
struct BypassFetch {
    fetched: Result<Fetched, upstream::Error>,
    since: Timestamp,
}

/// What to fetch.
#[derive(Debug)]
pub(super) struct BypassRequest {
    pub(super) tenant: TenantId,
    pub(super) query: CustomerQuery,
    /// Whose share of the budget the fetch spends: the caller whose lookup started it.
    pub(super) requester: Requester,
    /// The maximum duration of the fetch.
    pub(super) timeout: Duration,
    /// The place in a batch of lookups that fetch together.
    pub(super) seat: Option<BatchSeat>,
}

/// Receives the result for the lookups of one batch.
type BatchReceiver = watch::Receiver<Option<BypassFetch>>;

/// The customers that are fetched without the store, each with the batch whose request has not been sent yet.
#[derive(Debug, Default)]
pub(super) struct Bypasses {
    batches: Mutex<HashMap<Key, Option<PendingBatch>>>,
}

#[derive(Debug)]
struct PendingBatch {
    sender: watch::Sender<Option<BypassFetch>>,
    receiver: BatchReceiver,
}

/// Answers with what Genesys knows, fetched together with the other lookups of the batch, until `deadline`.
pub(super) async fn fetch(
    context: &Arc<LookupContext>,
    key: &Key,
    request: BypassRequest,
    deadline: Instant,
) -> Result<LookupAnswer, LookupError> {
    let tenant = request.tenant.clone();
    let mut batch = join(context, key, request);
    let fetch = match timeout_at(deadline, batch.wait_for(Option::is_some)).await {
        Ok(Ok(fetch)) => fetch.clone().ok_or(LookupError::Deadline)?,
        // The task ends without a result only when the process ends.
        Ok(Err(_closed)) => return Err(LookupError::Draining),
        Err(_elapsed) => return Err(LookupError::Deadline),
    };
    if matches!(fetch.fetched, Err(upstream::Error::BudgetSpent { .. })) {
        context.deps.metrics.lookup_bypass_refused.increment(1);
    }
    let (outcome, identity) = match fetch.fetched? {
        Fetched::Found(profile) => {
            let identity = profile.canonical.as_ref().map(|customer| context.deps.hasher.identify(&tenant, customer));
            (LookupOutcome::Found(profile.into()), identity)
        }
        Fetched::Absent => (LookupOutcome::Absent, None),
    };
    Ok(LookupAnswer {
        outcome,
        how: AnswerSource::Bypass,
        unsettled: false,
        unwatched: false,
        identity,
        since: fetch.since,
    })
}

fn join(context: &Arc<LookupContext>, key: &Key, request: BypassRequest) -> BatchReceiver {
    let mut batches = context.bypasses.batches.lock();
    if let Some(Some(batch)) = batches.get(key) {
        return batch.receiver.clone();
    }
    let (sender, receiver) = watch::channel(None);
    let batch = PendingBatch { sender, receiver: receiver.clone() };
    if batches.insert(key.clone(), Some(batch)).is_none() {
        let task = BypassTask { context: Arc::clone(context), key: key.clone() };
        context.deps.shutdown.spawn(spans::lead(key, Cause::Bypass, task.run(request)));
    }
    receiver
}

/// Sends the requests for one customer, batch after batch, until no lookup is waiting.
struct BypassTask {
    context: Arc<LookupContext>,
    key: Key,
}

impl BypassTask {
    async fn run(self, request: BypassRequest) {
        let BypassRequest { tenant, query, requester, timeout: longest, mut seat } = request;
        while let Some(sender) = self.next_batch() {
            let context = Arc::clone(&self.context);
            let (tenant, query, requester) = (tenant.clone(), query.clone(), requester.clone());
            // Only the first request is that of the batch; later lookups did not wait for it.
            let seat = seat.take();
            let fetch = async move {
                let deps = &context.deps;
                let since = deps.clock.now();
                let deadline = Instant::now() + longest;
                let fetched = match (query, seat) {
                    (CustomerQuery::Id(customer), Some(seat)) => seat.fetch(customer, deadline).await,
                    (CustomerQuery::Id(customer), None) => {
                        deps.upstream.fetch(&tenant, &customer, &requester, deadline).await
                    }
                    (CustomerQuery::Identifier(identifier), _) => {
                        let search = Search::Identifier(identifier);
                        deps.upstream.search(&tenant, &search, &requester, deadline).await
                    }
                };
                sender.send_replace(Some(BypassFetch { fetched, since }));
            };
            let fetch = self.context.deps.shutdown.spawn(spans::part(fetch));
            // The next batch is due, also if this fetch has not ended.
            let _ = timeout(BATCH_INTERVAL, fetch).await;
        }
    }

    /// Takes the pending batch. Lookups that begin from now on join the next one.
    fn next_batch(&self) -> Option<watch::Sender<Option<BypassFetch>>> {
        let mut batches = self.context.bypasses.batches.lock();
        let pending = batches.get_mut(&self.key).and_then(Option::take);
        if pending.is_none() {
            batches.remove(&self.key);
        }
        pending.map(|batch| batch.sender)
    }
}
