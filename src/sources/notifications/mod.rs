//! Notifications of Genesys over WebSockets: each process watches the customers whose profiles it fetches.
//!
//! # The steps
//!
//! 1. A fetched customer is added to the [`watches`] and to a *lane*: a channel with its socket and its task ([`lane`]).
//! 2. The task opens the socket first and subscribes then. From the answer on, the customer is watched; a profile that is
//!    fetched later is kept for its whole TTL. The first one, fetched before, is kept for `lookup.unwatched_ttl`
//!    (`src/lookup/watch.rs`).
//! 3. What arrives goes to ingest ([`reader`]), and so through the queue to the consumer of any process.
//! 4. Before a channel or its token ends, and when Genesys is about to close a socket, the lane opens another channel. The
//!    old socket is read until a few seconds after the new one has taken over.
//!
//! # When something fails
//!
//! What happens while no socket is open is lost at Genesys. So when a socket ends, all customers of its lane are unwatched
//! at once, and an event of our own about each is published, at a limited rate. When the lane receives again, the changes
//! in the gap are searched in the audits of Genesys ([`catch_up`]). A process that crashes takes no promise
//! with it, because each process trusts only what it watches itself; after its next start it searches the changes since the
//! oldest record that can be served unwatched was fetched. `/readyz`, the metrics and the log report the gaps.

mod catch_up;
mod gaps;
mod lane;
mod live;
mod reader;
mod status;
mod watches;

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::domain::{CustomerId, Key, TenantId, Timestamp};
use crate::ingest::Ingest;
use crate::lookup::Watch;
use crate::metrics::Metrics;
use crate::operate::replay::Replays;
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;
use crate::upstream::notifications::Notifications;

use super::TenantSource;
use gaps::Gaps;
use lane::Lane;
use reader::End;
use status::Status;
use watches::{Contact, Watches};

/// The part of the tenant's requests that channels may take.
const BUDGET_PART: u32 = 10;

/// The fewest requests per minute, for tenants with a small budget.
const FEWEST: NonZeroU32 = NonZeroU32::new(6).expect("it is not zero");

/// How many events about missed changes are published at once, and per second.
const MISSED_AT_ONCE: usize = 50;

