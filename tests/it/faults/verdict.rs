//! The verdict about a round, and the table of all.

use std::time::Duration;

use super::fault::{Expected, Fault};

/// The share of the lookups of quiet customers that must be answered with the profile.
const SERVED: f64 = 0.95;
/// The share of lookups that may take longer than a caller waits: none, but for a busy machine.
const LATE: f64 = 0.02;
/// The longest time until `/readyz` and a metric show the fault.
const NOTICED: Duration = Duration::from_secs(3);
/// By how much the calls to Genesys may exceed those of the healthy run.
const CALLS: f64 = 1.1;

/// What a round has shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// When `/readyz` and the metric showed the fault, where they must.
    pub(super) noticed: Option<Duration>,
    /// The share of the lookups of quiet customers that found the profile.
    pub(super) served: f64,
    /// The share of all lookups that took longer than a caller waits.
    pub(super) late: f64,
    /// The shares of the events sent during the fault.
    pub(super) accepted: f64,
    pub(super) applied: f64,
    /// The numbers of calls to Genesys, lookups and events during the fault, and its length.
    pub(super) calls: usize,
    pub(super) lookups: usize,
    pub(super) sent: usize,
    pub(super) seconds: f64,
    /// Answers that were older than an applied event.
    pub(super) stale: usize,
    /// Events that were never applied.
    pub(super) lost: usize,
    pub(super) dead_lettered: bool,
    /// When everything worked after the end of the fault, and when all that had waited was applied.
    pub(super) back: Option<Duration>,
    pub(super) drained: Duration,
    /// Some of the stale answers.
    pub(super) described: Vec<String>,
}

impl Verdict {
    /// Calls to Genesys for each lookup, relative to the healthy run.
    fn calls_ratio(&self, healthy: &Self) -> f64 {
        let each = |run: &Self| run.calls as f64 / run.lookups.max(1) as f64;
        each(self) / each(healthy)
    }

    /// Returns what is wrong; `strict`: nothing else uses the machine, so the bounds
    /// of time are checked too.
    pub(super) fn wrong(&self, expected: &Expected, healthy: &Self, strict: bool) -> Vec<&'static str> {
        // The number of calls varies by chance, like that of any rare event: by its root.
        let chance = 1.0 + 3.0 / (healthy.calls as f64).sqrt();
        let late = |time: Option<Duration>, most| time.is_none_or(|time| strict && time > most);
        [
            (expected.notice.is_some() && late(self.noticed, NOTICED), "notice"),
            (self.served < SERVED, "lookups"),
            (self.late > LATE, "late lookups"),
            (self.accepted < expected.accepted, "accepted"),
            (self.applied < expected.applied, "applied"),
            (expected.calls && self.calls_ratio(healthy) > CALLS * chance, "calls"),
            (self.stale > 0, "stale"),
            (self.lost > 0, "lost"),
            (self.dead_lettered, "dead letters"),
            (late(self.back, expected.back), "recovery"),
        ]
        .into_iter()
        .filter_map(|(is_wrong, what)| is_wrong.then_some(what))
        .collect()
    }

    /// Returns its line of the table.
    pub(super) fn row(&self, site: &str, fault: Fault, healthy: &Self, wrong: &[&str]) -> String {
        let fault = format!("{fault:?}");
        let seconds = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()));
        let Self { served, late, accepted, applied, stale, lost, .. } = self;
        let rate = |count: usize| count as f64 / self.seconds;
        format!(
            "{site:<18} {fault:<22} {:>6.0} {:>6.0} {:>7} {:>6.3} {late:>5.2} {accepted:>8.2} {applied:>7.2} {stale:>5} \
             {lost:>4} {:>4} {:>5.2} {:>5} {:>7} {}",
            rate(self.lookups),
            rate(self.sent),
            seconds(self.noticed),
            served,
            if self.dead_lettered { "yes" } else { "0" },
            self.calls_ratio(healthy),
            seconds(self.back),
            seconds(Some(self.drained)),
            if wrong.is_empty() { "ok".to_owned() } else { wrong.join(", ") }
        )
    }

    /// Returns the head of the table.
    pub(super) fn head() -> String {
        format!(
            "{:<18} {:<22} {:>6} {:>6} {:>7} {:>6} {:>5} {:>8} {:>7} {:>5} {:>4} {:>4} {:>5} {:>5} {:>7} verdict",
            "site",
            "fault",
            "look/s",
            "evts/s",
            "noticed",
            "served",
            "late",
            "accepted",
            "applied",
            "stale",
            "lost",
            "dead",
            "calls",
            "back",
            "drained"
        )
    }
}
