//! The label sets of the catalogue. Each is a closed set, so no series can contain data of a tenant.

use crate::domain::{Kind, Shape};

/// A closed set of label values.
pub trait LabelSet: Copy + 'static {
    /// All values.
    const ALL: &'static [Self];

    /// Returns the value as in a scrape.
    fn value(self) -> &'static str;

    /// Returns the position in [`Self::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = concat!("`", $value, "`")] $(#[$vdoc])* $variant),+ }

        impl LabelSet for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labels!(
    /// How a lookup ended.
    LookupResult {
        Hit = "hit", Stale = "stale", Negative = "negative", Tombstone = "tombstone", Miss = "miss",
        Coalesced = "coalesced", Bypass = "bypass", Error = "error",
    }
);
labels!(
    /// How a request to Genesys ended.
    UpstreamOutcome {
        Found = "found", Absent = "absent", Unusable = "unusable", Denied = "denied", Throttled = "throttled",
        Privileges = "privileges",
        BudgetSpent = "budget_spent", BreakerOpen = "breaker_open", Failed = "failed",
        Unreachable = "unreachable", Timeout = "timeout",
    }
);
labels!(
    /// Whether an operation succeeded.
    Outcome { Ok = "ok", Error = "error" }
);
labels!(
    /// The result of a check of a token's privileges.
    PrivilegeOutcome { Ok = "ok", Refused = "refused", Error = "error" }
);
labels!(
    /// The result of a verification of an agent's token.
    AgentOutcome {
        Valid = "valid",
        /// It is not valid, or of another organisation.
        Refused = "refused",
        /// Its share of the budget is spent, the breaker is open, or Genesys limits the agent's rate.
        Limited = "limited",
        Failed = "failed",
    }
);
labels!(
    /// The result of a posted event.
    IngestOutcome {
        Queued = "queued", Ignored = "ignored", Unauthorized = "unauthorized", Malformed = "malformed",
        Foreign = "foreign", Unavailable = "unavailable",
    }
);
labels!(
    /// How a search for changes that were missed ended.
    CatchUpOutcome {
        Complete = "complete",
        /// Genesys refuses its audits, for example without the permission.
        Refused = "refused",
        /// It is continued later.
        Early = "early",
    }
);
labels!(
    /// Which part of a posted event was not believed.
    IngestDoubt {
        /// Its time is further in the future than `ingest.max_future`.
        FutureTime = "future_time",
        /// It is a deletion without a recent time, signed without a timestamp: it writes no tombstone.
        OldDeletion = "old_deletion",
        /// An optional field of it cannot be read.
        UnreadableField = "unreadable_field",
        /// The request has `ce-*` headers that its signature does not cover.
        UnsignedHeaders = "unsigned_headers",
    }
);
labels!(
    /// The result of a delivered event.
    ConsumerOutcome {
        Applied = "applied", Duplicate = "duplicate", Outrun = "outrun", Retried = "retried",
        DeadLettered = "dead_lettered",
    }
);
labels!(
    /// An operation of the store port.
    StoreOp {
        Get = "get", Lease = "lease", Fill = "fill", Release = "release", Invalidate = "invalidate", WriteTombstone = "bury",
        Ping = "ping", ReplicationHistory = "lineage", Inspect = "inspect", Clear = "clear", Generations = "generations",
    }
);
labels!(
    /// The result of a fill.
    FillOutcome { Stored = "stored", Unsettled = "unsettled", Refused = "refused" }
);
labels!(
    /// What a lookup made of the pointer of an identifier.
    PointerOutcome {
        /// The entry of its customer confirms it.
        Believed = "believed",
        /// It does not, so Genesys is asked again.
        Hint = "hint",
        /// Genesys names another customer.
        Moved = "moved",
    }
);
labels!(
    /// Why a background fetch runs.
    RefreshCause {
        /// The record is close to its expiry.
        Early = "early",
        /// The record is from before a clear of its tenant.
        Cleared = "cleared",
        /// A tombstone, to check whether the customer exists again.
        Tombstone = "tombstone",
    }
);
labels!(
    /// What became of a customer that was to be fetched ahead of time.
    PrefetchOutcome {
        Fetched = "fetched",
        /// The store held it, or another lookup fetched it.
        Present = "present",
        /// The queue was full, or the process stopped.
        Dropped = "dropped",
        /// The budget allowed no request in time.
        Expired = "expired",
        Failed = "failed",
    }
);
labels!(
    /// The result of an audit record.
    AuditOutcome {
        Written = "written", Dropped = "dropped",
        /// Strict mode: the action was refused.
        Refused = "refused",
    }
);
labels!(
    /// A listener.
    Listener { Public = "public", Admin = "admin" }
);
labels!(
    /// Why the connection of a client ended.
    ConnectionEnd {
        Closed = "closed", Failed = "failed", HandshakeFailed = "handshake_failed",
        HandshakeTimeout = "handshake_timeout", HeaderTimeout = "header_timeout", Idle = "idle", Stalled = "stalled",
        Evicted = "evicted", Refused = "refused",
    }
);
labels!(
    /// The result of a recorded span.
    SpanOutcome { Exported = "exported", Dropped = "dropped" }
);
labels!(
    /// An endpoint that checks credentials.
    AuthEndpoint { Webhook = "webhook", Lookup = "lookup", Admin = "admin", Token = "token" }
);

impl LabelSet for Kind {
    const ALL: &'static [Self] = &Kind::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl LabelSet for Shape {
    const ALL: &'static [Self] = &Shape::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        self as usize
    }
}
