//! Ingest: from a posted request to durable events.
//!
//! # What it promises
//!
//! Accepted means durable: [`Ingest::accept`] returns only when every event of the request is on the queue;
//! all of them, or none is promised and the sender is asked to come again. What is published holds nothing
//! personal.
//!
//! # The steps
//!
//! Authenticate over the raw bytes ([`authenticate`]) → read the shape ([`shapes`]) → refuse what names
//! another tenant → publish. Nothing of a request is believed before its sender is; on the flat route only
//! the tenant's name is read earlier, to know whose secrets to try.

pub mod authenticate;
pub mod malformed;
pub mod shapes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use crate::clock::SharedClock;
use crate::domain::{Event, EventId, KeyHasher, Shape, TenantId, Traceparent};
use crate::invalid::InvalidSetting;
use crate::metrics::{Door, IngestOutcome, Metrics, observe};
use crate::queue::{self, Publisher};
use crate::reload::Reloadable;
use crate::spans;

use authenticate::{Authenticator, Proof};
use malformed::Malformed;
use shapes::{Item, Posted};

/// The longest that publishing may take: EventBridge gives a request 5 s.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(4);

/// The configured tenants, and how the sources of each prove themselves.
#[derive(Debug)]
pub struct Sources(HashMap<TenantId, Vec<Authenticator>>);

/// The ingest flow.
#[derive(Debug)]
pub struct Ingest {
    sources: Reloadable<Sources>,
    hashers: Vec<KeyHasher>,
    publisher: Arc<dyn Publisher>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

/// Which shapes a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The flat form only.
    Flat,
    /// Any of them.
    Any,
}

/// What became of a request's events, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The request was an array.
    pub batch: bool,
    /// What became of each event.
    pub items: Vec<Disposition>,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It is durable.
    Queued(EventId),
    /// It is of no interest.
    Ignored(&'static str),
}

/// Why a request was refused; nothing of it was published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The tenant is not configured.
    #[error("unknown tenant")]
    UnknownTenant,
    /// No scheme of the tenant accepts it.
    #[error("no or wrong credential")]
    Unauthorized,
    /// It is not as expected.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It names another tenant than the one whose sender posted it.
    #[error("the event is of another tenant")]
    Foreign,
    /// It could not be made durable; the sender must come again.
    #[error("the event could not be made durable")]
    Unavailable {
        /// When to come again.
        retry_after: Duration,
    },
}

impl Sources {
    /// Makes the sources of their configuration.
    ///
    /// # Errors
    ///
    /// A webhook's configuration is unusable.
    pub fn new<'a>(
        tenants: impl IntoIterator<Item = (TenantId, &'a [authenticate::Config])>,
    ) -> Result<Self, InvalidSetting> {
        let made = |(tenant, webhooks): (TenantId, &[authenticate::Config])| {
            let authenticators = webhooks.iter().map(Authenticator::new).collect::<Result<_, _>>();
            let authenticators = authenticators.map_err(|error: InvalidSetting| error.within("tenant.webhook"))?;
            Ok((tenant, authenticators))
        };
        Ok(Self(tenants.into_iter().map(made).collect::<Result<_, _>>()?))
    }
}

impl Ingest {
    /// Makes the ingest flow. `hashers` holds the present key scheme first, then those that it replaces.
    #[must_use]
    pub fn new(
        sources: Reloadable<Sources>,
        hashers: Vec<KeyHasher>,
        publisher: Arc<dyn Publisher>,
        clock: SharedClock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { sources, hashers, publisher, clock, metrics }
    }