/// The notifications of one tenant.
#[derive(Debug)]
pub(super) struct Watcher {
    tenant: TenantId,
    api: Notifications,
    ingest: Arc<Ingest>,
    watches: Watches,
    status: Status,
    gaps: Gaps,
    /// Searches the changes in gaps.
    replays: Arc<Replays>,
    /// Records the searches.
    audit: Audit,
    /// The customers whose changes may have been missed. They are known, so their number is bounded.
    missed: Mutex<HashSet<CustomerId>>,
    has_missed: Notify,
    pace: DefaultDirectRateLimiter,
    /// One lane at a time replaces its channel, because Genesys limits their number.
    replacing: tokio::sync::Mutex<()>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl Watcher {
    /// Creates the watcher and starts its tasks.
    pub(super) fn start(
        source: TenantSource<'_>,
        ingest: Arc<Ingest>,
        (replays, audit): (Arc<Replays>, Audit),
        clock: SharedClock,
        metrics: &Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        let lanes = source.config.channels;
        let per_minute = NonZeroU32::new(source.requests_per_minute / BUDGET_PART).unwrap_or(FEWEST).max(FEWEST);
        let [up, watched, gap] = [&metrics.source_up, &metrics.source_watched, &metrics.source_gap]
            .map(|family| metrics.of_tenant(family, &source.tenant));
        // A process before this one may have missed changes. What it fetched longer ago is not served any more.
        let missed_before = clock.now().minus(source.unwatched_ttl);
        let watcher = Arc::new(Self {
            tenant: source.tenant,
            api: source.notifications,
            ingest,
            watches: Watches::new(lanes),
            status: Status::new(up, watched, gap),
            gaps: Gaps::default(),
            replays,
            audit,
            missed: Mutex::default(),
            has_missed: Notify::new(),
            pace: RateLimiter::direct(Quota::per_minute(per_minute)),
            replacing: tokio::sync::Mutex::default(),
            clock,
            metrics: Arc::clone(metrics),
            shutdown: shutdown.clone(),
        });
        for lane in 0..lanes {
            let missed_before = (lane == 0).then_some(missed_before);
            shutdown.spawn(Lane::new(Arc::clone(&watcher), lane, missed_before).run());
        }
        shutdown.spawn(Arc::clone(&watcher).announce_missed());
        shutdown.spawn(Arc::clone(&watcher).catch_up());
        watcher
    }

    /// Updates the gauges; returns since when changes are missed and why, or what is still to be done about those that were.
    pub(super) fn refresh(&self) -> Option<String> {
        let gap = self.gaps.oldest().map_or(Duration::ZERO, |since| self.clock.now().since(since));
        let trouble = self.status.refresh(self.watches.watched(), gap);
        trouble.or_else(|| self.gaps.report(self.missed.lock().len()))
    }

    /// Unwatches all contacts of a lane whose socket has ended, and has an event published about each that was watched.
    fn lose(&self, lane: usize, end: End) {
        let End { reason, heard } = end;
        let mut contacts = self.watches.of(lane);
        // The others are not trusted, or their event is due already.
        contacts.retain(|contact| contact.since().is_some());
        contacts.iter().for_each(|contact| contact.unwatched());
        self.status.fails(lane, reason, self.clock.now());
        self.gaps.opened(lane, heard);
        self.lost(lane, &contacts, reason);
    }

    /// Has an event published about each contact of a lane, and says why.
    fn lost(&self, lane: usize, contacts: &[Arc<Contact>], reason: &str) {
        self.missed(contacts);
        let contacts = contacts.len();
        tracing::warn!(tenant = %self.tenant, lane, contacts, reason, "changes of contacts may be missed, each is invalidated");
    }

    /// Takes note that changes of these contacts may have been missed.
    fn missed(&self, contacts: &[Arc<Contact>]) {
        self.missed.lock().extend(contacts.iter().map(|contact| contact.customer.clone()));
        self.has_missed.notify_one();
    }

    /// Publishes an event about each contact whose changes may have been missed, until shutdown.
    async fn announce_missed(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        while !self.shutdown.is_requested() {
            // They are taken out first: one that is missed again meanwhile needs another event.
            let some = self.take_missed();
            if some.is_empty() {
                tokio::select! {
                    () = self.has_missed.notified() => {}
                    () = self.shutdown.requested() => return,
                }
            } else if self.ingest.announce_missed(&self.tenant, &some).await.is_ok() {
                backoff.reset();
                self.wait(Duration::from_secs(1)).await;
            } else {
                self.missed.lock().extend(some);
                backoff.pause(&self.shutdown).await;
            }
        }
    }

    fn take_missed(&self) -> Vec<CustomerId> {
        let mut missed = self.missed.lock();
        let some: Vec<_> = missed.iter().take(MISSED_AT_ONCE).cloned().collect();
        for customer in &some {
            missed.remove(customer);
        }
        some
    }

    /// Waits until another request for channels may be sent.
    async fn turn(&self) {
        while let Err(not_yet) = self.pace.check() {
            sleep(not_yet.wait_time_from(DefaultClock::default().now())).await;
        }
    }

    /// Waits for this time, or until shutdown.
    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.shutdown.requested() => {}
        }
    }
}

impl Watch for Watcher {
    fn since(&self, key: &Key) -> Option<Timestamp> {
        self.watches.since(key)
    }

    fn fetched(&self, key: Key, customer: &CustomerId) {
        // The topics of Genesys have the ids of contacts, which are UUIDs.
        if customer.is_uuid() {
            self.watches.add(key, customer);
        }
    }
}
