//! Behaviour: settings that make the running sandbox slow, faulty or strict.
//!
//! `POST /sandbox/behaviour` changes the given keys and keeps the others; `null` resets a key to its default. An update
//! with an error changes nothing. Failures, malformed JSON and the rate limit apply to reads only: a test of an outage
//! must still be able to change a customer.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::SandboxState;
use super::contacts::JsonObject;
use super::errors::ApiError;
use super::oauth::ClientKind;

/// The keys of `POST /sandbox/behaviour`.
const KEYS: [&str; 23] = [
    "latency",
    "fail_ratio",
    "fail_status",
    "malformed",
    "retry_after",
    "read_lag",
    "search_lag",
    "stamp_reads",
    "event_lag",
    "event_jitter",
    "event_duplicates",
    "events",
    "rate_limit_per_minute",
    "permissions",
    "token_lifetime",
    "revoke_tokens",
    "transports",
    "clock_offset_seconds",
    "notifications",
    "sockets",
    "channel_lifetime",
    "cut_sockets",
    "announce_closing",
];
/// The longest latency or lag.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// The most copies of an event.
const MAX_DUPLICATES: u64 = 100;
/// The most permissions.
const MAX_PERMISSIONS: usize = 100;

/// How the sandbox behaves.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    /// The delay of each answer about contacts.
    pub(super) latency: Duration,
    fail_ratio: Option<f64>,
    fail_status: Option<StatusCode>,
    malformed: bool,
    retry_after: Option<u64>,
    /// The delay after which reads show a change.
    pub(super) read_lag: Duration,
    /// How much later than reads searches show a change.
    pub(super) search_lag: Duration,
    /// Whether a profile in an answer has the time of the read.
    pub(super) stamp_reads: bool,
    /// The minimum delay from a change to its event.
    pub(super) event_lag: Duration,
    /// A random extra delay for each copy, so that events overtake each other.
    pub(super) event_jitter: Duration,
    /// The number of extra copies of each event.
    pub(super) event_duplicates: usize,
    /// Whether changes post events.
    pub(super) events: bool,
    rate_limit_per_minute: Option<u32>,
    /// Overrides the permissions of the `sandbox` client.
    pub(super) permissions: Option<Vec<String>>,
    /// The lifetime of a new token, in seconds.
    pub(super) token_lifetime: u64,
    /// The transports of the topics of notifications.
    pub(super) transports: Vec<String>,
    /// How far the `Date` of answers is from the clock, in seconds.
    pub(super) clock_offset_seconds: i64,
    /// Whether changes are sent to sockets.
    pub(super) notifications: bool,
    /// Whether sockets are accepted.
    pub(super) sockets: bool,
    /// The lifetime of a new channel of notifications, in seconds.
    pub(super) channel_lifetime: u64,
}

impl Behaviour {
    /// Returns the default behaviour.
    pub(super) fn new(latency: Duration) -> Self {
        Self {
            latency,
            fail_ratio: None,
            fail_status: None,
            malformed: false,
            retry_after: None,
            read_lag: Duration::ZERO,
            search_lag: Duration::ZERO,
            stamp_reads: false,
            event_lag: Duration::ZERO,
            event_jitter: Duration::ZERO,
            event_duplicates: 0,
            events: true,
            rate_limit_per_minute: None,
            permissions: None,
            token_lifetime: 86_399,
            transports: vec!["Websocket".to_owned(), "EventBridge".to_owned()],
            clock_offset_seconds: 0,
            notifications: true,
            sockets: true,
            channel_lifetime: 86_400,
        }
    }

    /// Returns after which time everything shows a change.
    pub(super) fn longest_lag(&self) -> Duration {
        self.read_lag + self.search_lag
    }

