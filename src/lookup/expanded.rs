//! Lookups with expansions, which the store does not hold.

use tokio::time::Instant;

use crate::domain::{CustomerId, TenantId};
use crate::store::Base;
use crate::upstream::{Expand, FetchTimes, Fetched, Requester};

use super::phases::LeaderTimes;
use super::reader::{CacheReader, EntryView};
use super::{AnswerSource, Lookup, LookupAnswer, LookupError, LookupOutcome, Phases};

impl Lookup {
    /// Looks up a customer with expansions, which the store does not hold: each call fetches from Genesys, unless
    /// the customer was deleted.
    ///
    /// Otherwise as [`get_with_phases`](Self::get_with_phases).
    pub async fn get_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        expand: &Expand,
        requester: &Requester,
        phases: &mut Phases,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        let timed = self.timed(tenant, Instant::now(), |config, deadline| async move {
            let identity = self.context.deps.hasher.identify(tenant, customer);
            let mut reader = CacheReader::new(&self.context, config, identity, customer, requester, phases, deadline);
            reader.read_expanded(expand).await
        });
        timed.await
    }
}

impl CacheReader<'_> {
    /// Fetches from Genesys with expansions, which the store does not hold; but not for a deleted customer.
    pub(super) async fn read_expanded(&mut self, expand: &Expand) -> Result<LookupAnswer, LookupError> {
        // A pointer leads to the key of the canonical customer, which may hold a tombstone.
        while let Ok(entry) = self.context.deps.store.get(&self.key).await {
            match self.view(entry) {
                EntryView::Serve(answer) if matches!(answer.outcome, LookupOutcome::Deleted) => return Ok(answer),
                EntryView::FollowPointer(canonical, pointer) => {
                    if self.go_to(canonical, Some(pointer)).is_err() {
                        break;
                    }
                }
                EntryView::RequestLease(Base::Absent) => match self.get_under_previous_key().await {
                    Ok(Some(answer)) if matches!(answer.outcome, LookupOutcome::Deleted) => return Ok(answer),
                    Ok(_) | Err(_) => break,
                },
                EntryView::Serve(_) | EntryView::RequestLease(_) | EntryView::Wait(_) => break,
            }
        }
        let deps = &self.context.deps;
        let since = deps.clock.now();
        let tenant = self.requested.tenant();
        self.phases.store = (self.deadline - self.config.deadline).elapsed();
        let fetch = deps.upstream.fetch_expanded(tenant, self.customer, expand, self.requester, self.deadline);
        let mut times = LeaderTimes::default();
        let fetched = FetchTimes::measure(fetch, &mut times.fetch).await;
        self.phases.led(times);
        // A stored record has no expansions, so it cannot be served instead.
        let outcome = match fetched? {
            Fetched::Absent => LookupOutcome::Absent,
            Fetched::Found(profile) => LookupOutcome::Found(profile.into()),
        };
        Ok(LookupAnswer {
            outcome,
            how: AnswerSource::Expanded,
            unsettled: false,
            unwatched: false,
            identity: None,
            since,
        })
    }
}
