//! What a record says: flat members, so that whatever collects logs can search them; names and digests, never a value
//! of a profile, a customer id, a credential or any part of an attempt that was turned away.

use std::sync::Arc;

use http::HeaderValue;

use crate::domain::{Digest, Event, EventId, Redelivery, ReplayId, Shown, TenantId, Timestamp};
use crate::metrics::{LabelSet, LookupResult};

use super::line::Line;

/// The type of records about the chain itself, one of which is the first in every file.
pub(super) const CHAIN: &str = "chain";

/// The type of records about events.
pub(super) const EVENT: &str = "event";

/// Something that someone did, or was kept from doing.
#[derive(Clone, Debug)]
pub enum Record {
    /// A lookup.
    Lookup(Lookup),
    /// An event that was applied.
    Event(Applied),
    /// A request to a webhook that was turned away.
    Webhook(DeniedWebhook),
    /// What an operator did.
    Operator(Operation),
}

/// A lookup: who asked for whom, and what came of it.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The id of the request, as its answer and the log name it.
    pub request: Option<HeaderValue>,
    /// The caller, if it has proved itself.
    pub caller: Option<Arc<str>>,
    /// The tenant, if a configured one was named.
    pub tenant: Option<TenantId>,
    /// The digest of the customer, if one was named.
    pub key: Option<Digest>,
    /// What was decided.
    pub decision: Decision,
}

/// What was decided about a lookup.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It was allowed, and ended so.
    Allowed {
        /// How it ended.
        result: LookupResult,
        /// What of the profile was handed out.
        shown: Shown,
    },
    /// It was denied; why, as a class.
    Denied(Reason),
}

/// Why someone was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No or a wrong credential.
    Unauthorized,
    /// Not this tenant.
    Tenant,
    /// Not these fields.
    Fields,
    /// Too often.
    Rate,
    /// A tenant that is not configured.
    UnknownTenant,
    /// An event of another tenant.
    ForeignTenant,
}

/// An event and what applying it came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The event.
    pub event: Arc<Event>,
    /// What it came to.
    pub verdict: Verdict,
}

/// What applying an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Applied,
    /// Later events were known; its keys were evicted all the same.
    Outrun,
    /// It had taken effect before. Recorded, as `recovered`, only if no record says so already: a crash fell between
    /// the effect and its record.
    Duplicate,
}

/// A request to a webhook that was turned away.
#[derive(Clone, Debug)]
pub struct DeniedWebhook {
    /// The id of the request.
    pub request: Option<HeaderValue>,
    /// The tenant, if a configured one was named.
    pub tenant: Option<TenantId>,
    /// Why.
    pub reason: Reason,
}

/// What an operator did.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The id of the request, if it was one.
    pub request: Option<HeaderValue>,
    /// The command.
    pub action: &'static str,
    /// How it ended: `ok`, or the stable name of what went wrong.
    pub outcome: &'static str,
    /// The tenant that it was about.
    pub tenant: Option<TenantId>,
    /// The digest of the customer that it was about.
    pub key: Option<Digest>,
    /// The event that it made, or that it was about.
    pub event: Option<EventId>,
    /// The replay that it began or that ended.
    pub replay: Option<ReplayId>,
    /// How many dead letters it put back or removed, or events it published.
    pub count: Option<u64>,
}

/// What the audit says of itself.
#[derive(Clone, Debug)]
pub(super) enum Note {
    /// A chain begins.
    Began {
        /// Why not with the one that was there.
        mistrusted: Option<String>,
    },
    /// A file begins in the middle of a chain.
    Continued {
        /// The name of the file before it.
        after: String,
    },
    /// The end of the file was no whole record, and was cut off.
    Cut {
        /// How long that was.
        bytes: u64,
        /// Its SHA-256.
        sha256: [u8; 32],
    },
    /// Records had to be dropped.
    Dropped(Dropped),
    /// The process starts.
    Started,
    /// The process stops.
    Stopped,
}

/// How many records were dropped, by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) lookups: u64,
    pub(super) events: u64,
    pub(super) others: u64,
}

impl Reason {
    /// Returns the name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Tenant => "tenant",
            Self::Fields => "fields",
            Self::Rate => "rate",
            Self::UnknownTenant => "unknown_tenant",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

impl Operation {
    /// An operator who was turned away, whatever it wanted.
    #[must_use]
    pub const fn denied(request: Option<HeaderValue>) -> Self {
        Self::new(request, "none", "unauthorized")
    }

