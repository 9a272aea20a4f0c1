//! The writer: one thread that owns the chain and the sink.
//!
//! It takes a bounded batch of waiting records, writes it at once, syncs as `audit.fsync` says, and confirms it to the
//! waiting callers: many records share one write and one fsync. While no caller waits, it delays a batch for some
//! milliseconds, so that lookups cost few writes and few wake-ups.
//!
//! # When the sink fails
//!
//! The writer keeps its batch and writes it, in order, when the sink works again: records in the batch are lost only
//! with the process. Meanwhile it takes no more records. When the channel is full, senders drop their records, or in
//! strict mode refuse the action. Afterwards the first record reports how many were dropped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::metrics::AuditOutcome;

use super::chain::Chain;
use super::config::Fsync;
use super::recent_events::RecentEvents;
use super::record::AuditRecord;
use super::refusals::Refusals;
use super::sink_state::SinkState;
use super::sinks::Sink;
use super::system_record::{ProcessEvent, SystemRecord};

/// The most records in one write.
const BATCH: usize = 1_024;

/// How long records without a waiting caller may be collected.
const LINGER: Duration = Duration::from_millis(5);

/// The pause after a failure of the sink.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How often the head of the chain is logged.
const HEAD_EVERY: Duration = Duration::from_secs(60);

/// The shortest interval between records of refusals that are counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);

/// The longest sleep of the writer.
const IDLE: Duration = Duration::from_secs(1);

/// Signals a waiting caller that its record is written.
pub(super) type Confirm = oneshot::Sender<()>;

/// A command to the writer.
#[derive(Debug)]
pub(super) enum AuditWriterCommand {
    /// Appends a record, and confirms it to a waiting caller.
    Append { time: Timestamp, record: AuditRecord, confirm: Option<Confirm> },
    /// Wakes the writer, so that it notices the shutdown.
    Wake,
}

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) commands: Receiver<AuditWriterCommand>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) chain: Chain,
    pub(super) recent: RecentEvents,
    pub(super) fsync: Fsync,
    pub(super) clock: SharedClock,
    pub(super) state: Arc<SinkState>,
    pub(super) refusals: Arc<Refusals>,
    /// When refusals were recorded last.
    pub(super) recorded_refusals: Option<Instant>,
    /// Complete lines that are not written yet, and their number.
    pub(super) pending: Vec<u8>,
    pub(super) pending_records: u64,
    /// The callers that wait for the pending records, or for their fsync.
    pub(super) waiting: Vec<Confirm>,
    /// When the first record that is not durable yet was written.
    pub(super) unsynced_since: Option<Instant>,
    /// When the head was logged last, and its number.
    pub(super) logged_head: (Instant, u64),
}

impl AuditWriterCommand {
    /// Returns whether a caller waits for it.
    const fn is_urgent(&self) -> bool {
        match self {
            Self::Append { confirm, .. } => confirm.is_some(),
            Self::Wake => true,
        }
    }
}

