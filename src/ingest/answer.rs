//! What a route asks of ingest, and the results.

use std::time::Duration;

use crate::domain::EventId;
use crate::metrics::IngestOutcome;

use super::malformed::Malformed;
use super::shapes::SenderId;

/// The shapes that a route accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptedShapes {
    /// Only the flat form.
    Flat,
    /// All shapes.
    Any,
}

/// The result of an accepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Whether the request was an array.
    pub batch: bool,
    /// The result of each event, in the order of the request.
    pub items: Vec<Disposition>,
}

/// The result of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The event is durable.
    Queued {
        /// Its id in the log, the audit and the queue.
        id: EventId,
        /// Its id at the sender, if it has one.
        sent: Option<SenderId>,
    },
    /// The event changes no profile, for this reason.
    Ignored(&'static str),
    /// The event cannot be read; only in an array.
    Rejected(Malformed),
}

/// Why a request was refused. Nothing was published, except possibly in the case [`Unavailable`](Self::Unavailable).
#[derive(Clone, Debug, thiserror::Error)]
pub enum IngestError {
    /// The tenant is not configured.
    #[error("unknown tenant")]
    UnknownTenant,
    /// No authentication scheme of the tenant accepts the request.
    #[error("no or wrong credential")]
    Unauthorized,
    /// The request is malformed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An event names another tenant than the authenticated one.
    #[error("the event is of another tenant")]
    Foreign,
    /// The queue did not store all events in time; the sender must post the request again.
    #[error("the event could not be made durable")]
    Unavailable {
        /// How long the sender should wait.
        retry_after: Duration,
    },
}

/// Returns the metric label for a request.
pub(super) fn outcome(answer: &Result<Accepted, IngestError>) -> IngestOutcome {
    match answer {
        Ok(accepted) if !accepted.items.iter().any(|item| matches!(item, Disposition::Queued { .. })) => {
            IngestOutcome::Ignored
        }
        Ok(_) => IngestOutcome::Queued,
        Err(IngestError::Malformed(_)) => IngestOutcome::Malformed,
        Err(IngestError::Foreign) => IngestOutcome::Foreign,
        Err(IngestError::Unavailable { .. }) => IngestOutcome::Unavailable,
        Err(IngestError::UnknownTenant | IngestError::Unauthorized) => IngestOutcome::Unauthorized,
    }
}
