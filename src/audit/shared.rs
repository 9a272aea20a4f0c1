//! How the sink is, as the writer and those who hand in records see it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{AuditOutcome, Metrics};

use super::record::{Dropped, Record};

/// How long one write may take before the sink is taken for stalled: a write into a pipe that nobody reads does not
/// end.
const STALLED_AFTER: Duration = Duration::from_millis(400);

/// What the writer and those who hand in records share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) metrics: Arc<Metrics>,
    born: Instant,
    /// Milliseconds since `born`, plus one, when the present write began; 0: none is under way.
    writing_since: AtomicU64,
    failing: AtomicBool,
    /// Records were dropped that no record tells of yet.
    dropping: AtomicBool,
    closing: AtomicBool,
    lookups: AtomicU64,
    events: AtomicU64,
    others: AtomicU64,
}

impl Shared {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            born: Instant::now(),
            writing_since: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            dropping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            lookups: AtomicU64::new(0),
            events: AtomicU64::new(0),
            others: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that a write begins or has ended.
    pub(super) fn busy(&self, busy: bool) {
        self.writing_since.store(if busy { self.now() + 1 } else { 0 }, Ordering::Release);
    }

    /// Notes whether the sink took what it was given; a change is logged.
    pub(super) fn works(&self, failure: Option<&io::Error>) {
        let was_failing = self.failing.swap(failure.is_some(), Ordering::AcqRel);
        match (was_failing, failure) {
            (false, Some(error)) => tracing::error!(%error, "audit records cannot be written, trying again"),
            (true, None) => tracing::info!("audit records can be written again"),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Tells whether the sink takes records, as far as is known.
    pub(super) fn is_working(&self) -> bool {
        let since = self.writing_since.load(Ordering::Acquire);
        let stalled = since > 0 && self.now().saturating_sub(since - 1) >= STALLED_AFTER.as_millis() as u64;
        !stalled && !self.failing.load(Ordering::Acquire) && !self.dropping.load(Ordering::Acquire)
    }

    /// Counts a record for which there was no room; the first is logged.
    pub(super) fn drop_one(&self, record: &Record) {
        let count = match record {
            Record::Lookup(_) => &self.lookups,
            Record::Event(_) => &self.events,
            Record::Webhook(_) | Record::Operator(_) => &self.others,
        };
        count.fetch_add(1, Ordering::AcqRel);
        self.metrics.audit_records.with(AuditOutcome::Dropped).increment(1);
        if !self.dropping.swap(true, Ordering::AcqRel) {
            tracing::error!("audit records are dropped: the sink does not take them");
        }
    }

    /// Counts something that was refused because it could not be recorded.
    pub(super) fn refuse_one(&self) {
        self.metrics.audit_records.with(AuditOutcome::Refused).increment(1);
    }

    /// Takes how many records were dropped, to be recorded.
    pub(super) fn take_dropped(&self) -> Dropped {
        if !self.dropping.swap(false, Ordering::AcqRel) {
            return Dropped::default();
        }
        let take = |count: &AtomicU64| count.swap(0, Ordering::AcqRel);
        Dropped { lookups: take(&self.lookups), events: take(&self.events), others: take(&self.others) }
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
