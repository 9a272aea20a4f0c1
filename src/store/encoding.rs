//! The encoding of the parts of a record, in Redis and inside a seal. Numbers are big-endian.
//!
//! The identity and the times of a record are always in clear. A byte of flags and the content follow.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::domain::{IdentifierMarks, Identity, Modified, ProfileBody, Timestamp};

use super::{Ciphertext, Content, Found, IdentifierPointer, Record, Token};

/// Bits of the flags of a record.
const SETTLED: u8 = 1;
const HAS_MODIFIED: u8 = 2;
const HAS_GENERATION: u8 = 4;
/// A profile has the marks of its identifiers.
const HAS_MARKS: u8 = 8;
/// A pointer of an identifier has the token of the record that was filled together with it.
const HAS_TOKEN: u8 = 16;

/// The bit of a length byte that distinguishes the identity of an identifier from that of a customer. A tenant id is shorter.
const OF_IDENTIFIER: u8 = 0x80;

/// Returns the letter of the kind of a content.
pub(super) const fn kind_of(content: &Content) -> u8 {
    match content {
        Content::Found(_) => b'P',
        Content::Negative => b'N',
        Content::Pointer(_) => b'A',
        Content::IdentifierPointer(_) => b'I',
        Content::Sealed(_) => b'S',
    }
}

/// Returns the approximate length of an encoded content.
pub(super) fn length_of(content: &Content) -> usize {
    match content {
        Content::Found(found) => found.body.len() + found.identifiers.as_bytes().len() + 26,
        Content::Sealed(ciphertext) => ciphertext.as_bytes().len() + 1,
        Content::Negative => 1,
        Content::Pointer(canonical) => canonical.tenant().as_str().len() + 34,
        Content::IdentifierPointer(pointer) => pointer.to.tenant().as_str().len() + 50,
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
    let own = match content {
        Content::Found(Found { modified, identifiers, .. }) => {
            flag(modified.is_some(), HAS_MODIFIED) | flag(!identifiers.as_bytes().is_empty(), HAS_MARKS)
        }
        Content::IdentifierPointer(pointer) => flag(pointer.filled_with.is_some(), HAS_TOKEN),
        Content::Negative | Content::Pointer(_) | Content::Sealed(_) => 0,
    };
    out.put_u8(own | flag(settled, SETTLED) | flag(generation > 0, HAS_GENERATION));
    if generation > 0 {
        out.put_u64(generation);
    }
    match content {
        Content::Negative => {}
        Content::Pointer(canonical) => put_identity(out, canonical),
        Content::IdentifierPointer(IdentifierPointer { to, filled_with }) => {
            put_identity(out, to);
            out.put_slice(filled_with.as_ref().map_or(&[], |token| token.as_bytes().as_slice()));
        }
        Content::Found(found) => {
            let marks = found.identifiers.as_bytes();
            out.put_i64(found.modified.map_or(0, Modified::as_millis));
            out.put_slice(&found.validator);
            if !marks.is_empty() {
                // There are at most 64 marks.
                out.put_u16(u16::try_from(marks.len()).unwrap_or_default());
                out.put_slice(marks);
            }
            out.put_slice(found.body.expose());
        }
        Content::Sealed(ciphertext) => out.put_slice(ciphertext.as_bytes()),
    }
}

/// Reads a content of this kind, up to the end of the bytes, whether it is settled, and its generation. A profile that is
/// [nested too deeply](ProfileBody::is_nested_too_deep) is not read.
pub(super) fn take_content(kind: u8, mut rest: Bytes) -> Option<(Content, bool, u64)> {
    let flags = rest.try_get_u8().ok()?;
    let known = SETTLED
        | HAS_GENERATION
        | match kind {
            b'P' => HAS_MODIFIED | HAS_MARKS,
            b'I' => HAS_TOKEN,
            _ => 0,
        };
    if flags & !known != 0 {
        return None;
    }
    let generation = if flags & HAS_GENERATION == 0 { 0 } else { rest.try_get_u64().ok()? };
    let content = match kind {
        b'N' => Content::Negative,
        b'A' => Content::Pointer(take_identity(&mut rest)?),
        b'I' => {
            let to = take_identity(&mut rest)?;
            let filled_with =
                if flags & HAS_TOKEN != 0 { Some(Token::from_bytes(take_array(&mut rest)?)) } else { None };
            Content::IdentifierPointer(IdentifierPointer { to, filled_with })
        }
        b'P' => {
            let modified = rest.try_get_i64().ok()?;
            let modified = (flags & HAS_MODIFIED != 0).then_some(Modified::from_millis(modified));
            let validator = take_array(&mut rest)?;
            let identifiers = if flags & HAS_MARKS != 0 { take_marks(&mut rest)? } else { IdentifierMarks::default() };
            // The rest is the body: a part of the same buffer, not a copy.
            let body = ProfileBody::new(std::mem::take(&mut rest));
            // Such a body was written by somebody else, or by a version without this limit.
            if body.is_nested_too_deep() {
                return None;
            }
            Content::Found(Found { body, validator, modified, identifiers })
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

const fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

fn take_marks(rest: &mut Bytes) -> Option<IdentifierMarks> {
    let length = usize::from(rest.try_get_u16().ok()?);
    (length > 0 && length <= rest.len()).then(|| rest.split_to(length)).and_then(IdentifierMarks::from_bytes)
}

fn put_identity(out: &mut impl BufMut, identity: &Identity) {
    let tenant = identity.tenant().as_str().as_bytes();
    // A tenant id is at most 64 bytes long.
    let kind = u8::from(identity.is_identifier()) * OF_IDENTIFIER;
    out.put_u8(u8::try_from(tenant.len()).unwrap_or_default() | kind);
    out.put_slice(tenant);
    out.put_slice(identity.full_digest());
}

fn take_identity(rest: &mut Bytes) -> Option<Identity> {
    let first = rest.try_get_u8().ok()?;
    let length = usize::from(first & !OF_IDENTIFIER);
    let tenant = std::str::from_utf8(rest.get(..length)?).ok()?.parse().ok()?;
    rest.advance(length);
    let full = take_array(rest)?;
    Some(if first & OF_IDENTIFIER == 0 { Identity::new(tenant, full) } else { Identity::of_identifier(tenant, full) })
}
