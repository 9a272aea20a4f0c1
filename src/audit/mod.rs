//! Audit: the record of who saw what, and of what was done to it.
//!
//! # What it promises
//!
//! One record per lookup (caller, tenant, digest of the customer, decision, result, names of the fields that were
//! handed out), per applied event, per webhook request that was turned away, per operator's command, and per start and
//! stop of the process; digests and names, never a value. Each record is one line of JSON; each carries the hash of the
//! one before it ([`chain`]), so that `profile-edge audit verify` finds what was changed, removed or moved. In a file
//! the chain goes on across restarts and from file to file; on standard output each start begins a chain of its own.
//!
//! # The steps
//!
//! Whoever has something to record hands a small value to a bounded channel: no text is made and nothing is waited for
//! on the path of a request. One thread (`writer`) makes records of them, in the order in which they came.
//!
//! An event's record is waited for: effect, record, acknowledgement. A crash before the record brings the event again;
//! the store then says that it is a duplicate, and as no record names it, it is recorded as `recovered`. An event
//! whose record is there gets no second one, unless the store had lost its effect. An operator's replay is an event of
//! its own. So there is never none, and exactly one unless a crash fell into the gap. What is known of earlier records
//! is the file's own tail: on standard output, or where another process applied the event first, a duplicate may be
//! recorded once more.
//!
//! # When the sink takes nothing
//!
//! A full disk or a stalled pipe: the channel fills up, and from then on records are dropped and counted
//! (`audit_records_total{outcome="dropped"}`), readiness names `audit`, and when the sink works again the first record
//! says how many are missing. Nobody waits for a sink that does not work. In strict mode nothing is dropped: a lookup
//! is answered only when its record is written, else with 503; an event whose record is not written is given back.

pub mod chain;
mod config;
mod file;
mod line;
pub mod open;
mod recent;
mod record;
mod shared;
mod sinks;
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
use crate::domain::Timestamp;

pub use config::{Config, Fsync, Lookups, Sink};
pub use record::{Applied, Decision, DeniedWebhook, Lookup, Operation, Reason, Record, Verdict};

use shared::Shared;
use writer::Waiting;

/// How long an event waits for its record, and in strict mode a lookup.
const PATIENCE: Duration = Duration::from_millis(500);

/// Takes records. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Audit(Option<Arc<AuditHandle>>);

/// Where records are handed in.
#[derive(Debug)]
struct AuditHandle {
    entries: SyncSender<Entry>,
    writer: Thread,
    shared: Arc<Shared>,
    clock: SharedClock,
    lookups: Lookups,
    strict: bool,
}

/// What the writer is handed.
#[derive(Debug)]
enum Entry {
    /// Something to record.
    Record { time: Timestamp, record: Record, waiting: Option<Waiting> },
    /// There is something else to see to.
    Nudge,
}

/// Strict mode: what cannot be recorded must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be recorded now, and what is not recorded is refused (audit.strict)")]
pub struct Unrecorded;

impl Audit {
    /// Returns one that records nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Tells whether lookups that were allowed are recorded; otherwise nothing needs to be gathered for them.
    #[must_use]
    pub fn records_all_lookups(&self) -> bool {
        self.0.as_ref().is_some_and(|desk| desk.lookups == Lookups::All)
    }

    /// Tells whether what cannot be recorded must be refused.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.0.as_ref().is_some_and(|desk| desk.strict)
    }

    /// Tells whether the sink takes records.
    #[must_use]
    pub fn works(&self) -> bool {
        self.0.as_ref().is_none_or(|desk| desk.shared.is_working())
    }

    /// Hands in a record, without waiting; where there is no room for it, it is dropped and counted.
    pub fn record(&self, record: Record) {
        if let Some(desk) = &self.0
            && let Err(entry) = desk.hand_in(record, None)
        {
            desk.shared.drop_one(&entry);
        }
    }

    /// Hands in a record and waits, a bounded time, until it is written.
    ///
    /// # Errors
    ///
    /// It is not, and the mode is strict. Otherwise it is dropped and counted, or written later.
    pub async fn settle(&self, record: Record) -> Result<(), Unrecorded> {
        let Some(desk) = &self.0 else { return Ok(()) };
        if !desk.shared.is_working() {
            if desk.strict {
                desk.shared.refuse_one();
                return Err(Unrecorded);
            }
            self.record(record);
            return Ok(());
        }
        let (waiting, written) = oneshot::channel();
        let answered = match desk.hand_in(record, Some(waiting)) {
            Ok(()) => {
                desk.writer.unpark();
                matches!(timeout(PATIENCE, written).await, Ok(Ok(())))
            }
            Err(entry) => {
                if !desk.strict {
                    desk.shared.drop_one(&entry);
                }
                false
            }
        };
        if desk.strict && !answered {
            desk.shared.refuse_one();
            return Err(Unrecorded);
        }
        Ok(())
    }

    /// Has the writer write what it was handed, and end.
    pub fn close(&self) {
        if let Some(desk) = &self.0 {
            desk.shared.close();
            // Where there is no room the writer is awake.
            let _ = desk.entries.try_send(Entry::Nudge);
            desk.writer.unpark();
        }
    }
}

impl AuditHandle {
    /// Hands in a record, or gives it back where there is no room.
    #[expect(clippy::result_large_err, reason = "what could not be handed in is looked at, and not passed on")]
    fn hand_in(&self, record: Record, waiting: Option<Waiting>) -> Result<(), Record> {
        let entry = Entry::Record { time: self.clock.now(), record, waiting };
        match self.entries.try_send(entry) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) => match entry {
                Entry::Record { record, .. } => Err(record),
                Entry::Nudge => Ok(()),
            },
        }
    }
}

impl Entry {
    /// Tells whether somebody waits for it.
    const fn is_urgent(&self) -> bool {
        match self {
            Self::Record { waiting, .. } => waiting.is_some(),
            Self::Nudge => true,
        }
    }
}
