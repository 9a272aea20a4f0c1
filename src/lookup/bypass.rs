//! Bypass: lookups that ask Genesys directly, because the store does not answer.
//!
//! Without the entry, a lookup may share a fetch only if its request is sent after the lookup began
//! ([`rules::witness`](crate::rules#witness)). So the lookups of one customer are collected in a batch until the next
//! request is sent. While requests are under way, one is sent per [`BATCH_INTERVAL`]: any number of lookups of one
//! customer costs Genesys at most ten requests a second, and delays each lookup only briefly.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::domain::{CustomerQuery, Key, TenantId, Timestamp};
use crate::spans::{self, Cause};
use crate::upstream::{self, Fetched, Requester, Search};

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
#[derive(Clone, Debug)]
pub(super) struct BypassRequest {
    pub(super) tenant: TenantId,
    pub(super) query: CustomerQuery,
    /// Whose share of the budget the fetch spends: the caller whose lookup started it.
    pub(super) requester: Requester,
    /// The maximum duration of the fetch.
    pub(super) timeout: Duration,
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
    let (outcome, identity) = match fetch.fetched? {
        Fetched::Found(profile) => {
            let identity = profile.canonical.as_ref().map(|customer| context.deps.hasher.identify(&tenant, customer));
            (LookupOutcome::Found(profile.into()), identity)
        }
        Fetched::Absent => (LookupOutcome::Absent, None),
    };
    Ok(LookupAnswer { outcome, how: AnswerSource::Bypass, unsettled: false, identity, since: fetch.since })
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
        while let Some(sender) = self.next_batch() {
            let (context, request) = (Arc::clone(&self.context), request.clone());
            let fetch = async move {
                let deps = &context.deps;
                let since = deps.clock.now();
                let deadline = Instant::now() + request.timeout;
                let (tenant, requester) = (&request.tenant, &request.requester);
                let fetched = match request.query {
                    CustomerQuery::Id(customer) => deps.upstream.fetch(tenant, &customer, requester, deadline).await,
                    CustomerQuery::Identifier(identifier) => {
                        deps.upstream.search(tenant, &Search::Identifier(identifier), requester, deadline).await
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
