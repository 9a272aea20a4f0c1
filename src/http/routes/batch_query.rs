//! The body of a batch of lookups.

use serde::{Deserialize, Deserializer};

use crate::domain::{CustomerId, TenantId};
use crate::http::auth::field_set::FieldSet;

use crate::http::request::json;
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::MAX_BATCH;

/// The JSON body of both routes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchRequest {
    tenant_id: String,
    #[serde(default, deserialize_with = "not_null")]
    customer_ids: Option<Vec<String>>,
    #[serde(default, deserialize_with = "not_null")]
    lookups: Option<Vec<BatchLookup>>,
    /// The fields to return, separated by commas; absent: all that the caller may read.
    fields: Option<String>,
}

/// One lookup of a batch.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchLookup {
    customer_id: String,
}

/// A parsed request.
pub(super) struct BatchQuery {
    pub(super) tenant: TenantId,
    pub(super) customers: Vec<CustomerId>,
    pub(super) fields: Option<FieldSet>,
}

impl BatchQuery {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let BatchRequest { tenant_id, customer_ids, lookups, fields } = json::parse(body)?;
        let tenant = tenant_id.parse().map_err(|error| Problem::bad_field("tenantId", error))?;
        let (name, member, ids) = match (customer_ids, lookups) {
            (Some(ids), None) => ("customerIds", "", ids),
            (None, Some(lookups)) => {
                ("lookups", ".customerId", lookups.into_iter().map(|lookup| lookup.customer_id).collect())
            }
            (Some(_), Some(_)) => {
                return Err(Problem::bad_field("lookups", "must not be given together with customerIds"));
            }
            (None, None) => return Err(Problem::bad_field("customerIds", "is missing")),
        };
        if !(1..=MAX_BATCH).contains(&ids.len()) {
            return Err(Problem::bad_field(name, format!("must have 1 to {MAX_BATCH} elements")));
        }
        let parse = |(index, id): (usize, &String)| {
            id.parse().map_err(|error| Problem::bad_field(format!("{name}[{index}]{member}"), error))
        };
        let customers = ids.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let fields = fields.map(|fields| FieldSet::parse(fields.split(',').map(str::trim))).transpose();
        let fields = fields.map_err(|error| Problem::bad_field("fields", error))?;
        Ok(Self { tenant, customers, fields })
    }
}

/// Reads a member that may be missing, but not null.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
