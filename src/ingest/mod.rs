//! Ingest: from a posted request to durable events.
//!
//! # What it promises
//!
//! Accepted means durable ([`rules::durability`](crate::rules#durability)): [`Ingest::accept`] succeeds only after the
//! queue has stored every event of the request. Otherwise it promises nothing for any of them, and the sender must post
//! the request again. Published events contain no personal data.
//!
//! # The steps
//!
//! Authenticate the raw bytes ([`authenticate`]) → parse the shape ([`shapes`]) → refuse events that name another
//! tenant → publish. No part of a request is trusted before its sender is authenticated. One part is read earlier: on
//! the flat route the tenant id, because it selects the secrets.

mod answer;
pub mod audits;
pub mod authenticate;
mod limits;
pub mod malformed;
mod notifications;
mod prewarm;
pub mod shapes;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use crate::clock::SharedClock;
use crate::domain::{Digest, Event, Identifier, IdentifierHasher, KeyHasher, Shape, TenantId, Timestamp, Traceparent};
use crate::metrics::{AuthEndpoint, IngestDoubt, IngestOutcome, Metrics, observe};
use crate::queue::{self, Publisher};
use crate::reload::Reloadable;
use crate::sampled::Sampled;
use crate::spans;

pub use authenticate::HeaderProof;
use authenticate::{Proof, ReceivedRequest};
use malformed::Malformed;
use shapes::{PostedEvent, PostedRequest};

pub use answer::{Accepted, AcceptedShapes, Disposition, IngestError};
pub use limits::{Config, TimeLimits};
pub use prewarm::Prewarm;
pub use sources::WebhookSources;

/// The maximum time for publishing: EventBridge ends a request after 5 s.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(4);

/// The ingest flow.
#[derive(Debug)]
pub struct Ingest {
    sources: Reloadable<WebhookSources>,
    hashers: Vec<KeyHasher>,
    identifier_hashers: Vec<IdentifierHasher>,
    times: TimeLimits,
    publisher: Arc<dyn Publisher>,
    prewarm: Option<Arc<dyn Prewarm>>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
}

impl Ingest {
    /// Creates the ingest flow. `hashers` contains the present key scheme first, then those that it replaces; likewise the keys
    /// of identifiers, without which events name none.
    #[must_use]
    pub fn new(
        sources: Reloadable<WebhookSources>,
        (hashers, identifier_hashers): (Vec<KeyHasher>, Vec<IdentifierHasher>),
        times: TimeLimits,
        publisher: Arc<dyn Publisher>,
        clock: SharedClock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { sources, hashers, identifier_hashers, times, publisher, prewarm: None, clock, metrics }
    }

    /// Sets what fetches the customers of conversations ahead of time.
    #[must_use]
    pub fn with_prewarm(mut self, prewarm: Option<Arc<dyn Prewarm>>) -> Self {
        self.prewarm = prewarm;
        self
    }

    /// Returns whether a tenant is configured.
    #[must_use]
    pub fn knows(&self, tenant: &TenantId) -> bool {
        self.sources.load().0.contains_key(tenant)
    }

    /// Returns what the headers of a request, without its body, prove to the sources of `tenant`. A refusal is counted and logged.
    #[must_use]
    pub fn header_proof(&self, tenant: &TenantId, request: &ReceivedRequest<'_>) -> HeaderProof {
        let sources = self.sources.keep();
        let authenticators = sources.0.get(tenant).map(Vec::as_slice).unwrap_or_default();
        let proof = authenticate::header_proof(authenticators, request, self.clock.now());
        if proof == HeaderProof::Refused {
            self.refuse_unauthorized(tenant);
        }
        proof
    }

    fn refuse_unauthorized(&self, tenant: &TenantId) {
        static LINE: Sampled = Sampled::new();
        if let Some(suppressed) = LINE.due() {
            tracing::warn!(%tenant, suppressed, "refused a webhook request without a valid credential");
        }
        self.metrics.auth_failures.with(AuthEndpoint::Webhook).increment(1);
        self.count(Shape::Flat, IngestOutcome::Unauthorized, 1);
    }

    /// Accepts one request of the sources of `tenant`.
    ///
    /// # Errors
    ///
    /// Checks in this order: unknown tenant, unauthorized, malformed, foreign, unavailable. Only in the last case
    /// some events may have been published.
    pub async fn accept(
        &self,
        tenant: &TenantId,
        expected: AcceptedShapes,
        request: &ReceivedRequest<'_>,
    ) -> Result<Accepted, IngestError> {
        let started = Instant::now();
        let answer = self.take(tenant, expected, request).await;
        observe(&self.metrics.ingest_duration, started.elapsed());
        answer
    }

    async fn take(
        &self,
        tenant: &TenantId,
        expected: AcceptedShapes,
        request: &ReceivedRequest<'_>,
    ) -> Result<Accepted, IngestError> {
        let sources = self.sources.keep();
        let authenticators = sources.0.get(tenant).ok_or(IngestError::UnknownTenant)?;
        let Some(proof) = authenticate::verify(authenticators, request, self.clock.now()) else {
            self.refuse_unauthorized(tenant);
            return Err(IngestError::Unauthorized);
        };
        let span = spans::webhook(request.headers, proof.headers, tenant);
        let mut posted = match expected {
            AcceptedShapes::Flat => shapes::read_flat(proof.body),
            AcceptedShapes::Any => shapes::read_any(proof.headers, proof.body),
        };
        if proof.headers.is_none() && expected == AcceptedShapes::Any && shapes::is_binary(request.headers) {
            self.doubt(IngestDoubt::UnsignedHeaders);
            // The sender may rely on them; anybody may also have added them, so a readable body is taken.
            posted = posted.map_err(|error| {
                let advice = "; the signature does not cover the ce-* headers: post CloudEvents in structured mode";
                Malformed::new(error.field, error.expected + advice)
            });
        }
        let answer = self.take_verified(tenant, &proof, posted, &span).instrument(span.clone()).await;
        spans::accepted(&span, answer::outcome(&answer));
        answer
    }

