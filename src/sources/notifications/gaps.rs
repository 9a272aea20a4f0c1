//! Gaps: since when changes were missed, and what is done about those that are over.
//!
//! A gap is open while its lane receives nothing. When the lane receives again, the gap is due: the changes in it are to be
//! searched. Only the start of the oldest one is kept, because one search covers all that follows.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::domain::Timestamp;

/// The gaps of one tenant.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    state: Mutex<GapState>,
    is_due: Notify,
}

#[derive(Debug, Default)]
struct GapState {
    /// Since when each lane that receives nothing misses changes.
    open: BTreeMap<usize, Timestamp>,
    due: Option<Timestamp>,
    searched: Option<Timestamp>,
    /// Why Genesys refused the last search.
    refusal: Option<String>,
}

impl Gaps {
    /// Stores that a lane misses changes since this time, or an earlier one that is known.
    pub(super) fn opened(&self, lane: usize, since: Timestamp) {
        self.state.lock().open.entry(lane).and_modify(|known| *known = since.min(*known)).or_insert(since);
    }

    /// Stores that a lane receives all changes again.
    pub(super) fn closed(&self, lane: usize) {
        let since = self.state.lock().open.remove(&lane);
        since.into_iter().for_each(|since| self.due(since));
    }

    /// Stores that changes since this time are to be searched.
    pub(super) fn due(&self, since: Timestamp) {
        let mut state = self.state.lock();
        state.due = Some(state.due.map_or(since, |due| due.min(since)));
        self.is_due.notify_one();
    }

    /// Waits for a gap that is due, which is searched from then on; returns its start. Cancel-safe.
    pub(super) async fn next(&self) -> Timestamp {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(since) = state.due.take() {
                    state.searched = Some(since);
                    return since;
                }
            }
            self.is_due.notified().await;
        }
    }

    /// Stores that the search has ended: with all changes found, or with a refusal. Returns whether the refusal is new.
    pub(super) fn searched(&self, refusal: Option<String>) -> bool {
        let mut state = self.state.lock();
        state.searched = None;
        let is_new = refusal.is_some() && state.refusal != refusal;
        state.refusal = refusal;
        is_new
    }

    /// Stores that the search ended early and is to be continued from this time.
    pub(super) fn continues(&self, since: Timestamp) {
        self.state.lock().searched = None;
        self.due(since);
    }

    /// Returns the start of the oldest gap whose changes are not found.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        state.open.values().copied().chain(state.due).chain(state.searched).min()
    }

    /// Returns what is still to be done after gaps, if there is anything; `missed` customers wait for their invalidation.
    pub(super) fn report(&self, missed: usize) -> Option<String> {
        let oldest = self.oldest();
        let state = self.state.lock();
        let waiting = (missed > 0).then(|| format!("{missed} customers are still to be invalidated"));
        let audits = match (oldest, &state.refusal) {
            (Some(since), _) => Some(format!("changes since {since} are searched in the audits of genesys")),
            (None, Some(refusal)) => waiting.as_ref().map(|_| format!("the audits are not searched: {refusal}")),
            (None, None) => None,
        };
        let parts: Vec<String> = waiting.into_iter().chain(audits).collect();
        (!parts.is_empty()).then(|| format!("changes were missed: {}", parts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[tokio::test]
    async fn a_gap_is_due_when_its_lane_receives_again() {
        let gaps = Gaps::default();
        gaps.opened(0, at(7));
        gaps.opened(0, at(9));
        gaps.opened(1, at(3));
        gaps.closed(2);
        assert_eq!((gaps.oldest(), gaps.state.lock().due), (Some(at(3)), None));
        gaps.closed(0);
        assert_eq!(gaps.next().await, at(7));
        gaps.closed(1);
        assert!(!gaps.searched(None));
        assert_eq!((gaps.next().await, gaps.oldest()), (at(3), Some(at(3))));
        gaps.continues(at(5));
        assert_eq!(gaps.next().await, at(5));
        gaps.searched(None);
        assert_eq!(gaps.oldest(), None);
    }

    #[tokio::test]
    async fn what_is_left_to_do_is_reported() {
        let gaps = Gaps::default();
        assert_eq!((gaps.report(0), gaps.report(2).unwrap().contains("2 customers")), (None, true));
        gaps.due(at(0));
        gaps.next().await;
        assert!(gaps.report(0).unwrap().contains("changes since 1970-01-01T00:00:00.000Z are searched"));
        assert!(gaps.searched(Some("no permission".to_owned())));
        assert!(!gaps.searched(Some("no permission".to_owned())), "it is known");
        assert_eq!(gaps.report(0), None);
        assert!(gaps.report(1).unwrap().ends_with("the audits are not searched: no permission"));
    }
}
