//! What one connection is doing, and until when it may.
//!
//! A connection waits for its first request, then alternates between working (a request is being answered) and
//! waiting for the next one. Each state has its deadline ([`State::deadline`]):
//!
//! | what it does | how long it may |
//! |---|---|
//! | nothing has come of its first request, or only a part of the head | `header_timeout` |
//! | a part of a later request's head has come (HTTP/1.1) | `header_timeout` |
//! | its client takes nothing of an answer | `idle_timeout` |
//! | waiting for another request | `idle_timeout` |
//!
//! An HTTP/2 client may send frames (pings, settings) without wanting anything, so there only requests count.
//! What happens between a head and its answer has deadlines of its own elsewhere: a body's arrival, a lookup, an
//! event's confirmation.

use std::sync::Arc;

use http::{StatusCode, Version};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::limits::Limits;

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The head of a request did not arrive in time.
    Header,
    /// Its client takes nothing of an answer.
    Stalled,
    /// It had nothing to do for too long.
    Idle,
}

/// Which connections make room first: those that have never got anything, then those that have waited longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) proven: bool,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// When it began to wait, or began its latest request.
    since: Instant,
    /// When a byte last moved.
    moved: Instant,
    /// When the first bytes of the request that it waits for came.
    arriving: Option<Instant>,
    /// No request has come yet.
    is_fresh: bool,
    is_http2: bool,
    /// It has got an answer that was no refusal.
    is_proven: bool,
    /// Requests that are not answered to the end.
    open: u32,
    /// Those of them whose answer has begun.
    answering: u32,
    /// Requests whose body has not arrived to its end.
    uploading: u32,
}

/// A connection's state, shared by those who move it and those who judge it.
#[derive(Debug)]
pub(super) struct Watch {
    state: Mutex<State>,
    evicted: Notify,
}

/// A request that is under way; dropped when its answer was sent to the end.
#[derive(Debug)]
pub(super) struct Exchange {
    watch: Arc<Watch>,
    is_answering: bool,
}

/// A body that is arriving; dropped at its end.
#[derive(Debug)]
pub(super) struct Uploading(Arc<Watch>);

impl State {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            moved: now,
            arriving: None,
            is_fresh: true,
            is_http2: false,
            is_proven: false,
            open: 0,
            answering: 0,
            uploading: 0,
        }
    }

    /// Returns until when it may do what it does, and what it is guilty of afterwards; `None` while that is for others
    /// to say.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, Overdue)> {
        if self.open > self.answering {
            None
        } else if self.open > 0 {
            Some((self.moved + limits.idle_timeout, Overdue::Stalled))
        } else if self.is_fresh {
            Some((self.since + limits.header_timeout, Overdue::Header))
        } else if let Some(arriving) = self.arriving {
            Some((arriving + limits.header_timeout, Overdue::Header))
        } else {
            Some((self.since + limits.idle_timeout, Overdue::Idle))
        }
    }

    /// Tells whether it waits for its client and for nothing else.
    const fn is_waiting(&self) -> bool {
        self.open <= self.uploading
    }

    fn read(&mut self, now: Instant) {
        self.moved = now;
        if self.open == 0 && !self.is_http2 && self.arriving.is_none() {
            self.arriving = Some(now);
        }
    }

    fn begin(&mut self, now: Instant, is_http2: bool) {
        self.open += 1;
        self.since = now;
        self.arriving = None;
        self.is_fresh = false;
        self.is_http2 = is_http2;
    }

    fn answer(&mut self, now: Instant, status: StatusCode) {
        self.answering += 1;
        self.moved = now;
        self.is_proven |= !status.is_client_error();
    }

    fn end(&mut self, now: Instant, was_answering: bool) {
        self.open -= 1;
        self.answering -= u32::from(was_answering);
        if self.open == 0 {
            self.since = now;
        }
    }
}

