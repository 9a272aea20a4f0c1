//! The progress of a replay.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::domain::{Event, ReplayId, Timestamp};

use super::request::{Origin, ReplayRequest};

/// How far before the reached time the next replay starts.
const OVERLAP: Duration = Duration::from_secs(60);

/// The progress of a replay.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    replay_id: String,
    /// The state.
    pub status: Status,
    dry_run: bool,
    /// Whether the events are read from Genesys instead of the journal.
    from_genesys: bool,
    since: String,
    until: String,
    /// How many events of the journal, or audits of Genesys, were read.
    read: u64,
    /// How many audits of Genesys name no customer in a readable way.
    unreadable: u64,
    /// How many of them the request selects.
    pub(super) matched: u64,
    /// How many of those were published again.
    pub replayed: u64,
    /// The selected events by kind.
    kinds: BTreeMap<&'static str, u64>,
    /// The time up to which everything is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<String>,
    /// The completed share of the period, from 0 to 1.
    fraction: f64,
    /// The reason of an early end.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The `since` of the next replay after an early end.
    pub(super) resume_since: String,
    /// The same as a time.
    #[serde(skip)]
    pub resume: Timestamp,
}

/// The state of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It publishes events.
    Running,
    /// It waits until the queue is shorter, or Genesys has an answer for it.
    Waiting,
    /// It is complete.
    Done,
    /// It was stopped.
    Stopped,
    /// The queue or Genesys failed.
    Failed,
}

impl Status {
    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Returns whether the replay has ended.
    #[must_use]
    pub const fn is_over(self) -> bool {
        match self {
            Self::Running | Self::Waiting => false,
            Self::Done | Self::Stopped | Self::Failed => true,
        }
    }
}

impl Progress {
    pub(super) fn of(request: &ReplayRequest, id: ReplayId) -> Self {
        Self {
            replay_id: id.to_string(),
            status: Status::Running,
            dry_run: request.dry_run,
            from_genesys: request.origin == Origin::Genesys,
            since: request.since.to_string(),
            until: request.until.to_string(),
            read: 0,
            unreadable: 0,
            matched: 0,
            replayed: 0,
            kinds: BTreeMap::new(),
            reached: None,
            fraction: 0.0,
            reason: None,
            resume_since: request.since.to_string(),
            resume: request.since,
        }
    }

    /// Counts a page: how many events were read, how many of them are unreadable, and which are selected.
    pub(super) fn count(&mut self, read: u64, unreadable: u64, selected: &[Event]) {
        self.read += read;
        self.unreadable += unreadable;
        self.matched += selected.len() as u64;
        for event in selected {
            *self.kinds.entry(event.kind.as_str()).or_default() += 1;
        }
    }

    /// Records that everything up to this time is published.
    pub(super) fn advance(&mut self, reached: Timestamp, request: &ReplayRequest) {
        let overlap = i64::try_from(OVERLAP.as_millis()).unwrap_or(i64::MAX);
        let resume = Timestamp::from_millis(reached.as_millis().saturating_sub(overlap)).max(request.since);
        self.reached = Some(reached.to_string());
        self.resume_since = resume.to_string();
        self.resume = resume;
        self.fraction = request.fraction(reached);
    }

    /// Records whether the replay waits; returns whether that is new.
    pub(super) fn is_waiting(&mut self, waits: bool) -> bool {
        let status = if waits { Status::Waiting } else { Status::Running };
        std::mem::replace(&mut self.status, status) != status
    }

    /// Records the end.
    pub(super) fn end(&mut self, ended: &Result<(), (Status, String)>) {
        match ended {
            Ok(()) => {
                self.status = Status::Done;
                self.fraction = 1.0;
            }
            Err((status, reason)) => {
                self.status = *status;
                self.reason = Some(reason.clone());
            }
        }
    }
}
