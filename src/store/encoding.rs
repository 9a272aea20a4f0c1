//! The encoding of the parts of a record, in Redis and inside a seal. Numbers are big-endian.
//!
//! The identity and the times of a record are always in clear. A byte of flags and the content follow.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::domain::{Identity, Modified, ProfileBody, Timestamp};

use super::{Ciphertext, Content, Found, Record};

/// Bits of the flags of a record.
const SETTLED: u8 = 1;
const HAS_MODIFIED: u8 = 2;
const HAS_GENERATION: u8 = 4;

/// Returns the letter of the kind of a content.
pub(super) const fn kind_of(content: &Content) -> u8 {
    match content {
        Content::Found(_) => b'P',
        Content::Negative => b'N',
        Content::Pointer(_) => b'A',
        Content::Sealed(_) => b'S',
    }
}

/// Returns the approximate length of an encoded content.
pub(super) fn length_of(content: &Content) -> usize {
    match content {
        Content::Found(found) => found.body.len() + 25,
        Content::Sealed(ciphertext) => ciphertext.as_bytes().len() + 1,
        Content::Negative => 1,
        Content::Pointer(canonical) => canonical.tenant().as_str().len() + 34,
    }
}

/// Writes the part of a record that is always in clear.
pub(super) fn put_clear(out: &mut impl BufMut, record: &Record) {
    put_identity(out, &record.identity);
    out.put_i64(record.fetched_at.as_millis());
    for duration in [record.fetch_cost, record.ttl, record.grace] {
        out.put_u64(millis(duration));
    }
}

/// Writes a content, after its flags and the generation, if that is not zero.
pub(super) fn put_content(out: &mut impl BufMut, content: &Content, settled: bool, generation: u64) {
    let has_modified = matches!(content, Content::Found(found) if found.modified.is_some());
    let flags = [(settled, SETTLED), (has_modified, HAS_MODIFIED), (generation > 0, HAS_GENERATION)];
    out.put_u8(flags.into_iter().map(|(is_set, flag)| u8::from(is_set) * flag).sum());
    if generation > 0 {
        out.put_u64(generation);
    }
    match content {
        Content::Negative => {}
        Content::Pointer(canonical) => put_identity(out, canonical),
        Content::Found(found) => {
            out.put_i64(found.modified.map_or(0, Modified::as_millis));
            out.put_slice(&found.validator);
            out.put_slice(found.body.expose());
        }
        Content::Sealed(ciphertext) => out.put_slice(ciphertext.as_bytes()),
    }
}

/// Reads a content of this kind, up to the end of the bytes, whether it is settled, and its generation. A profile that is
/// [nested too deeply](ProfileBody::is_nested_too_deep) is not read.
pub(super) fn take_content(kind: u8, mut rest: Bytes) -> Option<(Content, bool, u64)> {
    let flags = rest.try_get_u8().ok()?;
    let known = SETTLED | HAS_GENERATION | if kind == b'P' { HAS_MODIFIED } else { 0 };
    if flags & !known != 0 {
        return None;
    }
    let generation = if flags & HAS_GENERATION == 0 { 0 } else { rest.try_get_u64().ok()? };
    let content = match kind {
        b'N' => Content::Negative,
        b'A' => Content::Pointer(take_identity(&mut rest)?),
        b'P' => {
            let modified = rest.try_get_i64().ok()?;
            let modified = (flags & HAS_MODIFIED != 0).then_some(Modified::from_millis(modified));
            let validator = take_array(&mut rest)?;
            // The rest is the body: a part of the same buffer, not a copy.
            let body = ProfileBody::new(std::mem::take(&mut rest));
            // Such a body was written by somebody else, or by a version without this limit.
            if body.is_nested_too_deep() {
                return None;
            }
            Content::Found(Found { body, validator, modified })
        }
        b'S' => Content::Sealed(Ciphertext::new(std::mem::take(&mut rest))),
        _ => return None,
    };
    rest.is_empty().then_some((content, flags & SETTLED != 0, generation))
}

/// Reads what [`put_clear`] wrote: the identity, the time of the fetch, and the three durations.
pub(super) fn take_clear(rest: &mut Bytes) -> Option<(Identity, Timestamp, [Duration; 3])> {
    let identity = take_identity(rest)?;
    let fetched_at = Timestamp::from_millis(rest.try_get_i64().ok()?);
    let mut duration = || rest.try_get_u64().ok().map(Duration::from_millis);
    Some((identity, fetched_at, [duration()?, duration()?, duration()?]))
}

/// Reads as many bytes as the array has.
pub(super) fn take_array<const N: usize>(rest: &mut Bytes) -> Option<[u8; N]> {
    let array = *rest.first_chunk()?;
    rest.advance(N);
    Some(array)
}

/// Returns a duration in whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn put_identity(out: &mut impl BufMut, identity: &Identity) {
    let tenant = identity.tenant().as_str().as_bytes();
    // A tenant id is at most 64 bytes long.
    out.put_u8(u8::try_from(tenant.len()).unwrap_or(u8::MAX));
    out.put_slice(tenant);
    out.put_slice(identity.full_digest());
}

fn take_identity(rest: &mut Bytes) -> Option<Identity> {
    let length = usize::from(rest.try_get_u8().ok()?);
    let tenant = std::str::from_utf8(rest.get(..length)?).ok()?.parse().ok()?;
    rest.advance(length);
    Some(Identity::new(tenant, take_array(rest)?))
}
