//! The parameters of a lookup, in the query or in a JSON body.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain::{CustomerQuery, PhoneRegion, QueryFields, TenantId};
use crate::http::auth::field_set::{FieldSet, MAX_FIELDS};
use crate::http::request::{json, query};
use crate::http::response::problem::Problem;

/// The JSON body of a lookup.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRequest {
    tenant_id: Option<String>,
    customer_id: Option<String>,
    phone: Option<String>,
    email: Option<String>,
    external_id: Option<String>,
    external_source: Option<String>,
    /// The fields to return; absent: all that the caller may read.
    #[serde(default, deserialize_with = "fields_of_body")]
    fields: Option<String>,
}

/// The names of the parameters, in the order of [`ProfileRequest`].
const NAMES: [&str; 7] = ["tenantId", "customerId", "phone", "email", "externalId", "externalSource", "fields"];

/// A parsed lookup.
#[derive(Debug)]
pub(super) struct ProfileQuery {
    pub(super) tenant: TenantId,
    pub(super) customer: CustomerQuery,
    pub(super) fields: Option<FieldSet>,
}

impl ProfileQuery {
    /// Parses the query and the body. A parameter that is in both must have the same value. `region` returns the country of
    /// the tenant's phone numbers.
    pub(super) fn parse(
        query: Option<&str>,
        body: &[u8],
        region: impl FnOnce(&TenantId) -> Option<PhoneRegion>,
    ) -> Result<Self, Problem> {
        let mut given = query::parse(query.unwrap_or_default(), NAMES)?;
        // A "+" that was not percent-encoded arrives as a blank.
        if let Some(phone) = given[2].as_mut().filter(|phone| phone.starts_with(' ')) {
            *phone = Cow::Owned(format!("+{}", phone.trim_start()));
        }
        if !body.is_empty() {
            let body: ProfileRequest = json::parse(body)?;
            let body = [
                body.tenant_id,
                body.customer_id,
                body.phone,
                body.email,
                body.external_id,
                body.external_source,
                body.fields,
            ];
            for ((name, slot), value) in NAMES.into_iter().zip(&mut given).zip(body) {
                match (slot.as_deref(), value) {
                    (Some(one), Some(other)) if one != other => {
                        return Err(Problem::bad_field(name, "query and body disagree"));
                    }
                    (None, value) => *slot = value.map(Cow::Owned),
                    (Some(_), _) => {}
                }
            }
        }
        let [tenant, customer_id, phone, email, external_id, external_source, fields] =
            given.each_ref().map(|value| value.as_deref());
        let tenant = tenant.ok_or_else(|| Problem::bad_field("tenantId", "is missing"))?;
        let tenant: TenantId = tenant.parse().map_err(|error| Problem::bad_field("tenantId", error))?;
        let named = QueryFields { customer_id, phone, email, external_id, external_source };
        let customer = CustomerQuery::parse(&named, region(&tenant));
        let fields = fields.map(requested).transpose()?;
        let customer = customer.map_err(|invalid| Problem::bad_field(invalid.field, invalid.reason))?;
        Ok(Self { tenant, customer, fields })
    }
}

/// Reads the fields of a JSON body, a list or one string, and returns them joined by commas.
pub(super) fn fields_of_body<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct FieldsVisitor;

    impl<'de> Visitor<'de> for FieldsVisitor {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of fields or one string with commas between them")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut joined = None::<String>;
            while let Some(field) = items.next_element::<String>()? {
                if field.contains(',') {
                    return Err(A::Error::invalid_value(Unexpected::Str("a comma"), &self));
                }
                joined = Some(joined.map_or(field.clone(), |joined| format!("{joined},{field}")));
            }
            joined.map(Some).ok_or_else(|| A::Error::invalid_length(0, &self))
        }
    }

    deserializer.deserialize_any(FieldsVisitor)
}

/// Parses the fields of a request.
pub(super) fn requested(fields: &str) -> Result<FieldSet, Problem> {
    if fields.split(',').nth(MAX_FIELDS).is_some() {
        return Err(Problem::bad_field("fields", format!("must name at most {MAX_FIELDS} fields")));
    }
    FieldSet::parse(fields.split(',').map(str::trim)).map_err(|error| Problem::bad_field("fields", error))
}
