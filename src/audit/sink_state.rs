//! The state of the sink, which the writer and the senders of records share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{AuditOutcome, Metrics};

use super::record::AuditRecord;

/// How long one write may take before the sink counts as stalled: a write into a pipe without a reader never ends.
const STALLED_AFTER: Duration = Duration::from_millis(400);

/// The state that the writer and the senders of records share.
#[derive(Debug)]
pub(super) struct SinkState {
    pub(super) metrics: Arc<Metrics>,
    created: Instant,
    /// Milliseconds from `created` to the start of the current write, plus one; 0 while there is no write.
    writing_since: AtomicU64,
    failing: AtomicBool,
    /// Records were dropped, and no record reports them yet.
    dropping: AtomicBool,
    closing: AtomicBool,
    lookups: AtomicU64,
    events: AtomicU64,
    others: AtomicU64,
}

/// The number of dropped records, by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DroppedRecords {
    pub(super) lookups: u64,
    pub(super) events: u64,
    pub(super) others: u64,
}

impl DroppedRecords {
    pub(super) const fn total(self) -> u64 {
        self.lookups + self.events + self.others
    }
}

impl SinkState {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            created: Instant::now(),
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
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Marks the start or the end of a write.
    pub(super) fn set_writing(&self, writing: bool) {
        self.writing_since.store(if writing { self.now() + 1 } else { 0 }, Ordering::Release);
    }

    /// Stores whether the last write failed, and logs a change.
    pub(super) fn set_failure(&self, failure: Option<&io::Error>) {
        let was_failing = self.failing.swap(failure.is_some(), Ordering::AcqRel);
        match (was_failing, failure) {
            (false, Some(error)) => tracing::error!(%error, "audit records cannot be written, retrying"),
            (true, None) => tracing::info!("audit records can be written again"),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Returns whether the sink accepts records, as far as is known.
    pub(super) fn is_working(&self) -> bool {
        let since = self.writing_since.load(Ordering::Acquire);
        let stalled = since > 0 && self.now().saturating_sub(since - 1) >= STALLED_AFTER.as_millis() as u64;
        !stalled && !self.failing.load(Ordering::Acquire) && !self.dropping.load(Ordering::Acquire)
    }

    /// Counts a record that the full channel rejected; logs the first one.
    pub(super) fn drop_one(&self, record: &AuditRecord) {
        let count = match record {
            AuditRecord::Lookup(_) => &self.lookups,
            AuditRecord::Event(_) => &self.events,
            AuditRecord::Token(_) | AuditRecord::Webhook(_) | AuditRecord::Operator(_) => &self.others,
        };
        count.fetch_add(1, Ordering::AcqRel);
        self.metrics.audit_records.with(AuditOutcome::Dropped).increment(1);
        if !self.dropping.swap(true, Ordering::AcqRel) {
            tracing::error!("audit records are dropped: the sink does not accept them");
        }
    }

    /// Counts an action that was refused because it could not be recorded.
    pub(super) fn refuse_one(&self) {
        self.metrics.audit_records.with(AuditOutcome::Refused).increment(1);
    }

    /// Returns and resets the number of dropped records.
    pub(super) fn take_dropped(&self) -> DroppedRecords {
        if !self.dropping.swap(false, Ordering::AcqRel) {
            return DroppedRecords::default();
        }
        let take = |count: &AtomicU64| count.swap(0, Ordering::AcqRel);
        DroppedRecords { lookups: take(&self.lookups), events: take(&self.events), others: take(&self.others) }
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
