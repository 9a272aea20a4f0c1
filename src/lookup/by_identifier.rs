//! The lookups of the flow by something else than the id of a customer.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{CustomerQuery, Identifier, PhoneRegion, TenantId};
use crate::upstream::{Fetched, Requester, Search};

use super::identifier::IdentifierReader;
use super::{AnswerSource, Config, Lookup, LookupAnswer, LookupError, LookupOutcome, Phases};

impl Lookup {
    /// Looks up the customer that has an identifier, and is otherwise as [`get_with_phases`](Self::get_with_phases); also returns
    /// `None` if this process has no key for identifiers.
    pub async fn get_by(
        &self,
        tenant: &TenantId,
        identifier: &Identifier,
        requester: &Requester,
        max_age: Option<Duration>,
        phases: &mut Phases,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        let identity = self.context.deps.identifiers.as_ref()?.identify(tenant, identifier);
        let timed = self.timed(tenant, Instant::now(), |config, deadline| async move {
            let (asked, demanded) = ((identifier, identity), (requester, max_age));
            IdentifierReader::new(&self.context, config, asked, demanded, phases, deadline).read().await
        });
        timed.await
    }

    /// Looks up a customer by its id or by an identifier: see [`get_with_phases`](Self::get_with_phases) and
    /// [`get_by`](Self::get_by).
    pub async fn find(
        &self,
        tenant: &TenantId,
        query: &CustomerQuery,
        requester: &Requester,
        max_age: Option<Duration>,
        phases: &mut Phases,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        match query {
            CustomerQuery::Id(customer) => self.get_with_phases(tenant, customer, requester, max_age, phases).await,
            // Boxed, so that the future of a lookup by id stays small.
            CustomerQuery::Identifier(identifier) => {
                Box::pin(self.get_by(tenant, identifier, requester, max_age, phases)).await
            }
        }
    }

    /// Asks Genesys for a list of contacts; each call is one request.
    ///
    /// Otherwise as [`get`](Self::get).
    pub async fn search(
        &self,
        tenant: &TenantId,
        search: &Search,
        requester: &Requester,
    ) -> Option<Result<LookupAnswer, LookupError>> {
        let deps = &self.context.deps;
        let read = async |_: &Config, deadline| {
            let since = deps.clock.now();
            let outcome = match deps.upstream.search(tenant, search, requester, deadline).await? {
                Fetched::Found(list) => LookupOutcome::Found(list.into()),
                Fetched::Absent => LookupOutcome::Absent,
            };
            Ok(LookupAnswer {
                outcome,
                how: AnswerSource::Expanded,
                unsettled: false,
                unwatched: false,
                identity: None,
                since,
            })
        };
        self.timed(tenant, Instant::now(), read).await
    }

    /// Returns the country of a tenant's phone numbers without a country code.
    #[must_use]
    pub fn phone_region(&self, tenant: &TenantId) -> Option<PhoneRegion> {
        self.context.deps.tenants.get(tenant)?.phone_region
    }
}
