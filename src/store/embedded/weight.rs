//! How much memory an entry takes.

use crate::domain::Key;
use crate::store::{Content, Entry, Record};

use super::expiring::Expiring;

/// The bytes of a cache member besides its body: key, bookkeeping, allocator. Measured, rounded up.
pub(super) const OVERHEAD: u32 = 400;

/// Returns the bytes of an entry.
pub(super) fn entry_weight(_key: &Key, entry: &Expiring<Entry>) -> u32 {
    let body = match &entry.value {
        Entry::Record(Record { content: Content::Found(found), .. }) => found.body.len(),
        Entry::Record(Record { content: Content::Sealed(ciphertext), .. }) => ciphertext.as_bytes().len(),
        Entry::Corrupt(bytes) => bytes.len(),
        Entry::Record(_) | Entry::Tombstone(_) | Entry::Leased(_) => 0,
    };
    u32::try_from(body).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
}
