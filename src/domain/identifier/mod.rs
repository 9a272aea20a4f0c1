//! Identifiers: what a flow knows of a customer instead of its id. They are personal data, so they cannot be printed.

mod digest;
mod invalid;
mod phone;
mod query;
mod value;

pub use digest::{IdentifierHasher, IdentifierMarks, QueryHasher};
pub use invalid::InvalidIdentifier;
pub use phone::PhoneRegion;
pub use query::{CustomerQuery, InvalidQuery, QueryFields};
pub use value::{ExposedIdentifier, Identifier, LookupBy, MAX_IDENTIFIERS};

#[cfg(test)]
mod tests;
