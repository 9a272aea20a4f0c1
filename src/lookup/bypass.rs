//! Lookups past a store that does not answer.
//!
//! With no view of K a lookup may share a fetch only if its request is sent after the lookup began (DESIGN
//! section 2, rule 2). So lookups of one customer gather until the next request leaves, at most one in
//! [`GATHER`] while others are under way: a crowd costs Genesys ten requests a second and nobody more than a
//! moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::domain::{CustomerId, Key, TenantId, Timestamp};
use crate::spans::{self, Cause};
use crate::upstream::{self, Fetched};

use super::{Failure, LookupContext};

/// How long lookups gather while a fetch of their customer is under way.
const GATHER: Duration = Duration::from_millis(100);

/// What Genesys said, and when it was asked.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    pub(super) fetched: Result<Fetched, upstream::Error>,
    pub(super) since: Timestamp,
}

/// Those who wait for one request.
type Batch = watch::Receiver<Option<Passed>>;

/// The customers that are being asked for past the store, each with the batch whose request has not left.
#[derive(Debug, Default)]
pub(super) struct Bypasses {
    lanes: Mutex<HashMap<Key, Option<Gathering>>>,
}

#[derive(Debug)]
struct Gathering {
    tell: watch::Sender<Option<Passed>>,
    batch: Batch,
}

/// Whom to ask for.
#[derive(Clone, Debug)]
struct Question {
    tenant: TenantId,
    customer: CustomerId,
    /// The longest that the fetch may take.
    patience: Duration,
}

/// Asks Genesys for a customer, together with whoever else does, until `deadline`.
pub(super) async fn ask(
    room: &Arc<LookupContext>,
    key: &Key,
    tenant: &TenantId,
    customer: &CustomerId,
    patience: Duration,
    deadline: Instant,
) -> Result<Passed, Failure> {
    let question = Question { tenant: tenant.clone(), customer: customer.clone(), patience };
    let mut batch = join(room, key, question);
    match timeout_at(deadline, batch.wait_for(Option::is_some)).await {
        Ok(Ok(passed)) => passed.clone().ok_or(Failure::Deadline),
        // The lane ended without an answer, which it does only when the process does.
        Ok(Err(_closed)) => Err(Failure::Draining),
        Err(_elapsed) => Err(Failure::Deadline),
    }
}

fn join(room: &Arc<LookupContext>, key: &Key, question: Question) -> Batch {
    let mut lanes = room.bypasses.lanes.lock();
    if let Some(Some(gathering)) = lanes.get(key) {
        return gathering.batch.clone();
    }
    let (tell, batch) = watch::channel(None);
    let gathering = Gathering { tell, batch: batch.clone() };
    if lanes.insert(key.clone(), Some(gathering)).is_none() {
        let lane = Lane { room: Arc::clone(room), key: key.clone() };
        room.parts.shutdown.spawn(spans::lead(key, Cause::Bypass, lane.run(question)));
    }
    batch
}

/// Sends the requests for one customer, batch after batch, until nobody gathers any more.
struct Lane {
    room: Arc<LookupContext>,
    key: Key,
}

impl Lane {
    async fn run(self, question: Question) {
        while let Some(tell) = self.next() {
            let (room, question) = (Arc::clone(&self.room), question.clone());
            let fetch = async move {
                let since = room.parts.clock.now();
                let deadline = Instant::now() + question.patience;
                let fetched = room.parts.upstream.fetch(&question.tenant, &question.customer, deadline).await;
                tell.send_replace(Some(Passed { fetched, since }));
            };
            let fetch = self.room.parts.shutdown.spawn(spans::part(fetch));
            // Whether it has ended or not: whoever gathered meanwhile is next.
            let _ = timeout(GATHER, fetch).await;
        }
    }

    /// Takes the batch that has gathered; from now on others gather for the next one.
    fn next(&self) -> Option<watch::Sender<Option<Passed>>> {
        let mut lanes = self.room.bypasses.lanes.lock();
        let gathered = lanes.get_mut(&self.key).and_then(Option::take);
        if gathered.is_none() {
            lanes.remove(&self.key);
        }
        gathered.map(|gathering| gathering.tell)
    }
}
