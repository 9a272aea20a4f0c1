//! What a record says: flat JSON members, so that any log collector can search them. A record holds names and digests,
//! never a profile value, a customer id, a credential or any part of a denied attempt.
//!
//! The order of the fields here is the order of the members in a record, and the hash chain covers those bytes: existing
//! members keep their order and form.

use std::fmt::Display;
use std::sync::Arc;

use http::HeaderValue;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::domain::{Digest, DisclosedFields, Event, EventId, LookupBy, Redelivery, ReplayId, TenantId};
use crate::metrics::{LabelSet, LookupResult};

/// The `type` of records about events.
pub(super) const EVENT: &str = "event";

/// One action to record, or one denied attempt.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AuditRecord {
    /// A lookup.
    Lookup(LookupRecord),
    /// A token that was not issued.
    Token(DeniedToken),
    /// An applied event.
    Event(EventRecord),
    /// A denied webhook request.
    Webhook(DeniedWebhook),
    /// An operator's command.
    Operator(OperatorRecord),
}

/// A lookup: the caller, the customer and the result.
#[derive(Clone, Debug, Serialize)]
pub struct LookupRecord {
    /// The request id, the same as in the answer and the log.
    #[serde(skip_serializing_if = "is_unreadable", serialize_with = "header")]
    pub request: Option<HeaderValue>,
    /// The authenticated caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Arc<str>>,
    /// The scope of its token, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Arc<str>>,
    /// The handle of the agent's token, if the caller is an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Arc<str>>,
    /// The tenant, if it is configured.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub tenant: Option<TenantId>,
    /// The digest of the customer or of the identifier, if the request names one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub key: Option<Digest>,
    /// What the customer is looked up by, if that is not its id.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "kind")]
    pub by: Option<LookupBy>,
    /// Whether the lookup was allowed.
    #[serde(flatten)]
    pub decision: Decision,
    /// The time from the head of the request to the answer, in milliseconds.
    pub duration_ms: f64,
}

/// A request for a token without a valid name and key, or with a scope that is wider than the caller's rights.
#[derive(Clone, Debug, Serialize)]
pub struct DeniedToken {
    /// The request id.
    #[serde(skip_serializing_if = "is_unreadable", serialize_with = "header")]
    pub request: Option<HeaderValue>,
    /// The caller, if it is authenticated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Arc<str>>,
    /// Why it was denied.
    #[serde(flatten, serialize_with = "denied")]
    pub reason: DenialReason,
}

/// Whether a lookup was allowed.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum Decision {
    /// It was allowed.
    Allowed {
        /// How it ended.
        #[serde(serialize_with = "label")]
        result: LookupResult,
        /// The profile fields in the answer.
        #[serde(rename = "fields", serialize_with = "names")]
        shown: DisclosedFields,
    },
    /// It was denied, for this class of reasons.
    #[serde(serialize_with = "only_reason")]
    Denied(DenialReason),
}

/// Why a request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialReason {
    /// The credential is missing or wrong.
    Unauthorized,
    /// The caller may not read this tenant.
    Tenant,
    /// The caller may not read these fields.
    Fields,
    /// The caller may not look customers up by this.
    LookupBy,
    /// The caller exceeded its rate.
    Rate,
    /// The requested scope is wider than the caller's rights.
    Scope,
    /// It is not known whether the token of an agent is valid, because Genesys does not answer.
    Unverified,
    /// The tenant is not configured.
    UnknownTenant,
    /// The event belongs to another tenant.
    ForeignTenant,
}

/// An event and its effect.
#[derive(Clone, Debug)]
pub struct EventRecord {
    /// The event.
    pub event: Arc<Event>,
    /// Its effect.
    pub verdict: EventEffect,
}

/// The effect of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventEffect {
    /// It took effect.
    Applied,
    /// Later events were known; its keys were evicted all the same.
    Outrun,
    /// It had taken effect before. It is recorded, as `recovered`, only if no record names it, because a crash happened
    /// between the effect and its record.
    Duplicate,
}