    fn set(&mut self, key: &str, value: &Value, defaults: &Self) -> Result<(), ApiError> {
        let wrong = |expected| ApiError::bad_request(format!("{key} must be {expected}"));
        // Null restores the default, which `new` defines.
        macro_rules! set {
            ($field:ident, $parsed:expr, $expected:expr) => {
                self.$field =
                    if value.is_null() { defaults.$field.clone() } else { $parsed.ok_or_else(|| wrong($expected))? }
            };
        }
        match key {
            "latency" => set!(latency, duration(value), DURATION),
            "read_lag" => set!(read_lag, duration(value), DURATION),
            "search_lag" => set!(search_lag, duration(value), DURATION),
            "event_lag" => set!(event_lag, duration(value), DURATION),
            "event_jitter" => set!(event_jitter, duration(value), DURATION),
            "stamp_reads" => set!(stamp_reads, value.as_bool(), "true or false"),
            "fail_ratio" => {
                let ratio = value.as_f64().filter(|ratio| (0.0..=1.0).contains(ratio));
                set!(fail_ratio, ratio.map(Some), "a number from 0 to 1");
            }
            "fail_status" => {
                let code = whole(value, 400..=599).and_then(|code| StatusCode::from_u16(code as u16).ok());
                set!(fail_status, code.map(Some), "a status from 400 to 599");
            }
            "malformed" => set!(malformed, value.as_bool(), "true or false"),
            "events" => set!(events, value.as_bool(), "true or false"),
            "retry_after" => set!(retry_after, whole(value, 0..=86_400).map(Some), "seconds, 0 to 86400"),
            "event_duplicates" => {
                let copies = whole(value, 0..=MAX_DUPLICATES).map(|copies| copies as usize);
                set!(event_duplicates, copies, "a number from 0 to 100");
            }
            "rate_limit_per_minute" => {
                let limit = whole(value, 0..=u64::from(u32::MAX)).map(|limit| limit as u32);
                set!(rate_limit_per_minute, limit.map(Some), "a number of requests");
            }
            "permissions" => {
                set!(
                    permissions,
                    permissions(value).map(Some),
                    "a list of texts such as externalContacts:contact:view"
                );
            }
            "token_lifetime" => set!(token_lifetime, whole(value, 1..=172_800), "seconds, 1 to 172800"),
            "transports" => set!(transports, names(value), "a list of at most 10 names"),
            "clock_offset_seconds" => {
                let offset = value.as_i64().filter(|offset| offset.unsigned_abs() <= LONGEST.as_secs());
                set!(clock_offset_seconds, offset, "a number of seconds, at most a day");
            }
            "notifications" => set!(notifications, value.as_bool(), "true or false"),
            "sockets" => set!(sockets, value.as_bool(), "true or false"),
            "channel_lifetime" => set!(channel_lifetime, whole(value, 1..=86_400), "seconds, 1 to 86400"),
            "revoke_tokens" | "cut_sockets" | "announce_closing" if value.is_null() || value.is_boolean() => {}
            "revoke_tokens" | "cut_sockets" | "announce_closing" => return Err(wrong("true or false")),
            _ => {
                let (key, known) = (key.chars().take(64).collect::<String>(), KEYS.join(", "));
                return Err(ApiError::bad_request(format!("unknown key {key:?}; known keys are {known}")));
            }
        }
        Ok(())
    }

    fn shown(&self) -> Value {
        let text = |duration| humantime::format_duration(duration).to_string();
        json!({
            "latency": text(self.latency), "fail_ratio": self.failing(),
            "fail_status": self.fail_status.map(|status| status.as_u16()), "malformed": self.malformed,
            "retry_after": self.retry_after, "read_lag": text(self.read_lag), "search_lag": text(self.search_lag), "event_lag": text(self.event_lag),
            "stamp_reads": self.stamp_reads, "event_jitter": text(self.event_jitter),
            "event_duplicates": self.event_duplicates, "events": self.events,
            "rate_limit_per_minute": self.rate_limit_per_minute, "permissions": self.permissions,
            "token_lifetime": self.token_lifetime, "transports": self.transports,
            "clock_offset_seconds": self.clock_offset_seconds, "notifications": self.notifications,
            "sockets": self.sockets, "channel_lifetime": self.channel_lifetime,
        })
    }

