//! The writer: one thread that owns the chain and the sink.
//!
//! It takes what waits (a bounded batch), makes records of it, writes them at once, makes them durable as
//! `audit.fsync` says, and answers those who wait: many share one write and one fsync. While nobody waits for an
//! answer it lingers for a moment, so that lookups cost a write now and then and no wake-up each.
//!
//! # When the sink fails
//!
//! What was taken is kept and written when the sink works again, in its order: nothing that was taken is lost but with
//! the process. Meanwhile nothing more is taken, and who finds the channel full drops its record, or is refused in
//! strict mode. What was dropped is recorded first thing afterwards.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::metrics::AuditOutcome;

use super::chain::Chain;
use super::config::Fsync;
use super::recent::Recent;
use super::record::{Note, Record};
use super::sinks::Sink;
use super::{Entry, Shared};

/// How many records are written at once, at most.
const BATCH: usize = 1_024;

/// How long records that nobody waits for may be gathered.
const LINGER: Duration = Duration::from_millis(5);

/// How long a sink that failed is left alone.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How often the head of the chain is told to the log.
const HEAD_EVERY: Duration = Duration::from_secs(60);

/// How long the writer may sleep.
const IDLE: Duration = Duration::from_secs(1);

/// Whoever waits for a record to be written.
pub(super) type Waiting = oneshot::Sender<()>;

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) entries: Receiver<Entry>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) chain: Chain,
    pub(super) recent: Recent,
    pub(super) fsync: Fsync,
    pub(super) clock: SharedClock,
    pub(super) shared: Arc<Shared>,
    /// Records that are not written yet, whole lines, and how many.
    pub(super) pending: Vec<u8>,
    pub(super) pending_records: u64,
    /// Those who wait for what is pending, or for its fsync.
    pub(super) waiting: Vec<Waiting>,
    /// When what was written first was, of what is not durable yet.
    pub(super) unsynced_since: Option<Instant>,
    /// When the head was told last, and which.
    pub(super) told: (Instant, u64),
}

impl Writer {
    /// Works until it is told to end, having recorded first what was found at the start.
    pub(super) fn run(mut self, found: &[Note]) {
        for note in found {
            self.note(note);
        }
        self.note(&Note::Started);
        loop {
            if !self.flush() {
                if self.shared.is_closing() {
                    break;
                }
                std::thread::park_timeout(RETRY_AFTER);
                continue;
            }
            self.tell_head(HEAD_EVERY);
            match self.entries.recv_timeout(self.idle()) {
                Ok(first) => self.gather(first),
                Err(RecvTimeoutError::Timeout) if !self.shared.is_closing() => self.report_drops(),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.end();
    }

    /// Takes a batch.
    fn gather(&mut self, first: Entry) {
        if !first.is_urgent() {
            // Who waits for an answer wakes us; a wake-up that came before is not lost.
            std::thread::park_timeout(LINGER);
        }
        self.report_drops();
        self.take(first);
        for _ in 1..BATCH {
            match self.entries.try_recv() {
                Ok(entry) => self.take(entry),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, entry: Entry) {
        let Entry::Record { time, record, waiting } = entry else { return };
        let known = match &record {
            Record::Event(applied) => !self.recent.insert(applied.event.mark()) && !applied.is_restored(),
            Record::Lookup(_) | Record::Webhook(_) | Record::Operator(_) => false,
        };
        if !known {
            self.rotate_if_full();
            self.chain.append(&mut self.pending, |line| record.write(time, line));
            self.pending_records += 1;
        }
        self.waiting.extend(waiting);
    }

    fn note(&mut self, note: &Note) {
        let (time, algorithm) = (self.clock.now(), self.chain.algorithm());
        self.chain.append(&mut self.pending, |line| note.write(time, algorithm, line));
        self.pending_records += 1;
    }

    fn report_drops(&mut self) {
        let dropped = self.shared.take_dropped();
        if dropped.total() > 0 {
            tracing::warn!(records = dropped.total(), "audit records had been dropped, the sink takes them again");
            self.note(&Note::Dropped(dropped));
        }
    }

    /// Begins the next file, between two batches.
    fn rotate_if_full(&mut self) {
        if !self.pending.is_empty() || !self.sink.is_full() {
            return;
        }
        match self.sink.rotate() {
            Ok(after) => {
                self.unsynced_since = None;
                self.note(&Note::Continued { after });
            }
            Err(error) => tracing::warn!(%error, "no new audit file could be begun, the full one goes on"),
        }
    }

    /// Writes what is pending and syncs what is due; tells whether the sink works.
    fn flush(&mut self) -> bool {
        self.shared.busy(true);
        let done = self.write().and_then(|()| self.sync());
        self.shared.busy(false);
        self.shared.works(done.as_ref().err());
        if done.is_err() {
            return false;
        }
        for waiting in self.waiting.drain(..) {
            // Who no longer waits has gone on without.
            let _ = waiting.send(());
        }
        true
    }

    fn write(&mut self) -> std::io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Err(interrupted) = self.sink.write(&self.pending) {
            self.pending.drain(..interrupted.written);
            return Err(interrupted.error);
        }
        self.shared.metrics.audit_records.with(AuditOutcome::Written).increment(self.pending_records);
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

    /// How long there is nothing to do by itself.
    fn idle(&self) -> Duration {
        if self.shared.is_closing() {
            return Duration::ZERO;
        }
        match (self.unsynced_since, self.fsync) {
            (Some(since), Fsync::Every(every)) => every.saturating_sub(since.elapsed()).min(IDLE),
            (Some(_), Fsync::Always) | (None, _) => IDLE,
        }
    }

    fn tell_head(&mut self, every: Duration) {
        let head = self.chain.head();
        if head.seq != self.told.1 && self.told.0.elapsed() >= every {
            tracing::info!(chain = head.chain, seq = head.seq, hash = %head.hash, "head of the audit chain");
            self.told = (Instant::now(), head.seq);
        }
    }

    /// Writes what is left, and makes it durable.
    fn end(&mut self) {
        while let Ok(entry) = self.entries.try_recv() {
            self.take(entry);
        }
        self.report_drops();
        self.note(&Note::Stopped);
        self.fsync = Fsync::Always;
        if self.flush() {
            self.tell_head(Duration::ZERO);
        } else {
            self.shared.metrics.audit_records.with(AuditOutcome::Dropped).increment(self.pending_records);
            tracing::error!(records = self.pending_records, "audit records were lost: the sink failed to the end");
        }
    }
}