    /// A command and how it ended, about nothing in particular.
    #[must_use]
    pub const fn new(request: Option<HeaderValue>, action: &'static str, outcome: &'static str) -> Self {
        Self { request, action, outcome, tenant: None, key: None, event: None, replay: None, count: None }
    }
}

impl Record {
    /// Writes what the record says.
    pub(super) fn write(&self, time: Timestamp, line: &mut Line<'_>) {
        line.plain("time", time);
        match self {
            Self::Lookup(lookup) => lookup.write(line),
            Self::Event(applied) => applied.write(line),
            Self::Webhook(denied) => {
                line.plain("type", "webhook");
                named(line, denied.request.as_ref());
                optional(line, "tenant", denied.tenant.as_ref());
                line.plain("decision", "denied");
                line.plain("reason", denied.reason.as_str());
            }
            Self::Operator(operation) => {
                line.plain("type", "operator");
                named(line, operation.request.as_ref());
                line.plain("action", operation.action);
                line.plain("outcome", operation.outcome);
                optional(line, "tenant", operation.tenant.as_ref());
                optional(line, "key", operation.key.as_ref());
                optional(line, "event", operation.event.as_ref());
                optional(line, "replay", operation.replay.as_ref());
                if let Some(count) = operation.count {
                    line.number("count", count);
                }
            }
        }
    }
}

impl Lookup {
    fn write(&self, line: &mut Line<'_>) {
        line.plain("type", "lookup");
        named(line, self.request.as_ref());
        if let Some(caller) = &self.caller {
            line.text("caller", caller);
        }
        optional(line, "tenant", self.tenant.as_ref());
        if let Some(key) = &self.key {
            line.hex("key", key.as_bytes());
        }
        match &self.decision {
            Decision::Allowed { result, shown } => {
                line.plain("decision", "allowed");
                line.plain("result", result.value());
                line.texts("fields", shown.names());
            }
            Decision::Denied(reason) => {
                line.plain("decision", "denied");
                line.plain("reason", reason.as_str());
            }
        }
    }
}

impl Applied {
    fn write(&self, line: &mut Line<'_>) {
        line.plain("type", EVENT);
        line.plain("event", &self.event.id);
        line.hex("digest", self.event.mark().as_bytes());
        line.plain("tenant", &self.event.tenant);
        line.hexes("keys", self.event.keys.iter().map(Digest::as_bytes));
        line.plain("kind", self.event.kind.as_str());
        line.plain("shape", self.event.shape.as_str());
        line.plain("verdict", self.verdict.as_str());
        match self.event.again {
            Some(Redelivery::Restored) => line.truth("replayed", true),
            Some(Redelivery::Redriven) => line.truth("redriven", true),
            Some(Redelivery::Replayed(id)) => {
                line.truth("replayed", true);
                line.plain("replay", id);
            }
            None => {}
        }
    }

    /// Tells whether it took effect again because the store had lost it. That an event took effect again says nothing
    /// by itself: a store in memory knows nothing of what was before a restart.
    pub(super) fn is_restored(&self) -> bool {
        self.event.again == Some(Redelivery::Restored) && self.verdict != Verdict::Duplicate
    }
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Outrun => "outrun",
            Self::Duplicate => "recovered",
        }
    }
}

impl Note {
    /// Writes what the audit says of itself.
    pub(super) fn write(&self, time: Timestamp, algorithm: &str, line: &mut Line<'_>) {
        line.plain("time", time);
        match self {
            Self::Began { mistrusted } => {
                line.plain("type", CHAIN);
                line.plain("action", "began");
                line.plain("algorithm", algorithm);
                if let Some(why) = mistrusted {
                    line.text("mistrusted", why);
                }
            }
            Self::Continued { after } => {
                line.plain("type", CHAIN);
                line.plain("action", "continued");
                line.plain("algorithm", algorithm);
                line.text("after", after);
            }
            Self::Cut { bytes, sha256 } => {
                line.plain("type", "cut");
                line.number("bytes", *bytes);
                line.hex("sha256", sha256);
            }
            Self::Dropped(dropped) => {
                line.plain("type", "dropped");
                line.number("records", dropped.total());
                line.number("lookups", dropped.lookups);
                line.number("events", dropped.events);
            }
            Self::Started => {
                line.plain("type", "process");
                line.plain("action", "started");
                line.plain("version", env!("CARGO_PKG_VERSION"));
                line.number("pid", u64::from(std::process::id()));
            }
            Self::Stopped => {
                line.plain("type", "process");
                line.plain("action", "stopped");
            }
        }
    }
}

impl Dropped {
    pub(super) const fn total(self) -> u64 {
        self.lookups + self.events + self.others
    }
}

/// Adds the id of a request.
fn named(line: &mut Line<'_>, request: Option<&HeaderValue>) {
    if let Some(request) = request.and_then(|request| request.to_str().ok()) {
        line.text("request", request);
    }
}

fn optional(line: &mut Line<'_>, name: &str, value: Option<&impl std::fmt::Display>) {
    if let Some(value) = value {
        line.plain(name, value);
    }
}
