//! What the outbox and its relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::Timestamp;
use crate::queue::embedded::Embedded;
use crate::queue::shards::Shards;
use crate::queue::{Error, Publisher};

use super::lanes::Lanes;

/// The value of [`Shared::oldest`] for an empty log.
const NONE: i64 = i64::MAX;

/// What the outbox and its relay share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) broker: Arc<dyn Publisher>,
    pub(super) log: Arc<Embedded>,
    pub(super) shards: Shards,
    pub(super) lanes: Lanes,
    /// Ends the relay.
    pub(super) closing: CancellationToken,
    /// Wakes the relay when somebody is in a hurry.
    pub(super) hurried: Notify,
    hurries: AtomicUsize,
    /// When the oldest event was received, in milliseconds.
    oldest: AtomicI64,
}

impl Shared {
    pub(super) fn new(broker: Arc<dyn Publisher>, log: Arc<Embedded>, shards: Shards) -> Self {
        let lanes = Lanes::new(shards.count(), log.size().events);
        let (closing, hurried) = (CancellationToken::new(), Notify::new());
        let (hurries, oldest) = (AtomicUsize::new(0), AtomicI64::new(NONE));
        Self { broker, log, shards, lanes, closing, hurried, hurries, oldest }
    }

    /// Notes that the broker did not take events, and logs it once.
    pub(super) fn broker_failed(&self, shards: &[usize], error: &Error) {
        if self.lanes.failed(shards) {
            tracing::warn!(%error, "the broker does not take events, the outbox keeps them");
        }
    }

    /// Lets the relay hand events on without its rate limit, until the returned guard is dropped.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.hurries.fetch_add(1, Ordering::AcqRel);
        self.hurried.notify_one();
        Hurry(self)
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurries.load(Ordering::Acquire) > 0
    }

    pub(super) fn set_oldest(&self, oldest: Option<Timestamp>) {
        self.oldest.store(oldest.map_or(NONE, Timestamp::as_millis), Ordering::Release);
    }

    /// Returns when the oldest event in the log was received, if the relay has found any.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        Some(self.oldest.load(Ordering::Acquire)).filter(|oldest| *oldest != NONE).map(Timestamp::from_millis)
    }
}

/// Somebody waits for an empty log.
#[must_use = "the rate limit holds again when this is dropped"]
pub(super) struct Hurry<'a>(&'a Shared);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurries.fetch_sub(1, Ordering::AcqRel);
    }
}
