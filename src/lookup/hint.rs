//! Whom Genesys may name: a pointer of an identifier that is not believed, or the last one, if an event has removed it.

use crate::domain::{Identity, Modified};
use crate::store::{self, Base, Content, Entry};

/// What the store holds at one key.
pub(super) type EntryRead = Result<Option<Entry>, store::Error>;

/// The customer whom Genesys may name.
#[derive(Debug)]
pub(super) struct Hint {
    pub(super) identity: Identity,
    /// What the customer's entry holds.
    pub(super) base: Base,
    /// The `modifyDate` of the profile there.
    pub(super) known: Option<Modified>,
}

impl Hint {
    /// Creates a hint at the customer to whom the last pointer led, whose entry was read. Most events remove the pointer and
    /// leave the identifier with its customer.
    pub(super) fn of_guess((identity, read): (Identity, EntryRead)) -> Option<Self> {
        match read.ok()? {
            None => Some(Self::over(identity, Base::Absent, None)),
            Some(Entry::Record(record)) if record.identity == identity => match &record.content {
                Content::Found(found) => Some(Self::over(identity, Base::Token(record.token), found.modified)),
                Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => None,
            },
            Some(Entry::Record(_) | Entry::Leased(_) | Entry::Tombstone(_) | Entry::Corrupt(_)) => None,
        }
    }

    /// Creates a hint over an entry, with the `modifyDate` of the profile there.
    pub(super) const fn over(identity: Identity, base: Base, known: Option<Modified>) -> Self {
        Self { identity, base, known }
    }
}
