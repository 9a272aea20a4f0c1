//! Audit: who read which customer, and what happened to the service.
//!
//! # What it promises
//!
//! One record for each lookup (caller, tenant, digest of the customer, decision, result, names of the fields in the
//! answer), each applied event, each denied webhook request, each operator's command, and each start and stop of the
//! process. Refusals without a valid credential, lookups over their caller's rate, and denials of one caller beyond a hundred at once
//! share a record with their `count`, at most one a second for each door and reason, or caller (`refusals`). Records hold digests and names, never a value. Each record is one line of JSON and carries the hash of the
//! previous one ([`chain`]), so `profile-edge audit verify` finds changed, removed and moved records. In a file the chain
//! continues across restarts and from file to file; on standard output each start begins a new chain.
//!
//! # The steps
//!
//! A request puts a small value into a bounded channel: it formats no text and waits for nothing. One thread (`writer`)
//! turns the values into records, in the order of arrival.
//!
//! An event waits for its record: effect, record, acknowledgement. After a crash before the record the queue redelivers
//! the event; the store reports a duplicate, and because no record names the event, it is recorded as `recovered`. An
//! event with a record gets no second one, unless the store had lost its effect. A replay by an operator counts as a
//! new event. So each event has at least one record, and exactly one unless a crash happened between effect and record.
//! Earlier records are known from the tail of the file: on standard output, or if another process applied the event
//! first, a duplicate may be recorded once more.
//!
//! # When the sink fails
//!
//! With a full disk or a stalled pipe the channel fills up. Then records are dropped and counted
//! (`audit_records_total{outcome="dropped"}`), readiness names `audit`, and when the sink works again the first record
//! reports how many are missing. No request waits for a failed sink. In strict mode nothing is dropped: a lookup is
//! answered only after its record is written, else with 503; an event without a record is returned to the queue.

pub mod chain;
mod config;
mod file;
pub mod open;
mod recent_events;
mod record;
mod refusals;
mod sink_state;
mod sinks;
mod system_record;
mod tail;
pub mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::SharedClock;

pub use config::{Config, Fsync, Lookups, SinkKind};
pub use record::{
    AuditRecord, Decision, DenialReason, DeniedToken, DeniedWebhook, EventEffect, EventRecord, LookupRecord,
    OperatorRecord,
};

use refusals::Refusals;
use sink_state::SinkState;
use writer::{AuditWriterCommand, Confirm};

/// How long an event waits for its record, and in strict mode a lookup too.
const PATIENCE: Duration = Duration::from_millis(500);

/// Accepts records. Clones share one writer.
#[derive(Clone, Debug)]
pub struct Audit(Option<Arc<AuditHandle>>);

/// The sending side of the writer.
#[derive(Debug)]
struct AuditHandle {
    commands: SyncSender<AuditWriterCommand>,
    writer: Thread,
    state: Arc<SinkState>,
    refusals: Arc<Refusals>,
    clock: SharedClock,
    lookups: Lookups,
    strict: bool,
}

/// The action could not be recorded, and strict mode forbids actions without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused because it cannot be recorded (audit.strict)")]
pub struct Unrecorded;

impl Audit {
    /// Returns an audit that records nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Returns whether allowed lookups are recorded too.
    #[must_use]
    pub fn records_all_lookups(&self) -> bool {
        self.0.as_ref().is_some_and(|handle| handle.lookups == Lookups::All)
    }

    /// Returns whether actions that cannot be recorded must be refused.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.0.as_ref().is_some_and(|handle| handle.strict)
    }

    /// Returns whether the sink accepts records.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.0.as_ref().is_none_or(|handle| handle.state.is_working())
    }

    /// Queues a record without waiting; if the channel is full, drops and counts it. Refusals without a valid credential, or
    /// over a caller's rate, are recorded together, once a second.
    pub fn record(&self, record: AuditRecord) {
        if let Some(handle) = &self.0
            && let Err(record) = handle.refusals.count(handle.clock.now(), record)
            && let Err(record) = handle.send(record, None)
        {
            handle.state.drop_one(&record);
        }
    }

    /// Queues a record and waits, for a bounded time, until it is written.
    ///
    /// # Errors
    ///
    /// The record is not written and the mode is strict. Otherwise it is dropped and counted, or written later.
    pub async fn record_and_wait(&self, record: AuditRecord) -> Result<(), Unrecorded> {
        let Some(handle) = &self.0 else { return Ok(()) };
        if !handle.state.is_working() {
            if handle.strict {
                handle.state.refuse_one();
                return Err(Unrecorded);
            }
            self.record(record);
            return Ok(());
        }
        let (confirm, confirmed) = oneshot::channel();
        let is_written = match handle.send(record, Some(confirm)) {
            Ok(()) => {
                handle.writer.unpark();
                matches!(timeout(PATIENCE, confirmed).await, Ok(Ok(())))
            }
            Err(record) => {
                if !handle.strict {
                    handle.state.drop_one(&record);
                }
                false
            }
        };
        if handle.strict && !is_written {
            handle.state.refuse_one();
            return Err(Unrecorded);
        }
        Ok(())
    }

    /// Asks the writer to write all queued records and stop.
    pub fn close(&self) {
        if let Some(handle) = &self.0 {
            handle.state.close();
            // If the channel is full, the writer is awake.
            let _ = handle.commands.try_send(AuditWriterCommand::Wake);
            handle.writer.unpark();
        }
    }
}

impl AuditHandle {
    /// Queues a record, or returns it if the channel is full.
    #[expect(clippy::result_large_err, reason = "the caller counts the returned record and drops it")]
    fn send(&self, record: AuditRecord, confirm: Option<Confirm>) -> Result<(), AuditRecord> {
        let command = AuditWriterCommand::Append { time: self.clock.now(), record, confirm };
        match self.commands.try_send(command) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => match command {
                AuditWriterCommand::Append { record, .. } => Err(record),
                AuditWriterCommand::Wake => Ok(()),
            },
        }
    }
}
