//! The contact that a search found, where the configured path of a profile is not that of Genesys.

use tokio::time::Instant;

use crate::domain::{CustomerId, Profile};

use super::super::{Error, Fetched, Requester, Upstream};
use super::Guard;

impl<U: Upstream> Guard<U> {
    /// Fetches the customer that a search found. The search has the body of Genesys, and everything else that of the configured
    /// path, in which the id of the customer may be missing.
    pub(super) async fn fetch_found(
        &self,
        customer: Option<CustomerId>,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        let unnamed = Error::Unusable { reason: "the contact of an identifier has no id" };
        let customer = customer.ok_or(unnamed)?;
        Ok(match self.fetch(&self.tenant, &customer, requester, deadline).await? {
            Fetched::Found(Profile { canonical: None, body, modified }) => {
                Fetched::Found(Profile { canonical: Some(customer), body, modified })
            }
            fetched => fetched,
        })
    }
}
