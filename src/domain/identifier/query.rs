//! The parameters that name the customer of a lookup.

use std::fmt;
use std::str::FromStr;

use crate::domain::customer::CustomerId;

use super::invalid::InvalidIdentifier;
use super::phone::PhoneRegion;
use super::value::{Identifier, LookupBy};

/// The customer of a lookup: by its id, or by an identifier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CustomerQuery {
    /// By its id.
    Id(CustomerId),
    /// By an identifier.
    Identifier(Identifier),
}

/// The parameters that name the customer of a lookup.
#[derive(Clone, Copy, Default)]
pub struct QueryFields<'a> {
    /// `customerId`.
    pub customer_id: Option<&'a str>,
    /// `phone`.
    pub phone: Option<&'a str>,
    /// `email`.
    pub email: Option<&'a str>,
    /// `externalId`.
    pub external_id: Option<&'a str>,
    /// `externalSource`.
    pub external_source: Option<&'a str>,
}

/// The parameter that does not name a customer, and what is expected of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidQuery {
    /// The name of the parameter.
    pub field: &'static str,
    /// What is expected; nothing of the value.
    pub reason: String,
    /// Whether only the value is malformed: exactly one of the four is given.
    pub is_value: bool,
}

impl InvalidQuery {
    fn new(field: &'static str, reason: impl fmt::Display) -> Self {
        Self { field, reason: reason.to_string(), is_value: false }
    }

    fn of_value(field: &'static str, reason: impl fmt::Display) -> Self {
        Self { is_value: true, ..Self::new(field, reason) }
    }
}

impl fmt::Debug for QueryFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryFields([redacted])")
    }
}

impl CustomerQuery {
    /// Parses the parameters: exactly one of the four names the customer. `region` is that of the tenant.
    ///
    /// # Errors
    ///
    /// None or several of them are given, or the given one is malformed.
    pub fn parse(fields: &QueryFields<'_>, region: Option<PhoneRegion>) -> Result<Self, InvalidQuery> {
        let QueryFields { customer_id, phone, email, external_id, external_source } = *fields;
        let given = [
            (LookupBy::CustomerId, customer_id),
            (LookupBy::Phone, phone),
            (LookupBy::Email, email),
            (LookupBy::ExternalId, external_id),
        ];
        let mut given = given.into_iter().filter_map(|(by, value)| Some((by, value?)));
        let Some((by, value)) = given.next() else {
            let reason = "is missing, and no phone, email or externalId is given instead";
            return Err(InvalidQuery::new(LookupBy::CustomerId.as_str(), reason));
        };
        if let Some((other, _)) = given.next() {
            let reason = format!("must not be given together with {}", by.as_str());
            return Err(InvalidQuery::new(other.as_str(), reason));
        }
        if external_source.is_some() && by != LookupBy::ExternalId {
            return Err(InvalidQuery::new("externalSource", "is only for externalId"));
        }
        let identifier = match by {
            LookupBy::CustomerId => {
                let customer =
                    CustomerId::from_str(value).map_err(|error| InvalidQuery::of_value(by.as_str(), error))?;
                return Ok(Self::Id(customer));
            }
            LookupBy::Phone => Identifier::phone(value, region),
            LookupBy::Email => Identifier::email(value),
            LookupBy::ExternalId => {
                let source = external_source.ok_or_else(|| InvalidQuery::new("externalSource", "is missing"))?;
                if Identifier::external_id(source, "-").is_err() {
                    return Err(InvalidQuery::of_value("externalSource", InvalidIdentifier::Text));
                }
                Identifier::external_id(source, value)
            }
        };
        identifier.map(Self::Identifier).map_err(|error| InvalidQuery::of_value(by.as_str(), error))
    }

    /// Returns what the customer is looked up by.
    #[must_use]
    pub const fn by(&self) -> LookupBy {
        match self {
            Self::Id(_) => LookupBy::CustomerId,
            Self::Identifier(identifier) => identifier.by(),
        }
    }
}