impl Writer {
    /// Runs until [`SinkState::close`]; records `first` before anything else.
    pub(super) fn run(mut self, first: &[SystemRecord]) {
        for record in first {
            self.append_system(record);
        }
        self.append_system(&SystemRecord::started());
        loop {
            if !self.flush() {
                if self.state.is_closing() {
                    break;
                }
                std::thread::park_timeout(RETRY_AFTER);
                continue;
            }
            self.log_head(HEAD_EVERY);
            self.record_refusals(REFUSALS_EVERY);
            match self.commands.recv_timeout(self.idle()) {
                Ok(first) => self.collect_batch(first),
                Err(RecvTimeoutError::Timeout) if !self.state.is_closing() => self.report_drops(),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.finish();
    }

    fn collect_batch(&mut self, first: AuditWriterCommand) {
        if !first.is_urgent() {
            // A waiting caller unparks the thread; an unpark that came before is not lost.
            std::thread::park_timeout(LINGER);
        }
        self.report_drops();
        self.append(first);
        for _ in 1..BATCH {
            match self.commands.try_recv() {
                Ok(command) => self.append(command),
                Err(_) => return,
            }
        }
    }

    fn append(&mut self, command: AuditWriterCommand) {
        let AuditWriterCommand::Append { time, record, confirm } = command else { return };
        let known = match &record {
            AuditRecord::Event(applied) => !self.recent.insert(applied.event.mark()) && !applied.is_restored(),
            AuditRecord::Lookup(_) | AuditRecord::Token(_) | AuditRecord::Webhook(_) | AuditRecord::Operator(_) => {
                false
            }
        };
        if !known {
            self.rotate_if_full();
            self.chain.append(&mut self.pending, time, &record);
            self.pending_records += 1;
        }
        self.waiting.extend(confirm);
    }

    fn append_system(&mut self, record: &SystemRecord) {
        self.chain.append(&mut self.pending, self.clock.now(), record);
        self.pending_records += 1;
    }

    fn report_drops(&mut self) {
        let dropped = self.state.take_dropped();
        let (records, lookups, events) = (dropped.total(), dropped.lookups, dropped.events);
        if records > 0 {
            tracing::warn!(records, "audit records were dropped, the sink accepts records again");
            self.append_system(&SystemRecord::Dropped { records, lookups, events });
        }
    }

    /// Records the refusals since the last time, if that is long enough ago.
    fn record_refusals(&mut self, every: Duration) {
        if self.recorded_refusals.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        for refused in self.refusals.take() {
            self.rotate_if_full();
            self.chain.append(&mut self.pending, refused.time, &refused);
            self.pending_records += 1;
            self.recorded_refusals = Some(Instant::now());
        }
    }

    /// Starts the next file, between two batches.
    fn rotate_if_full(&mut self) {
        if !self.pending.is_empty() || !self.sink.is_full() {
            return;
        }
        match self.sink.rotate() {
            Ok(after) => {
                self.unsynced_since = None;
                self.append_system(&SystemRecord::continued(self.chain.algorithm(), after));
            }
            Err(error) => tracing::warn!(%error, "cannot create a new audit file, continuing with the full one"),
        }
    }

    /// Writes the pending records and syncs if it is time; returns whether the sink works.
    fn flush(&mut self) -> bool {
        self.state.set_writing(true);
        let done = self.write().and_then(|()| self.sync());
        self.state.set_writing(false);
        self.state.set_failure(done.as_ref().err());
        if done.is_err() {
            return false;
        }
        for confirm in self.waiting.drain(..) {
            // A caller whose wait timed out has gone.
            let _ = confirm.send(());
        }
        true
    }

    fn write(&mut self) -> std::io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Err(partial) = self.sink.write(&self.pending) {
            self.pending.drain(..partial.written);
            return Err(partial.error);
        }
        self.state.metrics.audit_records.with(AuditOutcome::Written).increment(self.pending_records);
        self.pending.clear();
        self.pending_records = 0;
        self.unsynced_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        let Some(since) = self.unsynced_since else { return Ok(()) };
        let due = match self.fsync {
            Fsync::Always => true,
            Fsync::Every(every) => since.elapsed() >= every,
        };
        if due {
            self.sink.sync()?;
            self.unsynced_since = None;
        }
        Ok(())
    }

    /// Returns how long the writer may wait for the next record.
    fn idle(&self) -> Duration {
        if self.state.is_closing() || !self.pending.is_empty() {
            return Duration::ZERO;
        }
        match (self.unsynced_since, self.fsync) {
            (Some(since), Fsync::Every(every)) => every.saturating_sub(since.elapsed()).min(IDLE),
            (Some(_), Fsync::Always) | (None, _) => IDLE,
        }
    }

    fn log_head(&mut self, every: Duration) {
        let head = self.chain.head();
        if head.seq != self.logged_head.1 && self.logged_head.0.elapsed() >= every {
            tracing::info!(chain = head.chain, seq = head.seq, hash = %head.hash, "head of the audit chain");
            self.logged_head = (Instant::now(), head.seq);
        }
    }

    /// Writes the remaining records and makes them durable.
    fn finish(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.append(command);
        }
        self.record_refusals(Duration::ZERO);
        self.report_drops();
        self.append_system(&SystemRecord::Process(ProcessEvent::Stopped));
        self.fsync = Fsync::Always;
        if self.flush() {
            self.log_head(Duration::ZERO);
        } else {
            self.state.metrics.audit_records.with(AuditOutcome::Dropped).increment(self.pending_records);
            tracing::error!(records = self.pending_records, "audit records were lost: the sink failed until shutdown");
        }
    }
}
