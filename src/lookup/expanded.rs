//! Lookups with expansions, which the store does not hold.

use tokio::time::{Instant, timeout_at};

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
        let context = self.context;
        let Some(admitted) = context.admission.admit(self.deadline - self.config.deadline) else {
            context.deps.metrics.lookup_shed.increment(1);
            return Err(LookupError::Overloaded);
        };
        let found = timeout_at(self.deadline, self.find_tombstone()).await;
        admitted.end(found.is_ok());
        if let Some(deleted) = found.map_err(|_elapsed| LookupError::Deadline)? {
            return Ok(deleted);
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

    /// Returns the answer of a tombstone, if the store has one of the customer or of the canonical one.
    async fn find_tombstone(&mut self) -> Option<LookupAnswer> {
        let is_tombstone = |answer: &LookupAnswer| matches!(answer.outcome, LookupOutcome::Deleted);
        while let Ok(entry) = self.context.deps.store.get(&self.key).await {
            match self.view(entry) {
                EntryView::Serve(answer) => return Some(answer).filter(is_tombstone),
                EntryView::FollowPointer(canonical, pointer) => self.go_to(canonical, Some(pointer)).ok()?,
                EntryView::RequestLease(Base::Absent) => {
                    return self.get_under_previous_key().await.ok()?.filter(is_tombstone);
                }
                EntryView::RequestLease(_) | EntryView::Wait(_) => return None,
            }
        }
        None
    }
}
