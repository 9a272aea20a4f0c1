//! Lookups of many customers at once.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::domain::{CustomerId, CustomerQuery, Identifier, Identity, TenantId};
use crate::metrics::in_progress;
use crate::store::{self, Entry};
use crate::upstream::{Error, Requester};

use super::batch::{Batch, BatchSeat};
use super::demand::Demand;
use super::identifier::IdentifierReader;
use super::reader::CacheReader;
use super::{Config, Lookup, LookupAnswer, LookupError, Phases};

/// A customer of a batch.
enum Asked<'a> {
    /// By its id, with the result of the first read of its entry, unless it is still to be read.
    Id(&'a CustomerId, Identity, Option<Result<Option<Entry>, store::Error>>),
    Identifier(&'a Identifier),
}

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
        let config = self.context.deps.tenants.get(tenant)?;
        let started = Instant::now();
        let in_flight: Vec<_> =
            customers.iter().map(|_| in_progress(&self.context.deps.metrics.lookup_in_flight)).collect();
        let (asked, seats) = self.asked(tenant, customers, requester, started + config.deadline).await;
        // From here on each counts itself.
        drop(in_flight);
        let lookups = asked.into_iter().zip(seats).map(|(asked, seat)| async move {
            let mut own = Phases::default();
            let answer = self.timed(tenant, started, |config, deadline| {
                self.seated(config, tenant, asked, (requester, max_age), seat, (deadline, &mut own))
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
        let (asked, seats) = self.asked(tenant, customers, requester, deadline).await;
        let lookups = asked.into_iter().zip(seats).map(|(asked, seat)| async move {
            let for_nobody = (deadline, &mut Phases::default());
            self.seated(config, tenant, asked, (requester, None), seat, for_nobody).await
        });
        join_all(lookups).await
    }

    /// Returns the customers of a batch with the first reads of their entries, and a seat for each.
    async fn asked<'a>(
        &self,
        tenant: &TenantId,
        customers: &'a [CustomerQuery],
        requester: &Requester,
        deadline: Instant,
    ) -> (Vec<Asked<'a>>, impl Iterator<Item = BatchSeat> + use<>) {
        let identify = |customer: &'a CustomerQuery| match customer {
            CustomerQuery::Id(id) => Asked::Id(id, self.context.deps.hasher.identify(tenant, id), None),
            CustomerQuery::Identifier(identifier) => Asked::Identifier(identifier),
        };
        let mut asked: Vec<Asked<'a>> = customers.iter().map(identify).collect();
        self.read_together(&mut asked, deadline).await;
        (asked, Batch::seats(&self.context, tenant, requester, customers.len()))
    }

    /// Reads the entries of several customers with one request, if the store can. Who is not admitted, or gets no answer, reads
    /// on its own.
    async fn read_together(&self, asked: &mut [Asked<'_>], deadline: Instant) {
        let (admission, now) = (&self.context.admission, Instant::now());
        let (mut admitted, mut keys, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for asked in asked {
            if let Asked::Id(_, identity, entry) = asked
                && let Some(read) = admission.admit(now)
            {
                admitted.push(read);
                keys.push(identity.key());
                entries.push(entry);
            }
        }
        if keys.len() < 2 {
            return;
        }
        match timeout_at(deadline, self.context.deps.store.get_together(&keys)).await {
            Ok(Some(found)) => {
                for ((admitted, entry), found) in admitted.into_iter().zip(entries).zip(found) {
                    admitted.end(found.is_ok());
                    *entry = Some(found);
                }
            }
            // It cannot.
            Ok(None) => {}
            Err(_elapsed) => admitted.into_iter().for_each(|admitted| admitted.end(false)),
        }
    }

    /// One lookup of a batch. Genesys has no request for several identifiers, so a lookup by one has its own.
    async fn seated(
        &self,
        config: &Config,
        tenant: &TenantId,
        asked: Asked<'_>,
        (requester, max_age): (&Requester, Option<Duration>),
        seat: BatchSeat,
        (deadline, phases): (Instant, &mut Phases),
    ) -> Result<LookupAnswer, LookupError> {
        let context = &self.context;
        match asked {
            Asked::Id(customer, identity, entry) => {
                let mut reader = CacheReader::new(context, config, identity, customer, requester, phases, deadline);
                (reader.demand, reader.seat) = (Demand::new(max_age), Some(seat));
                match entry {
                    Some(entry) => reader.read_from(entry).await,
                    None => Box::pin(reader.read()).await,
                }
            }
            Asked::Identifier(identifier) => {
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
