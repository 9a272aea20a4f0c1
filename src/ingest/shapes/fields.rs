//! The fields that several shapes have in common.

use std::collections::HashSet;
use std::str::FromStr;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};

use crate::domain::stamps::InvalidTime;
use crate::domain::{CustomerId, EventTime, Modified, Stamps};

use super::{MAX_CUSTOMERS, Malformed, SenderId, join};

/// The customers of an event, without duplicates.
#[derive(Debug, Default)]
pub(super) struct CustomerList {
    pub(super) ids: Vec<CustomerId>,
    seen: HashSet<CustomerId>,
}

impl CustomerList {
    /// Adds an id that must be readable.
    pub(super) fn add(&mut self, path: &str, field: &str, id: &str) -> Result<(), Malformed> {
        let customer: CustomerId = id.parse().map_err(|error| Malformed::new(join(path, field), error))?;
        if self.seen.contains(&customer) {
            return Ok(());
        }
        if self.ids.len() == MAX_CUSTOMERS {
            let expected = format!("expected at most {MAX_CUSTOMERS} customers in one event");
            return Err(Malformed::new(join(path, field), expected));
        }
        self.seen.insert(customer.clone());
        self.ids.push(customer);
        Ok(())
    }

    /// Adds an id that other ids of the event make up for if it cannot be read.
    pub(super) fn add_optional(
        &mut self,
        path: &str,
        field: &str,
        id: &OptionalText,
        doubt: &mut Doubt,
    ) -> Result<(), Malformed> {
        match doubt.text(id) {
            Some(id) if id.parse::<CustomerId>().is_ok() => self.add(path, field, id),
            Some(_) => {
                doubt.0 = true;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// An optional text, or an object whose `id` it is; any other value is remembered as unreadable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum OptionalText {
    /// Absent, `null` or `""`.
    #[default]
    Absent,
    Text(String),
    /// An integer: some times are milliseconds.
    Integer(i64),
    Unreadable,
}

/// Whether an optional field of an event could not be read.
#[derive(Debug, Default)]
pub(super) struct Doubt(pub(super) bool);

impl Doubt {
    /// Returns the text of a field.
    pub(super) fn text<'a>(&mut self, field: &'a OptionalText) -> Option<&'a str> {
        match field {
            OptionalText::Text(text) => Some(text),
            OptionalText::Absent => None,
            OptionalText::Integer(_) | OptionalText::Unreadable => {
                self.0 = true;
                None
            }
        }
    }

    /// Parses a time.
    pub(super) fn time<T: FromStr<Err = InvalidTime>>(&mut self, field: &OptionalText) -> Option<T> {
        let parsed = self.text(field)?.parse().ok();
        self.0 |= parsed.is_none();
        parsed
    }

    /// Parses the id of an event at its sender.
    pub(super) fn sender_id(&mut self, field: &OptionalText) -> Option<SenderId> {
        self.text(field).map(SenderId::of)
    }
}

impl<'de> Deserialize<'de> for OptionalText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = OptionalText;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<OptionalText, E> {
                Ok(if text.is_empty() { OptionalText::Absent } else { OptionalText::Text(text.to_owned()) })
            }

            fn visit_unit<E>(self) -> Result<OptionalText, E> {
                Ok(OptionalText::Absent)
            }

            fn visit_i64<E>(self, number: i64) -> Result<OptionalText, E> {
                Ok(OptionalText::Integer(number))
            }

            fn visit_u64<E>(self, number: u64) -> Result<OptionalText, E> {
                Ok(i64::try_from(number).map_or(OptionalText::Unreadable, OptionalText::Integer))
            }

            fn visit_f64<E>(self, _: f64) -> Result<OptionalText, E> {
                Ok(OptionalText::Unreadable)
            }

            fn visit_bool<E>(self, _: bool) -> Result<OptionalText, E> {
                Ok(OptionalText::Unreadable)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OptionalText, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(OptionalText::Unreadable)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<OptionalText, A::Error> {
                let mut id = None;
                while let Some(name) = members.next_key::<String>()? {
                    if name == "id" && id.is_none() {
                        id = Some(members.next_value()?);
                    } else {
                        members.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(match id {
                    Some(OptionalText::Text(text)) => OptionalText::Text(text),
                    _ => OptionalText::Unreadable,
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Combines the stamps: an event without a time of its own happened when the profile was modified.
pub(super) fn stamps(modified: Option<Modified>, at: Option<EventTime>) -> Stamps {
    Stamps { modified, at: at.or(modified.map(EventTime::from_modified)) }
}