    /// Accepts a request whose sender is authenticated.
    async fn take_verified(
        &self,
        tenant: &TenantId,
        proof: &Proof<'_>,
        posted: Result<PostedRequest, Malformed>,
        span: &Span,
    ) -> Result<Accepted, IngestError> {
        let mut posted = posted.inspect_err(|malformed| {
            static LINE: Sampled = Sampled::new();
            if let Some(suppressed) = LINE.due() {
                tracing::info!(%tenant, field = malformed.field, suppressed, "refused a malformed webhook request");
            }
            self.count(Shape::Flat, IngestOutcome::Malformed, 1);
        })?;
        if let Some(message_id) = &proof.message_id {
            posted.set_message_id(message_id);
        }
        if let Some(shape) = names_another(&posted, tenant) {
            static LINE: Sampled = Sampled::new();
            if let Some(suppressed) = LINE.due() {
                tracing::warn!(%tenant, suppressed, "refused a webhook request that names another tenant");
            }
            self.count(shape, IngestOutcome::Foreign, 1);
            return Err(IngestError::Foreign);
        }
        let received_at = self.clock.now();
        for item in &mut posted.items {
            if let PostedEvent::Announced(announcement) = item {
                for doubt in self.times.limit(announcement, proof, received_at) {
                    self.doubt(doubt);
                }
            }
        }
        let traceparent = proof.headers.and_then(spans::received_context);
        self.publish(tenant, traceparent, posted, received_at, span).await
    }

    fn doubt(&self, doubt: IngestDoubt) {
        self.metrics.ingest_doubts.with(doubt).increment(1);
    }

    async fn publish(
        &self,
        tenant: &TenantId,
        traceparent: Option<Traceparent>,
        posted: PostedRequest,
        received_at: Timestamp,
        span: &Span,
    ) -> Result<Accepted, IngestError> {
        let (mut events, mut items, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for item in posted.items {
            match item {
                PostedEvent::Announced(announcement) => {
                    let identifiers = self.digests(tenant, &announcement.identifiers);
                    let sent = announcement.sender_id.clone();
                    let event = announcement.into_event(tenant, &self.hashers, received_at);
                    let event = Event { identifiers, traceparent, ..event };
                    items.push(Disposition::Queued { id: event.id.clone(), sent });
                    shapes.push(event.shape);
                    events.push(event);
                }
                PostedEvent::Ignored { shape, reason } => {
                    self.count(shape, IngestOutcome::Ignored, 1);
                    items.push(Disposition::Ignored(reason));
                }
                PostedEvent::Conversation { shape, customers } => {
                    self.count(shape, IngestOutcome::Ignored, 1);
                    let is_wanted = self.prewarm.as_ref().is_some_and(|prewarm| prewarm.expect(tenant, customers));
                    items.push(Disposition::Ignored(if is_wanted {
                        "a conversation: its customer is fetched ahead of time"
                    } else {
                        "a conversation: prewarm is not enabled for this tenant, this process does not look up, or no caller may by phone"
                    }));
                }
                PostedEvent::Rejected(malformed) => {
                    self.count(Shape::Flat, IngestOutcome::Malformed, 1);
                    items.push(Disposition::Rejected(malformed));
                }
            }
        }
        let mut rejected = items.iter().filter_map(|item| match item {
            Disposition::Rejected(malformed) => Some(malformed),
            Disposition::Queued { .. } | Disposition::Ignored(_) => None,
        });
        if let Some(first) = rejected.next() {
            let rejected = 1 + rejected.count();
            tracing::warn!(%tenant, rejected, field = first.field, "cannot read some events of an array, taking the others");
        }
        spans::posted(span, &events);
        let outcome = self.make_durable(tenant, &mut events).await;
        let counted = if outcome.is_ok() { IngestOutcome::Queued } else { IngestOutcome::Unavailable };
        for shape in shapes {
            self.count(shape, counted, 1);
        }
        outcome.map(|()| Accepted { batch: posted.batch, items })
    }

    /// Returns the digests of identifiers, one for each key.
    fn digests(&self, tenant: &TenantId, identifiers: &[Identifier]) -> Vec<Digest> {
        let keyed =
            |identifier| self.identifier_hashers.iter().map(move |hasher| hasher.identify(tenant, identifier).digest());
        identifiers.iter().flat_map(keyed).collect()
    }

    async fn make_durable(&self, tenant: &TenantId, events: &mut [Event]) -> Result<(), IngestError> {
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
        tracing::error!(%tenant, events = events.len(), event = first, %error, "could not make events durable, the sender must post them again");
        Err(IngestError::Unavailable { retry_after: error.retry_after() })
    }

    fn count(&self, shape: Shape, outcome: IngestOutcome, events: u64) {
        self.metrics.ingest_events.with(shape).with(outcome).increment(events);
    }
}

/// Returns the shape of the first event that names another tenant.
fn names_another(posted: &PostedRequest, tenant: &TenantId) -> Option<Shape> {
    posted.items.iter().find_map(|item| match item {
        PostedEvent::Announced(announcement) => {
            let foreign = announcement.tenant.as_ref().is_some_and(|named| named != tenant);
            foreign.then_some(announcement.shape)
        }
        PostedEvent::Ignored { .. } | PostedEvent::Conversation { .. } | PostedEvent::Rejected(_) => None,
    })
}