/// A denied webhook request.
#[derive(Clone, Debug, Serialize)]
pub struct DeniedWebhook {
    /// The request id.
    #[serde(skip_serializing_if = "is_unreadable", serialize_with = "header")]
    pub request: Option<HeaderValue>,
    /// The tenant, if it is configured.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub tenant: Option<TenantId>,
    /// Why it was denied.
    #[serde(flatten, serialize_with = "denied")]
    pub reason: DenialReason,
}

/// An operator's command.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorRecord {
    /// The request id, if the command came as a request.
    #[serde(skip_serializing_if = "is_unreadable", serialize_with = "header")]
    pub request: Option<HeaderValue>,
    /// The command.
    pub action: &'static str,
    /// How it ended: `ok`, or the stable name of the error.
    pub outcome: &'static str,
    /// The tenant in question.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub tenant: Option<TenantId>,
    /// The digest of the customer in question.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub key: Option<Digest>,
    /// The event that it published or was about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub event: Option<EventId>,
    /// The replay that it started or that ended.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional")]
    pub replay: Option<ReplayId>,
    /// The number of dead letters redriven or removed, or of events published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl OperatorRecord {
    /// The outcome of a request without a valid admin key.
    pub(super) const UNAUTHORIZED: &'static str = "unauthorized";

    /// A denied operator request, whatever the command.
    #[must_use]
    pub const fn denied(request: Option<HeaderValue>) -> Self {
        Self::new(request, "none", Self::UNAUTHORIZED)
    }

    /// A command and how it ended, without a tenant, key, event or replay.
    #[must_use]
    pub const fn new(request: Option<HeaderValue>, action: &'static str, outcome: &'static str) -> Self {
        Self { request, action, outcome, tenant: None, key: None, event: None, replay: None, count: None }
    }
}

impl EventRecord {
    /// Returns whether the event took effect again because the store had lost its effect.
    ///
    /// A repeated effect alone proves nothing: an in-memory store forgets everything at a restart.
    pub(super) fn is_restored(&self) -> bool {
        self.event.again == Some(Redelivery::Restored) && self.verdict != EventEffect::Duplicate
    }
}

impl Serialize for EventRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { event, verdict } = self;
        let mut record = serializer.serialize_map(None)?;
        record.serialize_entry("event", event.id.as_str())?;
        record.serialize_entry("digest", &Text(event.mark()))?;
        record.serialize_entry("tenant", &event.tenant)?;
        record.serialize_entry("keys", &event.keys.iter().map(Text).collect::<Vec<_>>())?;
        record.serialize_entry("kind", event.kind.as_str())?;
        record.serialize_entry("shape", event.shape.as_str())?;
        record.serialize_entry("verdict", verdict.as_str())?;
        match event.again {
            Some(Redelivery::Restored) => record.serialize_entry("replayed", &true)?,
            Some(Redelivery::Redriven) => record.serialize_entry("redriven", &true)?,
            Some(Redelivery::Replayed(id)) => {
                record.serialize_entry("replayed", &true)?;
                record.serialize_entry("replay", &Text(id))?;
            }
            None => {}
        }
        record.end()
    }
}

impl EventEffect {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Outrun => "outrun",
            Self::Duplicate => "recovered",
        }
    }
}

/// Serializes a value in its text form.
pub(super) struct Text<T>(pub(super) T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn optional<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(Text).serialize(serializer)
}

fn kind<S: Serializer>(value: &Option<LookupBy>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(LookupBy::as_str).serialize(serializer)
}

fn header<S: Serializer>(value: &Option<HeaderValue>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().and_then(|value| value.to_str().ok()).serialize(serializer)
}

fn is_unreadable(value: &Option<HeaderValue>) -> bool {
    value.as_ref().is_none_or(|value| value.to_str().is_err())
}

fn label<S: Serializer>(value: &LookupResult, serializer: S) -> Result<S::Ok, S::Error> {
    value.value().serialize(serializer)
}

fn names<S: Serializer>(shown: &DisclosedFields, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(shown.names())
}

fn only_reason<S: Serializer>(reason: &DenialReason, serializer: S) -> Result<S::Ok, S::Error> {
    let mut members = serializer.serialize_map(Some(1))?;
    members.serialize_entry("reason", reason)?;
    members.end()
}

fn denied<S: Serializer>(reason: &DenialReason, serializer: S) -> Result<S::Ok, S::Error> {
    Decision::Denied(*reason).serialize(serializer)
}
