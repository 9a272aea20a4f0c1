//! The fields that several shapes have in common.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::domain::stamps::InvalidTime;
use crate::domain::{CustomerId, EventTime, Modified, Stamps};

use super::{MAX_CUSTOMERS, Malformed, SenderId, join};

/// The customers of an event, without duplicates.
#[derive(Debug, Default)]
pub(super) struct CustomerList(pub(super) Vec<CustomerId>);

impl CustomerList {
    pub(super) fn add(&mut self, path: &str, field: &str, id: &str) -> Result<(), Malformed> {
        let customer: CustomerId = id.parse().map_err(|error| Malformed::new(join(path, field), error))?;
        if self.0.contains(&customer) {
            return Ok(());
        }
        if self.0.len() == MAX_CUSTOMERS {
            let expected = format!("expected at most {MAX_CUSTOMERS} customers in one event");
            return Err(Malformed::new(join(path, field), expected));
        }
        self.0.push(customer);
        Ok(())
    }
}

/// Deserializes an optional field; an empty text is treated as absent.
pub(super) fn non_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + AsRef<str>,
{
    Ok(Option::<T>::deserialize(deserializer)?.filter(|value| !value.as_ref().is_empty()))
}

/// Parses an optional time; an empty text is treated as absent.
pub(super) fn time<T: FromStr<Err = InvalidTime>>(
    path: &str,
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, Malformed> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error| Malformed::new(join(path, field), error))).transpose()
}

/// Combines the stamps: an event without a time of its own happened when the profile was modified.
pub(super) fn stamps(modified: Option<Modified>, at: Option<EventTime>) -> Stamps {
    Stamps { modified, at: at.or(modified.map(EventTime::from_modified)) }
}

/// Parses the id of an event at its sender: not empty.
pub(super) fn sender_id(path: &str, field: &str, id: Option<String>) -> Result<Option<SenderId>, Malformed> {
    match id {
        Some(id) if id.is_empty() => Err(Malformed::new(join(path, field), "must not be empty")),
        Some(id) => Ok(Some(SenderId::of(id))),
        None => Ok(None),
    }
}
