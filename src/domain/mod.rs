//! The domain types: no I/O, no wire format, no async.
//!
//! All input from outside is parsed once into one of these types; from then on the type proves that it is valid.
//! Personal data ([`customer::CustomerId`], [`identifier::Identifier`], [`profile::ProfileBody`]) and secrets
//! ([`secret::Secret`]) have no `Display`, and their `Debug` shows `[redacted]`.

pub mod customer;
pub mod event;
mod event_id;
pub mod identifier;
pub mod key;
pub mod profile;
pub mod secret;
mod shown;
pub mod stamps;
pub mod tenant;
pub mod time;
pub mod traceparent;

pub use customer::CustomerId;
pub use event::{Event, Kind, Redelivery, ReplayId, Shape};
pub use event_id::{EventId, InvalidEventId};
pub use identifier::{
    CustomerQuery, Identifier, IdentifierHasher, IdentifierMarks, InvalidQuery, LookupBy, MAX_IDENTIFIERS, PhoneRegion,
    QueryFields, QueryHasher,
};
pub use key::{Digest, Identity, Key, KeyHasher};
pub use profile::{Profile, ProfileBody};
pub use secret::Secret;
pub use shown::{DisclosedFields, FieldMarks};
pub use stamps::{EventTime, Modified, Precision, Stamps};
pub use tenant::{TenantId, is_name};
pub use time::Timestamp;
pub use traceparent::Traceparent;
