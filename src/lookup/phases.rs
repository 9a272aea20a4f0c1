//! The phases of one lookup: what its time was spent on. A hit notes nothing; its only phase is the store.

use std::time::Duration;

use crate::upstream::FetchTimes;

/// How long the parts of a lookup took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// The first read of the store; zero if that was all.
    pub(super) store: Duration,
    token: Duration,
    connect: Duration,
    fetch: Duration,
    fill: Duration,
}

/// How long the parts of a leader's work took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeaderTimes {
    /// Of the fetch.
    pub(super) fetch: FetchTimes,
    /// Storing what was fetched.
    pub(super) fill: Duration,
}

impl Phases {
    /// Adds the times of the fetch that this lookup has led.
    pub(super) fn led(&mut self, times: LeaderTimes) {
        let FetchTimes { whole, token, connect } = times.fetch;
        self.token += token;
        self.connect += connect;
        self.fetch += whole.saturating_sub(token + connect);
        self.fill += times.fill;
    }

    /// Returns the phases of a lookup that took `total`, with their names and in their order: `store` (its first read),
    /// `wait` (for the lease, for the fetch of another lookup, for one that had not ended), `token` (of Genesys),
    /// `connect` (a new connection to Genesys), `fetch` (the request to Genesys) and `fill` (storing what was fetched).
    /// Together they take `total`.
    #[must_use]
    pub fn of(&self, total: Duration) -> [(&'static str, Duration); 6] {
        let Self { store, token, connect, fetch, fill } = *self;
        let store = if store.is_zero() { total } else { store };
        let wait = total.saturating_sub(store + token + connect + fetch + fill);
        [("store", store), ("wait", wait), ("token", token), ("connect", connect), ("fetch", fetch), ("fill", fill)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_of_a_lookup_take_its_whole_time() {
        let ms = Duration::from_millis;
        let mut phases = Phases { store: ms(2), ..Phases::default() };
        phases.led(LeaderTimes { fetch: FetchTimes { whole: ms(200), token: ms(50), connect: ms(20) }, fill: ms(3) });
        let of_a_miss = [("store", 2), ("wait", 5), ("token", 50), ("connect", 20), ("fetch", 130), ("fill", 3)];
        assert_eq!(phases.of(ms(210)), of_a_miss.map(|(name, time)| (name, ms(time))));
        let of_a_hit = [("store", 1), ("wait", 0), ("token", 0), ("connect", 0), ("fetch", 0), ("fill", 0)];
        assert_eq!(Phases::default().of(ms(1)), of_a_hit.map(|(name, time)| (name, ms(time))));
    }
}
