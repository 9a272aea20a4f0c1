//! Lookups of many customers at once.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::domain::{CustomerQuery, TenantId};
use crate::upstream::{Error, Requester};

use super::batch::{Batch, BatchSeat};
use super::demand::Demand;
use super::identifier::IdentifierReader;
use super::reader::CacheReader;
use super::{Config, Lookup, LookupAnswer, LookupError, Phases};

impl Lookup {
    /// Looks up several customers at once, each as [`get`](Self::get) does; those that must be fetched by their id share one
    /// request. Returns an answer for each, in order, and notes the phases of the lookup that took longest.
    pub async fn get_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerQuery],
        requester: &Requester,
        max_age: Option<Duration>,
        phases: &mut Phases,
    ) -> Option<Vec<Result<LookupAnswer, LookupError>>> {
        let seats = Batch::seats(&self.context, tenant, requester, customers.len());
        let started = Instant::now();
        let lookups = customers.iter().zip(seats).map(|(customer, seat)| async move {
            let mut own = Phases::default();
            let answer = self.timed(tenant, |config, deadline| {
                self.seated(config, tenant, customer, (requester, max_age), seat, (deadline, &mut own))
            });
            (answer.await, started.elapsed(), own)
        });
        let answers = join_all(lookups).await;
        *phases = answers.iter().max_by_key(|(_, took, _)| *took).map_or(*phases, |(.., own)| *own);
        answers.into_iter().map(|(answer, ..)| answer).collect()
    }

    /// Fetches customers that the store does not hold, in the background: no lookup is counted.
    pub(super) async fn warm(
        &self,
        tenant: &TenantId,
        customers: &[CustomerQuery],
        requester: &Requester,
    ) -> Vec<Result<LookupAnswer, LookupError>> {
        let Some(config) = self.context.deps.tenants.get(tenant) else { return Vec::new() };
        let deadline = Instant::now() + config.deadline;
        let seats = Batch::seats(&self.context, tenant, requester, customers.len());
        let lookups = customers.iter().zip(seats).map(|(customer, seat)| async move {
            let for_nobody = (deadline, &mut Phases::default());
            self.seated(config, tenant, customer, (requester, None), seat, for_nobody).await
        });
        join_all(lookups).await
    }

    /// One lookup of a batch. Genesys has no request for several identifiers, so a lookup by one has its own.
    async fn seated(
        &self,
        config: &Config,
        tenant: &TenantId,
        customer: &CustomerQuery,
        (requester, max_age): (&Requester, Option<Duration>),
        seat: BatchSeat,
        (deadline, phases): (Instant, &mut Phases),
    ) -> Result<LookupAnswer, LookupError> {
        let context = &self.context;
        match customer {
            CustomerQuery::Id(customer) => {
                let mut reader = CacheReader::new(context, config, tenant, customer, requester, phases, deadline);
                (reader.demand, reader.seat) = (Demand::new(max_age), Some(seat));
                reader.read().await
            }
            CustomerQuery::Identifier(identifier) => {
                drop(seat);
                // A caller cannot have the right to such a lookup without the key, so the error does not occur.
                let without_key = Error::Unusable { reason: "this process has no key for identifiers" };
                let hasher = context.deps.identifiers.as_ref().ok_or(without_key)?;
                let asked = (identifier, hasher.identify(tenant, identifier));
                let reader = IdentifierReader::new(context, config, asked, (requester, max_age), phases, deadline);
                Box::pin(reader.read()).await
            }
        }
    }
}
