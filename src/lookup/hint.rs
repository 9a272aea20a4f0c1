//! A pointer of an identifier that is not believed.

use crate::domain::{Identity, Modified};
use crate::store::Base;

/// The customer to whom a pointer leads that is not believed.
#[derive(Debug)]
pub(super) struct Hint {
    pub(super) identity: Identity,
    /// What the customer's entry holds.
    pub(super) base: Base,
    /// The `modifyDate` of the profile there.
    pub(super) known: Option<Modified>,
}

impl Hint {
    /// Creates a hint over an entry, with the `modifyDate` of the profile there.
    pub(super) const fn over(identity: Identity, base: Base, known: Option<Modified>) -> Self {
        Self { identity, base, known }
    }
}
