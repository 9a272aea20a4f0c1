//! The activity of one connection, and its deadline.
//!
//! A connection waits for its first request, then alternates between answering a request and waiting for the next one. Each
//! state has a deadline ([`Activity::deadline`]):
//!
//! | state | timeout |
//! |---|---|
//! | the head of the first request has not arrived completely | `header_timeout` |
//! | a later request's head has arrived in part (HTTP/1.1) | `header_timeout` |
//! | the client does not read the answer | `idle_timeout`; a stream of HTTP/2 is reset ([`answer_body`](super::answer_body)) |
//! | waiting for another request | `idle_timeout` |
//!
//! An HTTP/2 client may send frames (pings, settings) without a request, so there only requests count as activity. The
//! time between a head and its answer has other limits: for a body to arrive, for a lookup, for the confirmation of an
//! event.

use std::sync::Arc;

use http::{StatusCode, Version};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::limits::ConnectionLimits;

/// The timeout that a connection has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutKind {
    /// The head of a request did not arrive in time.
    Header,
    /// The client did not read the answer.
    Stalled,
    /// No request arrived.
    Idle,
}

/// The order of eviction: connections that never got an answer first, then those that have waited longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EvictionPriority {
    pub(super) is_proven: bool,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Activity {
    /// The start of the latest request or wait.
    since: Instant,
    /// The time of the last read or write.
    last_io: Instant,
    /// The arrival of the first bytes of the next request.
    arriving: Option<Instant>,
    /// No request has arrived yet.
    is_first: bool,
    is_http2: bool,
    /// The client has got an answer other than a client error (4xx).
    is_proven: bool,
    /// The number of requests whose answer is not sent completely.
    open: u32,
    /// The number of those whose answer has started.
    answering: u32,
    /// The number of those of which a part waits for the client to read it.
    unread: u32,
    /// The number of requests whose body has not arrived completely.
    uploading: u32,
}

/// The shared state of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    activity: Mutex<Activity>,
    evicted: Notify,
}

/// A request in progress; dropped when its answer is sent completely.
#[derive(Debug)]
pub(super) struct RequestGuard {
    connection: Arc<ConnectionState>,
    is_answering: bool,
    is_unread: bool,
}

/// A request body that is arriving; dropped at its end.
#[derive(Debug)]
pub(super) struct UploadGuard(Arc<ConnectionState>);

