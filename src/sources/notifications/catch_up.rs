//! Catch-up: the changes in a gap are searched in the audits of Genesys, by a replay.
//!
//! This finds what the invalidation of the watched customers does not: changes of customers that nobody watched, and
//! deletions with their times. It is also faster where many customers are watched and few have changed. One search runs at
//! a time in a process; it spends only the budget that lookups leave, and one that ends early continues where it was.
//! Without the permission `audits:audit:view` there is no search, and the invalidation is all.
//!
//! The start and the end of a search are recorded like those of an operator's replay: the records of the events name its id.

use std::sync::Arc;
use std::time::Duration;

use crate::audit::{AuditRecord, OperatorRecord};
use crate::domain::{ReplayId, Timestamp};
use crate::metrics::CatchUpOutcome;
use crate::operate::actions::Error;
use crate::operate::replay::Status;
use crate::operate::replay::request::ReplayRequest;
use crate::supervise::Backoff;
use crate::upstream;

use super::Watcher;

/// How far before a gap the search starts: the clocks of Genesys and of this machine may differ by as much.
const MARGIN: Duration = Duration::from_secs(60);

/// The first and the longest wait before a search is continued.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How a search ended.
enum Searched {
    /// All changes were found.
    Complete,
    /// Genesys refuses its audits, for this reason.
    Refused(String),
    /// It is to be continued from this time.
    Early(Timestamp),
    /// Another search runs.
    Busy,
}

impl Watcher {
    /// Searches the changes of each gap, until shutdown.
    pub(super) async fn catch_up(self: Arc<Self>) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let since = tokio::select! {
                () = self.shutdown.requested() => return,
                since = self.gaps.next() => since,
            };
            let outcome = match self.search(since).await {
                Searched::Complete => {
                    self.gaps.searched(None);
                    CatchUpOutcome::Complete
                }
                Searched::Refused(reason) => {
                    if self.gaps.searched(Some(reason.clone())) {
                        tracing::warn!(tenant = %self.tenant, reason, "changes that were missed cannot be searched, watched customers are invalidated all the same");
                    }
                    CatchUpOutcome::Refused
                }
                Searched::Early(since) => {
                    self.gaps.continues(since);
                    backoff.pause(&self.shutdown).await;
                    self.metrics.source_catch_ups.with(CatchUpOutcome::Early).increment(1);
                    continue;
                }
                Searched::Busy => {
                    self.gaps.continues(since);
                    self.wait(FIRST_WAIT).await;
                    continue;
                }
            };
            self.metrics.source_catch_ups.with(outcome).increment(1);
            backoff.reset();
        }
    }

    /// Searches the changes since a time.
    async fn search(&self, since: Timestamp) -> Searched {
        let request = ReplayRequest::of_changes(self.tenant.clone(), since.minus(MARGIN), self.clock.now());
        let prepared = match self.replays.prepare(request).await {
            Ok(prepared) => prepared,
            Err(Error::Busy) => return Searched::Busy,
            Err(error) => return self.not_started(since, &error),
        };
        let id = prepared.id;
        if self.audit.record_and_wait(self.searching(id)).await.is_err() {
            // The record may still be written.
            self.audit.record(ended(id, "refused", 0));
            return Searched::Early(since);
        }
        let mut replay = prepared.begin();
        // The sender is gone without a final state only if the task panicked, which the panic hook has logged.
        let _ = replay.progress.wait_for(|progress| progress.status.is_over()).await;
        let (status, replayed, resume) = {
            let progress = replay.progress.borrow();
            (progress.status, progress.replayed, progress.resume)
        };
        // The search is over. While the audit is behind in strict mode, the next one is refused.
        let _ = self.audit.record_and_wait(ended(id, status.as_str(), replayed)).await;
        match status {
            Status::Done => Searched::Complete,
            // The request started earlier than the gap by the margin, and the next one does again.
            Status::Running | Status::Waiting | Status::Stopped | Status::Failed => {
                Searched::Early(since.max(resume.plus(MARGIN)))
            }
        }
    }

    /// Returns the record of the start of a search.
    fn searching(&self, id: ReplayId) -> AuditRecord {
        let start = OperatorRecord::new(None, "replay.after_gap", "ok");
        AuditRecord::Operator(OperatorRecord { tenant: Some(self.tenant.clone()), replay: Some(id), ..start })
    }

    fn not_started(&self, since: Timestamp, error: &Error) -> Searched {
        if let Error::Genesys { error: refusal, .. } = error
            && matches!(refusal, upstream::Error::Denied { .. } | upstream::Error::Privileges { .. })
        {
            return Searched::Refused(error.to_string());
        }
        tracing::debug!(tenant = %self.tenant, %error, "changes that were missed are searched later");
        Searched::Early(since)
    }
}

/// Returns the record of the end of a search, as an operator's replay has it.
fn ended(id: ReplayId, outcome: &'static str, replayed: u64) -> AuditRecord {
    let end = OperatorRecord::new(None, "replay.ended", outcome);
    AuditRecord::Operator(OperatorRecord { replay: Some(id), count: Some(replayed), ..end })
}
