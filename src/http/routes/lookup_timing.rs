//! How long a lookup took, and where: for the log, the header `Server-Timing` (W3C Server Timing) and the audit.
//!
//! The times are read from the clock three times for each lookup; text is made of them only for a slow lookup, and for a
//! caller that sees them.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::lookup::Phases;
use crate::sampled::Sampled;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The times of a lookup in progress.
#[derive(Debug)]
pub(super) struct LookupTiming {
    started: Instant,
    /// From which duration on it is logged; zero: never.
    slow: Duration,
    /// How long authentication took.
    auth: Duration,
    /// Whether the caller sees the times.
    is_visible: bool,
    /// When the lookup itself began: after the request had arrived and was authorized.
    began: Option<Instant>,
    phases: Phases,
}

/// The times of a lookup that has ended.
#[derive(Debug)]
pub(super) struct ElapsedLookup {
    timing: LookupTiming,
    ended: Instant,
}

impl LookupTiming {
    pub(super) fn start(slow: Duration) -> Self {
        let (auth, phases) = (Duration::ZERO, Phases::default());
        Self { started: Instant::now(), slow, auth, is_visible: false, began: None, phases }
    }

    pub(super) fn admitted(&mut self, is_visible: bool) {
        (self.auth, self.is_visible) = (self.started.elapsed(), is_visible);
    }

    pub(super) fn looking_up(&mut self) -> &mut Phases {
        self.began = Some(Instant::now());
        &mut self.phases
    }

    pub(super) fn end(self) -> ElapsedLookup {
        ElapsedLookup { timing: self, ended: Instant::now() }
    }
}

impl ElapsedLookup {
    /// Returns the time from the head of the request to the answer, in milliseconds.
    pub(super) fn total_ms(&self) -> f64 {
        millis(self.ended - self.timing.started)
    }

    /// Logs a lookup that took too long. The time in which the body of the request arrived does not count.
    pub(super) fn log_if_slow(&self, request: Option<&HeaderValue>, caller: Option<&str>) {
        static LINE: Sampled = Sampled::new();
        let LookupTiming { slow, auth, .. } = self.timing;
        let Some((total, phases)) = self.phases().filter(|(total, _)| !slow.is_zero() && *total >= slow) else {
            return;
        };
        let Some(suppressed) = LINE.due() else { return };
        let request_id = request.and_then(|request| request.to_str().ok());
        let [store_ms, wait_ms, token_ms, connect_ms, fetch_ms, fill_ms] = phases.map(|(_, time)| millis(time));
        let (total_ms, auth_ms) = (millis(total), millis(auth));
        tracing::warn!(
            request_id,
            caller,
            total_ms,
            auth_ms,
            store_ms,
            wait_ms,
            token_ms,
            connect_ms,
            fetch_ms,
            fill_ms,
            suppressed,
            "a lookup was slow"
        );
    }

    /// Adds the header, if the caller sees the times.
    pub(super) fn write_header(&self, headers: &mut HeaderMap) {
        let Some((total, phases)) = self.phases().filter(|_| self.timing.is_visible) else { return };
        let mut text = format!("total;dur={}, auth;dur={}", millis(total), millis(self.timing.auth));
        for (name, time) in phases.into_iter().filter(|(_, time)| !time.is_zero()) {
            // Writing to a string does not fail.
            let _ = write!(text, ", {name};dur={}", millis(time));
        }
        headers.extend(HeaderValue::try_from(text).ok().map(|value| (SERVER_TIMING, value)));
    }

    /// Returns the whole time and the phases after authentication; `None` if nothing was looked up.
    fn phases(&self) -> Option<(Duration, [(&'static str, Duration); 6])> {
        let lookup = self.ended - self.timing.began?;
        Some((self.timing.auth + lookup, self.timing.phases.of(lookup)))
    }
}

/// Returns milliseconds, rounded to microseconds.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}
