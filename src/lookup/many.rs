//! Lookups of many customers at once.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use crate::domain::{CustomerQuery, Identity, TenantId};
use crate::metrics::in_progress;
use crate::store::{self, Entry};
use crate::upstream::{Error, Requester};

use super::batch::{Batch, BatchSeat};
use super::demand::Demand;
use super::identifier::IdentifierReader;
use super::reader::CacheReader;
use super::{Config, Lookup, LookupAnswer, LookupError, Phases};

/// The result of the first read of an entry.
struct FirstRead {
    identity: Identity,
    entry: Result<Option<Entry>, store::Error>,
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
        let reads = self.read_together(tenant, customers, started + config.deadline).await;
        // From here on each counts itself.
        drop(in_flight);
        let seats = Batch::seats(&self.context, tenant, requester, customers.len());
        let lookups = customers.iter().zip(reads).zip(seats).map(|(asked, seat)| async move {
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
        let reads = self.read_together(tenant, customers, deadline).await;
        let seats = Batch::seats(&self.context, tenant, requester, customers.len());
        let lookups = customers.iter().zip(reads).zip(seats).map(|(asked, seat)| async move {
            let for_nobody = (deadline, &mut Phases::default());
            self.seated(config, tenant, asked, (requester, None), seat, for_nobody).await
        });
        join_all(lookups).await
    }

    /// Reads the entries of the customers with one request, if the store can. Returns what it read for each; who is asked for by
    /// an identifier, is not admitted, or got no answer, reads on its own.
    async fn read_together(
        &self,
        tenant: &TenantId,
        customers: &[CustomerQuery],
        deadline: Instant,
    ) -> Vec<Option<FirstRead>> {
        let (admission, now) = (&self.context.admission, Instant::now());
        let mut reads: Vec<Option<FirstRead>> = customers.iter().map(|_| None).collect();
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        for (customer, read) in customers.iter().zip(&mut reads) {
            if let CustomerQuery::Id(id) = customer
                && let Some(admitted) = admission.admit(now)
            {
                let identity = self.context.deps.hasher.identify(tenant, id);
                keys.push(identity.key());
                places.push((read, admitted, identity));
            }
        }
        if keys.len() < 2 {
            return reads;
        }
        match timeout_at(deadline, self.context.deps.store.get_together(&keys)).await {
            Ok(Some(found)) => {
                for ((read, admitted, identity), entry) in places.into_iter().zip(found) {
                    admitted.end(entry.is_ok());
                    *read = Some(FirstRead { identity, entry });
                }
            }
            // It cannot.
            Ok(None) => {}
            Err(_elapsed) => places.into_iter().for_each(|(_, admitted, _)| admitted.end(false)),
        }
        reads
    }

    /// One lookup of a batch. Genesys has no request for several identifiers, so a lookup by one has its own.
    async fn seated(
        &self,
        config: &Config,
        tenant: &TenantId,
        (customer, read): (&CustomerQuery, Option<FirstRead>),
        (requester, max_age): (&Requester, Option<Duration>),
        seat: BatchSeat,
        (deadline, phases): (Instant, &mut Phases),
    ) -> Result<LookupAnswer, LookupError> {
        let context = &self.context;
        match customer {
            CustomerQuery::Id(customer) => {
                let (identity, entry) = match read {
                    Some(FirstRead { identity, entry }) => (identity, Some(entry)),
                    None => (context.deps.hasher.identify(tenant, customer), None),
                };
                let mut reader = CacheReader::new(context, config, identity, customer, requester, phases, deadline);
                (reader.demand, reader.seat) = (Demand::new(max_age), Some(seat));
                match entry {
                    Some(entry) => reader.read_from(entry).await,
                    None => Box::pin(reader.read()).await,
                }
            }
            CustomerQuery::Identifier(identifier) => {
                drop(seat);
                // A caller cannot have the right to such a lookup without the key, so the error does not occur.
                let without_key = Error::Unusable { reason: "this process has no key for identifiers" };
                let hasher = context.deps.identifiers.as_ref().ok_or(without_key)?;
                let asked = (identifier, hasher.identify(tenant, identifier));
                let mut reader = IdentifierReader::new(context, config, asked, (requester, max_age), phases, deadline);
                Box::pin(reader.read()).await
            }
        }
    }
}