impl Watch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(Instant::now())), evicted: Notify::new() })
    }

    /// Notes that bytes came from the client.
    pub(super) fn read(&self) {
        self.state.lock().read(Instant::now());
    }

    /// Notes that the client took bytes.
    pub(super) fn wrote(&self) {
        self.state.lock().moved = Instant::now();
    }

    /// Notes that a request has come.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Exchange {
        self.state.lock().begin(Instant::now(), version == Version::HTTP_2);
        Exchange { watch: Arc::clone(self), is_answering: false }
    }

    /// Notes that a request's body is still to come.
    pub(super) fn upload(self: &Arc<Self>) -> Uploading {
        self.state.lock().uploading += 1;
        Uploading(Arc::clone(self))
    }

    /// Tells whether the connection waits for its client and for nothing else.
    pub(super) fn is_waiting(&self) -> bool {
        self.state.lock().is_waiting()
    }

    /// Returns its place in the order of eviction; `None` while it works.
    pub(super) fn rank(&self) -> Option<Rank> {
        let state = self.state.lock();
        state.is_waiting().then_some(Rank { proven: state.is_proven, since: state.since })
    }

    /// Waits until the connection has done what it does for too long, or twice as long as it may where the deadline
    /// moved closer meanwhile. Nothing wakes this on every request.
    pub(super) async fn overdue(&self, limits: &Limits) -> Overdue {
        loop {
            let deadline = self.state.lock().deadline(limits);
            let now = Instant::now();
            let mut again = now + limits.header_timeout;
            if let Some((deadline, overdue)) = deadline {
                if deadline <= now {
                    return overdue;
                }
                again = again.min(deadline);
            }
            sleep_until(again).await;
        }
    }

    /// Tells the connection to make room.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Waits to be told to make room.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Exchange {
    /// Notes that the answer begins.
    pub(super) fn answer(&mut self, status: StatusCode) {
        self.is_answering = true;
        self.watch.state.lock().answer(Instant::now(), status);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.watch.state.lock().end(Instant::now(), self.is_answering);
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.state.lock().uploading -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytesize::ByteSize;

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn limits() -> Limits {
        Limits {
            max_connections: 16,
            max_headers: 64,
            max_header_bytes: ByteSize::kib(16),
            max_streams: 128,
            handshake_timeout: Duration::from_secs(5),
            header_timeout: HEADER,
            idle_timeout: IDLE,
        }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn bytes_that_trickle_do_not_move_the_deadline_of_a_head() {
        let start = Instant::now();
        let mut state = State::new(start);
        for second in 0..10 {
            state.read(at(start, second));
            assert_eq!(state.deadline(&limits()), Some((start + HEADER, Overdue::Header)), "{second}");
        }
        state.begin(at(start, 10), false);
        state.end(at(start, 11), false);
        assert_eq!(state.deadline(&limits()), Some((at(start, 11) + IDLE, Overdue::Idle)));
        for second in 30..40 {
            state.read(at(start, second));
            assert_eq!(state.deadline(&limits()), Some((at(start, 30) + HEADER, Overdue::Header)), "{second}");
        }
    }

    #[test]
    fn frames_without_a_request_keep_no_http2_connection_open() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.begin(start, true);
        state.end(at(start, 1), false);
        state.read(at(start, 60));
        assert_eq!(state.deadline(&limits()), Some((at(start, 1) + IDLE, Overdue::Idle)));
    }

    #[test]
    fn an_answer_may_take_long_as_long_as_its_client_takes_it_and_longer_still_before_it_begins() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.begin(start, false);
        assert_eq!(state.deadline(&limits()), None);
        state.answer(at(start, 200), StatusCode::OK);
        assert_eq!(state.deadline(&limits()), Some((at(start, 200) + IDLE, Overdue::Stalled)));
        state.moved = at(start, 270);
        assert_eq!(state.deadline(&limits()), Some((at(start, 270) + IDLE, Overdue::Stalled)));
    }

    #[test]
    fn who_never_got_anything_makes_room_first_then_who_waits_longest_and_never_who_is_being_answered() {
        let (strange, early, late, working, uploading) =
            (Watch::new(), Watch::new(), Watch::new(), Watch::new(), Watch::new());
        for watch in [&early, &late] {
            watch.begin(Version::HTTP_11).answer(StatusCode::OK);
        }
        let _exchange = working.begin(Version::HTTP_11);
        let (_other, upload) = (uploading.begin(Version::HTTP_11), uploading.upload());
        late.state.lock().since += Duration::from_secs(1);
        strange.state.lock().since += Duration::from_secs(2);
        let rank = |watch: &Watch| watch.rank().expect("it waits");
        assert!(rank(&strange) < rank(&early) && rank(&early) < rank(&late));
        assert!(working.rank().is_none() && !working.is_waiting());
        assert!(uploading.is_waiting(), "it waits for its client's body");
        drop(upload);
        assert!(!uploading.is_waiting());
    }

    #[test]
    fn a_refusal_proves_nothing() {
        let watch = Watch::new();
        watch.begin(Version::HTTP_11).answer(StatusCode::UNAUTHORIZED);
        assert!(!watch.rank().expect("it waits").proven);
    }
}