    /// Tells whether a tenant is configured.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.sources.load().0.contains_key(tenant)
    }

    /// Takes one request, posted for `tenant`.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], in this order of precedence: unknown tenant, unauthorized, malformed, foreign,
    /// unavailable. Nothing was published unless it is the last, which may have published some.
    pub async fn accept(
        &self,
        tenant: &TenantId,
        expected: Expected,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Accepted, Refusal> {
        let started = Instant::now();
        let answer = self.take(tenant, expected, headers, body).await;
        observe(&self.metrics.ingest_duration, started.elapsed());
        answer
    }

    async fn take(
        &self,
        tenant: &TenantId,
        expected: Expected,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Accepted, Refusal> {
        let sources = self.sources.keep();
        let authenticators = sources.0.get(tenant).ok_or(Refusal::UnknownTenant)?;
        let Some(proof) = authenticate::verify(authenticators, headers, body, self.clock.now()) else {
            tracing::warn!(%tenant, "a webhook without a valid credential was refused");
            self.metrics.auth_failures.with(Door::Webhook).increment(1);
            self.count(Shape::Flat, IngestOutcome::Unauthorized, 1);
            return Err(Refusal::Unauthorized);
        };
        let span = spans::webhook(headers, tenant);
        let posted = match expected {
            Expected::Flat => shapes::read_flat(body),
            Expected::Any => shapes::read_any(headers, body),
        };
        let taken = self.take_proved(tenant, proof, posted, spans::heard(headers), &span);
        let answer = taken.instrument(span.clone()).await;
        spans::accepted(&span, outcome(&answer));
        answer
    }

    /// Takes a request whose sender is known.
    async fn take_proved(
        &self,
        tenant: &TenantId,
        proof: Proof,
        posted: Result<Posted, Malformed>,
        heard: Option<Traceparent>,
        span: &Span,
    ) -> Result<Accepted, Refusal> {
        let mut posted = posted.inspect_err(|malformed| {
            tracing::info!(%tenant, field = malformed.field, "a malformed webhook was refused");
            self.count(Shape::Flat, IngestOutcome::Malformed, 1);
        })?;
        if let Some(message) = proof.message {
            posted.name(&message);
        }
        if let Some(shape) = names_another(&posted, tenant) {
            tracing::warn!(%tenant, "a webhook that names another tenant was refused");
            self.count(shape, IngestOutcome::Foreign, 1);
            return Err(Refusal::Foreign);
        }
        self.publish(tenant, heard, posted, span).await
    }

    async fn publish(
        &self,
        tenant: &TenantId,
        heard: Option<Traceparent>,
        posted: Posted,
        span: &Span,
    ) -> Result<Accepted, Refusal> {
        let received_at = self.clock.now();
        let (mut events, mut items, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for item in posted.items {
            match item {
                Item::Announced(announcement) => {
                    let mut event = announcement.into_event(tenant, &self.hashers, received_at);
                    event.traceparent = heard;
                    items.push(Disposition::Queued(event.id.clone()));
                    shapes.push(event.shape);
                    events.push(event);
                }
                Item::Ignored { shape, reason } => {
                    self.count(shape, IngestOutcome::Ignored, 1);
                    items.push(Disposition::Ignored(reason));
                }
            }
        }
        spans::posted(span, &events);
        let outcome = self.make_durable(tenant, &mut events).await;
        let counted = if outcome.is_ok() { IngestOutcome::Queued } else { IngestOutcome::Unavailable };
        for shape in shapes {
            self.count(shape, counted, 1);
        }
        outcome.map(|()| Accepted { batch: posted.batch, items })
    }

    async fn make_durable(&self, tenant: &TenantId, events: &mut [Event]) -> Result<(), Refusal> {
        if events.is_empty() {
            return Ok(());
        }
        let published = timeout(PUBLISH_DEADLINE, queue::traced::publish(self.publisher.as_ref(), events)).await;
        let error = match published {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_elapsed) => queue::Error::Unavailable { reason: "no confirmation in time".to_owned() },
        };
        let first = events.first().map(|event| tracing::field::display(&event.id));
        tracing::error!(%tenant, events = events.len(), event = first, %error, "events could not be made durable, the sender is asked to come again");
        Err(Refusal::Unavailable { retry_after: error.retry_after() })
    }

    fn count(&self, shape: Shape, outcome: IngestOutcome, events: u64) {
        self.metrics.ingest_events.with(shape).with(outcome).increment(events);
    }
}

/// Returns what is counted of a request whose sender is known.
fn outcome(answer: &Result<Accepted, Refusal>) -> IngestOutcome {
    match answer {
        Ok(accepted) if accepted.items.iter().all(|item| matches!(item, Disposition::Ignored(_))) => {
            IngestOutcome::Ignored
        }
        Ok(_) => IngestOutcome::Queued,
        Err(Refusal::Malformed(_)) => IngestOutcome::Malformed,
        Err(Refusal::Foreign) => IngestOutcome::Foreign,
        Err(Refusal::Unavailable { .. }) => IngestOutcome::Unavailable,
        Err(Refusal::UnknownTenant | Refusal::Unauthorized) => IngestOutcome::Unauthorized,
    }
}

/// Returns the shape of the first event that names another tenant.
fn names_another(posted: &Posted, tenant: &TenantId) -> Option<Shape> {
    posted.items.iter().find_map(|item| match item {
        Item::Announced(announcement) => {
            let foreign = announcement.tenant.as_ref().is_some_and(|named| named != tenant);
            foreign.then_some(announcement.shape)
        }
        Item::Ignored { .. } => None,
    })
}
