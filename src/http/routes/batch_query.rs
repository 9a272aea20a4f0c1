//! The body of a batch of lookups.

use serde::{Deserialize, Deserializer};

use crate::domain::{CustomerQuery, InvalidQuery, PhoneRegion, QueryFields, TenantId};
use crate::http::auth::field_set::FieldSet;

use crate::http::request::{json, query};
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::MAX_BATCH;
use crate::http::routes::profile_query::{fields_of_body, requested};

/// What only the body may have.
const MEMBERS: [&str; 4] = ["tenantId", "customerIds", "lookups", "fields"];

/// The JSON body of both routes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchRequest {
    tenant_id: String,
    #[serde(default, deserialize_with = "not_null")]
    customer_ids: Option<Vec<String>>,
    #[serde(default, deserialize_with = "not_null")]
    lookups: Option<Vec<BatchLookup>>,
    /// The fields to return; absent: all that the caller may read.
    #[serde(default, deserialize_with = "fields_of_body")]
    fields: Option<String>,
}

/// One lookup of a batch.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchLookup {
    customer_id: Option<String>,
    phone: Option<String>,
    email: Option<String>,
    external_id: Option<String>,
    external_source: Option<String>,
}

/// A parsed request.
pub(super) struct BatchQuery {
    pub(super) tenant: TenantId,
    /// Each customer, or why its value is malformed.
    pub(super) customers: Vec<Result<CustomerQuery, InvalidQuery>>,
    /// The member of the body that has them.
    member: &'static str,
    pub(super) fields: Option<FieldSet>,
}

impl BatchLookup {
    fn fields(&self) -> QueryFields<'_> {
        QueryFields {
            customer_id: self.customer_id.as_deref(),
            phone: self.phone.as_deref(),
            email: self.email.as_deref(),
            external_id: self.external_id.as_deref(),
            external_source: self.external_source.as_deref(),
        }
    }
}

impl BatchQuery {
    /// Parses a body; `query` must have none of its members. `region` returns the country of the tenant's phone numbers.
    pub(super) fn parse(
        query: Option<&str>,
        body: &[u8],
        region: impl FnOnce(&TenantId) -> Option<PhoneRegion>,
    ) -> Result<Self, Problem> {
        let misplaced = query::parse(query.unwrap_or_default(), MEMBERS)?;
        if let Some((name, _)) = MEMBERS.iter().zip(misplaced).find(|(_, value)| value.is_some()) {
            return Err(Problem::bad_field(*name, "must be in the body of a batch, not in the query"));
        }
        let BatchRequest { tenant_id, customer_ids, lookups, fields } = json::parse(body)?;
        let tenant: TenantId = tenant_id.parse().map_err(|error| Problem::bad_field("tenantId", error))?;
        let by_id = |id| BatchLookup { customer_id: Some(id), ..BatchLookup::default() };
        let (name, lookups) = match (customer_ids, lookups) {
            (Some(ids), None) => ("customerIds", ids.into_iter().map(by_id).collect()),
            (None, Some(lookups)) => ("lookups", lookups),
            (Some(_), Some(_)) => {
                return Err(Problem::bad_field("lookups", "must not be given together with customerIds"));
            }
            (None, None) => return Err(Problem::bad_field("customerIds", "is missing")),
        };
        if !(1..=MAX_BATCH).contains(&lookups.len()) {
            return Err(Problem::bad_field(name, format!("must have 1 to {MAX_BATCH} elements")));
        }
        let region = region(&tenant);
        let parse = |(index, lookup): (usize, &BatchLookup)| match CustomerQuery::parse(&lookup.fields(), region) {
            Err(invalid) if !invalid.is_value => Err(of_element(name, index, &invalid)),
            parsed => Ok(parsed),
        };
        let customers = lookups.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let fields = fields.as_deref().map(requested).transpose()?;
        Ok(Self { tenant, customers, member: name, fields })
    }

    /// Returns the customers whose values are well-formed.
    pub(super) fn known(&self) -> Vec<CustomerQuery> {
        self.customers.iter().filter_map(|customer| customer.as_ref().ok().cloned()).collect()
    }

    /// Returns the answer to the first malformed value, if there is one.
    pub(super) fn malformed(&self) -> Option<Problem> {
        let invalid = |(index, customer): (usize, &Result<CustomerQuery, InvalidQuery>)| {
            customer.as_ref().err().map(|invalid| of_element(self.member, index, invalid))
        };
        self.customers.iter().enumerate().find_map(invalid)
    }
}

fn of_element(member: &str, index: usize, invalid: &InvalidQuery) -> Problem {
    let field = if member == "lookups" { format!(".{}", invalid.field) } else { String::new() };
    Problem::bad_field(format!("{member}[{index}]{field}"), &invalid.reason)
}

/// Reads a member that may be missing, but not null.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
