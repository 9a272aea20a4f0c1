//! The fields that several shapes have in common.

use std::collections::HashSet;
use std::str::FromStr;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::domain::stamps::InvalidTime;
use crate::domain::{CustomerId, EventTime, Modified, Stamps};

use super::{MAX_CUSTOMERS, Malformed, join};

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

    /// Adds the id that a topic contains, if it does.
    pub(super) fn add_of_topic(&mut self, id: Option<&str>, doubt: &mut Doubt) -> Result<(), Malformed> {
        let id = id.map_or(OptionalText::Absent, |id| OptionalText::Text(id.to_owned()));
        self.add_optional("", "topicName", &id, doubt)
    }
}

/// The id of an event at its sender. Only its answer shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct SenderId {
    /// The id that people see.
    pub(super) id: String,
    /// Makes `id` unique if it is not (the source of a `CloudEvents` event); else empty.
    pub(super) source: String,
}

impl std::fmt::Debug for SenderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A sender may write anything into it, also personal data.
        f.write_str("SenderId([redacted])")
    }
}

impl SenderId {
    /// Creates an id that is unique without a source.
    pub(in crate::ingest) fn of(id: impl Into<String>) -> Self {
        Self { id: id.into(), source: String::new() }
    }

    /// Returns the text, for the answer to the sender; never for the log.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.id
    }

    /// Returns the id of one event of a message with this id.
    pub(super) fn of_part(&self, index: usize) -> Self {
        Self { id: format!("{}.{index}", self.id), source: self.source.clone() }
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

/// An optional list or object; any other value is remembered as unreadable.
#[derive(Debug, Default)]
pub(super) enum OptionalPart<T> {
    /// Absent, `null` or `""`.
    #[default]
    Absent,
    Read(T),
    Unreadable,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for OptionalPart<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match <&RawValue>::deserialize(deserializer)?.get() {
            "null" | "\"\"" => Self::Absent,
            text => serde_json::from_str(text).map_or(Self::Unreadable, Self::Read),
        })
    }
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

    /// Returns the content of a list or an object.
    pub(super) fn part<'a, T>(&mut self, field: &'a OptionalPart<T>) -> Option<&'a T> {
        self.0 |= matches!(field, OptionalPart::Unreadable);
        if let OptionalPart::Read(part) = field { Some(part) } else { None }
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
