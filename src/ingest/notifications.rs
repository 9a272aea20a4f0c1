//! Notifications: events over a socket that this process opened, so their sender needs no credential.

use http::HeaderMap;

use crate::domain::{CustomerId, Kind, Shape, Stamps, TenantId};
use crate::metrics::IngestOutcome;
use crate::spans;

use super::authenticate::Proof;
use super::shapes::{self, Announcement};
use super::{Accepted, Ingest, IngestError};

impl Ingest {
    /// Accepts a notification of a tenant's Genesys, as [`accept`](Self::accept) does a request.
    ///
    /// # Errors
    ///
    /// It is malformed, or could not be made durable: then it must be tried again.
    pub async fn notified(&self, tenant: &TenantId, body: &[u8]) -> Result<Accepted, IngestError> {
        let none = HeaderMap::new();
        // The connection vouches for its sender, as a credential does.
        let proof = Proof { body, headers: Some(&none), message_id: None };
        let span = spans::webhook(&none, proof.headers, tenant);
        self.take_verified(tenant, &proof, shapes::read_any(None, body), &span).await
    }

    /// Publishes an event of our own about each customer, whose changes may have been missed.
    ///
    /// # Errors
    ///
    /// They could not be made durable: then all must be tried again.
    pub async fn announce_missed(&self, tenant: &TenantId, customers: &[CustomerId]) -> Result<(), IngestError> {
        let now = self.clock.now();
        let event = |customer: &CustomerId| {
            let missed = Announcement {
                shape: Shape::Notification,
                sender_id: None,
                kind: Kind::Updated,
                stamps: Stamps::default(),
                customers: vec![customer.clone()],
                identifiers: Vec::new(),
                tenant: None,
                is_partial: false,
            };
            missed.into_event(tenant, &self.hashers, now)
        };
        let mut events: Vec<_> = customers.iter().map(event).collect();
        self.make_durable(tenant, &mut events).await?;
        self.count(Shape::Notification, IngestOutcome::Queued, events.len() as u64);
        Ok(())
    }
}
