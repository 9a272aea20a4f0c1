//! Behaviour: how the sandbox is made slow, wrong, strict or forgetful while it runs.
//!
//! `POST /sandbox/behaviour` changes the keys that it names and leaves the others; `null` puts a key
//! back. An update with anything wrong in it changes nothing. Failures, broken JSON and the rate
//! limit meet reads only: whoever tests an outage must still be able to change a customer in it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::Genesys;
use super::contacts::Object;
use super::errors::Refusal;
use super::oauth::Role;

/// Everything that can be asked of `POST /sandbox/behaviour`.
const KEYS: [&str; 15] = [
    "latency",
    "fail_ratio",
    "fail_status",
    "malformed",
    "retry_after",
    "read_lag",
    "stamp_reads",
    "event_lag",
    "event_jitter",
    "event_duplicates",
    "events",
    "rate_limit_per_minute",
    "permissions",
    "token_lifetime",
    "revoke_tokens",
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
    /// How long an answer about contacts takes on its way back.
    pub(super) latency: Duration,
    fail_ratio: Option<f64>,
    fail_status: Option<StatusCode>,
    malformed: bool,
    retry_after: Option<u64>,
    /// How much later than a change reads show it.
    pub(super) read_lag: Duration,
    /// Whether a profile that is read tells when it was read.
    pub(super) stamp_reads: bool,
    /// How much later than a change its event is posted, at least.
    pub(super) event_lag: Duration,
    /// How much later than that it may be posted, at random for each copy: so events overtake each other.
    pub(super) event_jitter: Duration,
    /// How often an event is posted on top of the first time.
    pub(super) event_duplicates: usize,
    /// Whether changes post events.
    pub(super) events: bool,
    rate_limit_per_minute: Option<u32>,
    /// The `sandbox` client's permissions, instead of its own.
    pub(super) permissions: Option<Vec<String>>,
    /// How long a new token lives, in seconds.
    pub(super) token_lifetime: u64,
}

impl Behaviour {
    /// Returns the behaviour of a sandbox that nothing was asked of.
    pub(super) const fn new(latency: Duration) -> Self {
        Self {
            latency,
            fail_ratio: None,
            fail_status: None,
            malformed: false,
            retry_after: None,
            read_lag: Duration::ZERO,
            stamp_reads: false,
            event_lag: Duration::ZERO,
            event_jitter: Duration::ZERO,
            event_duplicates: 0,
            events: true,
            rate_limit_per_minute: None,
            permissions: None,
            token_lifetime: 86_399,
        }
    }

    fn set(&mut self, key: &str, value: &Value, defaults: &Self) -> Result<(), Refusal> {
        let wrong = |expected| Refusal::bad_request(format!("{key} must be {expected}"));
        // Null puts the default back, which `new` says once.
        macro_rules! set {
            ($field:ident, $parsed:expr, $expected:expr) => {
                self.$field =
                    if value.is_null() { defaults.$field.clone() } else { $parsed.ok_or_else(|| wrong($expected))? }
            };
        }
        match key {
            "latency" => set!(latency, duration(value), DURATION),
            "read_lag" => set!(read_lag, duration(value), DURATION),
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
            "revoke_tokens" if value.is_null() || value.is_boolean() => {}
            "revoke_tokens" => return Err(wrong("true or false")),
            _ => {
                let (key, known) = (key.chars().take(64).collect::<String>(), KEYS.join(", "));
                return Err(Refusal::bad_request(format!("unknown key {key:?}; known are {known}")));
            }
        }
        Ok(())
    }

    fn shown(&self) -> Value {
        let text = |duration| humantime::format_duration(duration).to_string();
        json!({
            "latency": text(self.latency), "fail_ratio": self.failing(),
            "fail_status": self.fail_status.map(|status| status.as_u16()), "malformed": self.malformed,
            "retry_after": self.retry_after, "read_lag": text(self.read_lag), "event_lag": text(self.event_lag),
            "stamp_reads": self.stamp_reads, "event_jitter": text(self.event_jitter),
            "event_duplicates": self.event_duplicates, "events": self.events,
            "rate_limit_per_minute": self.rate_limit_per_minute, "permissions": self.permissions,
            "token_lifetime": self.token_lifetime,
        })
    }

    /// A status without a ratio fails every read.
    fn failing(&self) -> f64 {
        self.fail_ratio.unwrap_or(if self.fail_status.is_some() { 1.0 } else { 0.0 })
    }
}

impl Genesys {
    /// Decides whether this read is answered with something else than what it asked for.
    pub(super) fn fault(&self, role: Role) -> Option<Response> {
        let behaviour = self.behaviour();
        let spent = behaviour
            .rate_limit_per_minute
            .and_then(|per_minute| self.rate_limit.take(role, per_minute, self.clock.now()).err());
        if let Some(wait) = spent {
            let seconds = behaviour.retry_after.unwrap_or_else(|| wait.as_millis().div_ceil(1_000) as u64);
            Some(Refusal::too_many_requests(seconds).into_response())
        } else if rand::random::<f64>() < behaviour.failing() {
            let status = behaviour.fail_status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(Refusal::on_purpose(status, behaviour.retry_after).into_response())
        } else if behaviour.malformed {
            Some(([(header::CONTENT_TYPE, "application/json")], "{\"id\":\"0000000").into_response())
        } else {
            None
        }
    }
}

/// Answers `GET /sandbox/behaviour`.
pub(super) async fn show(State(genesys): State<Arc<Genesys>>) -> Json<Value> {
    Json(genesys.behaviour().shown())
}

/// Answers `POST /sandbox/behaviour` with the behaviour from now on.
pub(super) async fn update(
    State(genesys): State<Arc<Genesys>>,
    Object(update): Object,
) -> Result<Json<Value>, Refusal> {
    let mut present = genesys.behaviour.lock();
    let mut changed = Behaviour::clone(&present);
    for (key, value) in &update {
        changed.set(key, value, &Behaviour::new(genesys.latency))?;
    }
    if update.get("revoke_tokens") == Some(&Value::Bool(true)) {
        genesys.tokens.revoke_all();
    }
    *present = Arc::new(changed);
    Ok(Json(present.shown()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_key_can_be_put_back_and_every_shown_key_is_known() {
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