    /// Returns the ratio of failing reads; a status without a ratio fails all of them.
    fn failing(&self) -> f64 {
        self.fail_ratio.unwrap_or(if self.fail_status.is_some() { 1.0 } else { 0.0 })
    }
}

impl SandboxState {
    /// Returns an injected failure instead of the answer to this read, if the behaviour asks for one.
    pub(super) fn injected_failure(&self, client: ClientKind) -> Option<Response> {
        let behaviour = self.behaviour();
        let exceeded = behaviour
            .rate_limit_per_minute
            .and_then(|per_minute| self.rate_limit.take(client, per_minute, self.clock.now()).err());
        if let Some(wait) = exceeded {
            let seconds = behaviour.retry_after.unwrap_or_else(|| wait.as_millis().div_ceil(1_000) as u64);
            Some(ApiError::too_many_requests(seconds).into_response())
        } else if rand::random::<f64>() < behaviour.failing() {
            let status = behaviour.fail_status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(ApiError::injected(status, behaviour.retry_after).into_response())
        } else if behaviour.malformed {
            Some(([(header::CONTENT_TYPE, "application/json")], "{\"id\":\"0000000").into_response())
        } else {
            None
        }
    }
}

/// Answers `GET /sandbox/behaviour`.
pub(super) async fn show(State(sandbox): State<Arc<SandboxState>>) -> Json<Value> {
    Json(sandbox.behaviour().shown())
}

/// Answers `POST /sandbox/behaviour` with the new behaviour.
pub(super) async fn update(
    State(sandbox): State<Arc<SandboxState>>,
    JsonObject(update): JsonObject,
) -> Result<Json<Value>, ApiError> {
    let mut current = sandbox.behaviour.lock();
    let mut changed = Behaviour::clone(&current);
    for (key, value) in &update {
        changed.set(key, value, &Behaviour::new(sandbox.latency))?;
    }
    let asks = |key| update.get(key) == Some(&Value::Bool(true));
    if asks("revoke_tokens") {
        sandbox.tokens.revoke_all();
    }
    if asks("cut_sockets") || !changed.sockets {
        sandbox.channels.cut();
    }
    if asks("announce_closing") {
        sandbox.channels.announce_closing();
    }
    *current = Arc::new(changed);
    Ok(Json(current.shown()))
}

const DURATION: &str = "a duration of at most a day, such as \"150ms\", or a number of milliseconds";

fn duration(value: &Value) -> Option<Duration> {
    let duration = match value.as_str() {
        Some(text) => humantime::parse_duration(text).ok()?,
        None => Duration::from_millis(value.as_u64()?),
    };
    (duration <= LONGEST).then_some(duration)
}

fn whole(value: &Value, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    value.as_u64().filter(|number| range.contains(number))
}

fn permissions(value: &Value) -> Option<Vec<String>> {
    let permission = |text: &str| text.split(':').count() == 3 && text.len() <= 256;
    let list = value.as_array().filter(|list| list.len() <= MAX_PERMISSIONS)?;
    list.iter().map(|text| text.as_str().filter(|text| permission(text)).map(str::to_owned)).collect()
}

fn names(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|list| list.len() <= 10)?;
    list.iter().map(|text| text.as_str().filter(|text| text.len() <= 64).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_key_can_be_reset_and_every_shown_key_is_known() {
        let defaults = Behaviour::new(Duration::from_millis(150));
        for key in KEYS {
            assert!(defaults.clone().set(key, &Value::Null, &defaults).is_ok(), "{key}");
        }
        let shown = defaults.shown();
        assert!(shown.as_object().unwrap().keys().all(|key| KEYS.contains(&key.as_str())), "{shown}");
        assert_eq!(shown["latency"], "150ms");
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let defaults = Behaviour::new(Duration::from_millis(150));
        let mut copy = Behaviour::new(Duration::ZERO);
        for (key, value) in defaults.shown().as_object().unwrap() {
            copy.set(key, value, &defaults).unwrap();
        }
        assert_eq!(copy.shown(), defaults.shown());
    }
}