impl Activity {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            last_io: now,
            arriving: None,
            is_first: true,
            is_http2: false,
            is_proven: false,
            open: 0,
            answering: 0,
            unread: 0,
            uploading: 0,
        }
    }

    /// Returns the deadline of the present state; `None` while a request is handled, which has its own limits.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<(Instant, TimeoutKind)> {
        if self.open > self.answering {
            None
        } else if self.open > 0 {
            Some((self.last_io + limits.idle_timeout, TimeoutKind::Stalled))
        } else if self.is_first {
            Some((self.since + limits.header_timeout, TimeoutKind::Header))
        } else if let Some(arriving) = self.arriving {
            Some((arriving + limits.header_timeout, TimeoutKind::Header))
        } else {
            Some((self.since + limits.idle_timeout, TimeoutKind::Idle))
        }
    }

    /// Returns whether the connection waits only for its client.
    const fn is_waiting(&self) -> bool {
        self.open <= self.uploading + self.unread
    }

    fn read(&mut self, now: Instant) {
        self.last_io = now;
        if self.open == 0 && !self.is_http2 && self.arriving.is_none() {
            self.arriving = Some(now);
        }
    }

    fn begin(&mut self, now: Instant, is_http2: bool) {
        self.open += 1;
        self.since = now;
        self.arriving = None;
        self.is_first = false;
        self.is_http2 = is_http2;
    }

    fn answer(&mut self, now: Instant, status: StatusCode) {
        self.answering += 1;
        self.last_io = now;
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

impl ConnectionState {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { activity: Mutex::new(Activity::new(Instant::now())), evicted: Notify::new() })
    }

    /// Records that bytes arrived.
    pub(super) fn read(&self) {
        self.activity.lock().read(Instant::now());
    }

    /// Records that bytes were sent.
    pub(super) fn wrote(&self) {
        self.activity.lock().last_io = Instant::now();
    }

    /// Records that a request has arrived.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> RequestGuard {
        self.activity.lock().begin(Instant::now(), version == Version::HTTP_2);
        RequestGuard { connection: Arc::clone(self), is_answering: false, is_unread: false }
    }

    /// Records that a request's body has not arrived completely.
    pub(super) fn upload(self: &Arc<Self>) -> UploadGuard {
        self.activity.lock().uploading += 1;
        UploadGuard(Arc::clone(self))
    }

    /// Returns whether the connection waits only for its client.
    pub(super) fn is_waiting(&self) -> bool {
        self.activity.lock().is_waiting()
    }

    /// Returns the eviction priority; `None` while a request is handled.
    pub(super) fn priority(&self) -> Option<EvictionPriority> {
        let activity = self.activity.lock();
        activity.is_waiting().then_some(EvictionPriority { is_proven: activity.is_proven, since: activity.since })
    }

    /// Waits until a deadline has passed. It checks the deadline at least once per `header_timeout`, so requests need not
    /// wake it; if the deadline moves closer meanwhile, the timeout may take up to twice as long.
    pub(super) async fn timed_out(&self, limits: &ConnectionLimits) -> TimeoutKind {
        loop {
            let deadline = self.activity.lock().deadline(limits);
            let now = Instant::now();
            let mut again = now + limits.header_timeout;
            if let Some((deadline, timed_out)) = deadline {
                if deadline <= now {
                    return timed_out;
                }
                again = again.min(deadline);
            }
            sleep_until(again).await;
        }
    }

    /// Asks the connection to close.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Waits until the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl RequestGuard {
    /// Records that the answer starts.
    pub(super) fn answer(&mut self, status: StatusCode) {
        self.is_answering = true;
        self.connection.activity.lock().answer(Instant::now(), status);
    }

    /// Records whether a part of the answer waits for the client to read it.
    pub(super) fn unread(&mut self, is_unread: bool) {
        if self.is_unread != is_unread {
            self.is_unread = is_unread;
            let mut activity = self.connection.activity.lock();
            activity.unread = if is_unread { activity.unread + 1 } else { activity.unread - 1 };
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.unread(false);
        self.connection.activity.lock().end(Instant::now(), self.is_answering);
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.0.activity.lock().uploading -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytesize::ByteSize;

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn limits() -> ConnectionLimits {
        ConnectionLimits {
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
    fn bytes_of_a_slow_head_do_not_extend_its_deadline() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        for second in 0..10 {
            activity.read(at(start, second));
            assert_eq!(activity.deadline(&limits()), Some((start + HEADER, TimeoutKind::Header)), "{second}");
        }
        activity.begin(at(start, 10), false);
        activity.end(at(start, 11), false);
        assert_eq!(activity.deadline(&limits()), Some((at(start, 11) + IDLE, TimeoutKind::Idle)));
        for second in 30..40 {
            activity.read(at(start, second));
            assert_eq!(activity.deadline(&limits()), Some((at(start, 30) + HEADER, TimeoutKind::Header)), "{second}");
        }
    }

    #[test]
    fn http2_frames_without_a_request_do_not_extend_the_deadline() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.begin(start, true);
        activity.end(at(start, 1), false);
        activity.read(at(start, 60));
        assert_eq!(activity.deadline(&limits()), Some((at(start, 1) + IDLE, TimeoutKind::Idle)));
    }

    #[test]
    fn an_answer_times_out_only_while_its_client_does_not_read_it() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.begin(start, false);
        assert_eq!(activity.deadline(&limits()), None);
        activity.answer(at(start, 200), StatusCode::OK);
        assert_eq!(activity.deadline(&limits()), Some((at(start, 200) + IDLE, TimeoutKind::Stalled)));
        activity.last_io = at(start, 270);
        assert_eq!(activity.deadline(&limits()), Some((at(start, 270) + IDLE, TimeoutKind::Stalled)));
    }

    #[test]
    fn eviction_prefers_unanswered_then_longest_waiting_connections() {
        let (strange, early, late, working, uploading) = (
            ConnectionState::new(),
            ConnectionState::new(),
            ConnectionState::new(),
            ConnectionState::new(),
            ConnectionState::new(),
        );
        for connection in [&early, &late] {
            connection.begin(Version::HTTP_11).answer(StatusCode::OK);
        }
        let _exchange = working.begin(Version::HTTP_11);
        let (_other, upload) = (uploading.begin(Version::HTTP_11), uploading.upload());
        late.activity.lock().since += Duration::from_secs(1);
        strange.activity.lock().since += Duration::from_secs(2);
        let priority = |connection: &ConnectionState| connection.priority().expect("it waits");
        assert!(priority(&strange) < priority(&early) && priority(&early) < priority(&late));
        assert!(working.priority().is_none() && !working.is_waiting());
        assert!(uploading.is_waiting(), "it waits for its client's body");
        drop(upload);
        assert!(!uploading.is_waiting());
    }

    #[test]
    fn a_client_error_does_not_count_as_an_answer() {
        let connection = ConnectionState::new();
        connection.begin(Version::HTTP_11).answer(StatusCode::UNAUTHORIZED);
        assert!(!connection.priority().expect("it waits").is_proven);
    }
}
