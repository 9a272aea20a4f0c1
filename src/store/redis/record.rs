//! What stands in Redis: the bytes of an entry and the text of a fence.
//!
//! # Entries
//!
//! Every value at K starts with the version (one byte, [`VERSION`]), the kind (one letter) and the token
//! (16 bytes) of the write that placed it, so that a script compares tokens without reading further.
//! Then, by kind: a record holds whom it is about, its times and its content; a tombstone and a lease hold
//! their times in decimal text, which scripts write and read too. Numbers are big-endian.
//!
//! A value of an unknown version or shape decodes to [`Entry::Corrupt`]: a miss, never an error. Versions
//! that this program knows of are all read; only the newest is written.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::domain::{At, Identity, Modified, Precision, ProfileBody, TenantId, Timestamp};
use crate::store::fence::{Fence, Newest};
use crate::store::{Content, Entry, Found, Leased, Record, Token, Tombstone};

/// The version of the values that are written.
pub(super) const VERSION: u8 = 1;

/// Version, kind and token.
const HEADER: usize = 18;

/// Bits of a record's flags.
const SETTLED: u8 = 1;
const HAS_MODIFIED: u8 = 2;

/// Writes a record.
pub(super) fn encode(record: &Record) -> Bytes {
    let body = match &record.content {
        Content::Found(found) => found.body.len(),
        Content::Negative | Content::Pointer(_) => 0,
    };
    let mut out = BytesMut::with_capacity(HEADER + 2 * (32 + 1 + TenantId::MAX_LEN) + 64 + body);
    header(&mut out, kind_of(&record.content), record.token);
    put_identity(&mut out, &record.identity);
    out.put_i64(record.fetched_at.as_millis());
    for duration in [record.fetch_cost, record.ttl, record.grace] {
        out.put_u64(millis(duration));
    }
    match &record.content {
        Content::Negative => out.put_u8(flags(record, None)),
        Content::Pointer(canonical) => {
            out.put_u8(flags(record, None));
            put_identity(&mut out, canonical);
        }
        Content::Found(found) => {
            out.put_u8(flags(record, found.modified));
            out.put_i64(found.modified.map_or(0, Modified::as_millis));
            out.put_slice(&found.validator);
            out.put_slice(found.body.expose());
        }
    }
    out.freeze()
}

/// Writes a lease.
pub(super) fn encode_lease(leased: &Leased) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + 20);
    header(&mut out, b'L', leased.token);
    out.put_slice(leased.until.as_millis().to_string().as_bytes());
    out.freeze()
}

/// Reads what stands at K.
pub(super) fn decode(bytes: Bytes) -> Entry {
    read(&bytes).unwrap_or(Entry::Corrupt(bytes))
}

fn read(bytes: &Bytes) -> Option<Entry> {
    let mut rest = bytes.clone();
    if take(&mut rest, 1)?[0] != VERSION {
        return None;
    }
    let kind = take(&mut rest, 1)?[0];
    let token = Token::from_bytes(array(&mut rest)?);
    match kind {
        b'L' => Some(Entry::Leased(Leased { token, until: Timestamp::from_millis(text(&rest)?.parse().ok()?) })),
        b'T' => {
            let mut parts = text(&rest)?.split('|');
            let at = at(parts.next()?, parts.next()?)?;
            let written_at = Timestamp::from_millis(parts.next()?.parse().ok()?);
            parts.next().is_none().then_some(Entry::Tombstone(Tombstone { token, at, written_at }))
        }
        b'P' | b'N' | b'A' => read_record(kind, token, rest).map(Entry::Record),
        _ => None,
    }
}

fn read_record(kind: u8, token: Token, mut rest: Bytes) -> Option<Record> {
    let identity = take_identity(&mut rest)?;
    let fetched_at = Timestamp::from_millis(rest.try_get_i64().ok()?);
    let mut duration = || rest.try_get_u64().ok().map(Duration::from_millis);
    let (fetch_cost, ttl, grace) = (duration()?, duration()?, duration()?);
    let flags = rest.try_get_u8().ok()?;
    let content = match kind {
        b'N' => Content::Negative,
        b'A' => Content::Pointer(take_identity(&mut rest)?),
        _ => {
            let modified = rest.try_get_i64().ok()?;
            let modified = (flags & HAS_MODIFIED != 0).then_some(Modified::from_millis(modified));
            let validator = array(&mut rest)?;
            // What is left is the body: the very bytes that came from Redis, not a copy.
            Content::Found(Found { body: ProfileBody::new(std::mem::take(&mut rest)), validator, modified })
        }
    };
    let settled = flags & SETTLED != 0;
    rest.is_empty().then_some(Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled })
}

/// Reads the text of a fence; `None` for one of an unknown version, which then has no say.
///
/// `1|modified|at|precision|newest|doubt|unstamped|raised`; scripts write it.
pub(super) fn decode_fence(bytes: &[u8]) -> Option<Fence> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split('|');
    if parts.next()? != "1" {
        return None;
    }
    let modified = number(parts.next()?)?.map(Modified::from_millis);
    let at = at(parts.next()?, parts.next()?)?;
    let newest = match parts.next()? {
        "U" => Newest::Update,
        "C" => Newest::Creation,
        "D" => Newest::Deletion,
        "X" => Newest::Contested,
        _ => return None,
    };
    let (doubt, unstamped) = (parts.next()? == "1", parts.next()? == "1");
    let raised = Timestamp::from_millis(parts.next()?.parse().ok()?);
    Some(Fence { modified, at, newest, doubt, unstamped, raised })
}

/// Returns a duration in whole milliseconds, at least one: Redis refuses a lifetime of zero.
pub(super) fn lifetime(duration: Duration) -> u64 {
    // A lifetime beyond ten years is refused by nobody, but Redis overflows on the largest numbers.
    millis(duration).clamp(1, 315_360_000_000)
}

/// Returns the letter by which scripts know a precision.
pub(super) const fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Seconds => "s",
        Precision::Millis => "m",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const fn kind_of(content: &Content) -> u8 {
    match content {
        Content::Found(_) => b'P',
        Content::Negative => b'N',
        Content::Pointer(_) => b'A',
    }
}

fn flags(record: &Record, modified: Option<Modified>) -> u8 {
    u8::from(record.settled) * SETTLED + u8::from(modified.is_some()) * HAS_MODIFIED
}

fn header(out: &mut BytesMut, kind: u8, token: Token) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_slice(token.as_bytes());
}

fn put_identity(out: &mut BytesMut, identity: &Identity) {
    let tenant = identity.tenant().as_str().as_bytes();
    // A tenant id is at most 64 bytes long.
    out.put_u8(u8::try_from(tenant.len()).unwrap_or(u8::MAX));
    out.put_slice(tenant);
    out.put_slice(identity.full_digest());
}

fn take_identity(rest: &mut Bytes) -> Option<Identity> {
    let length = usize::from(rest.try_get_u8().ok()?);
    let tenant = text(&take(rest, length)?)?.parse().ok()?;
    Some(Identity::new(tenant, array(rest)?))
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (rest.len() >= length).then(|| rest.split_to(length))
}

fn array<const N: usize>(rest: &mut Bytes) -> Option<[u8; N]> {
    take(rest, N)?.as_ref().try_into().ok()
}

fn text(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Reads a number that may be missing: the outer `None` says that it is no number.
fn number(text: &str) -> Option<Option<i64>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

fn at(millis: &str, precision: &str) -> Option<Option<At>> {
    let precision = match precision {
        "s" => Precision::Seconds,
        "m" | "" => Precision::Millis,
        _ => return None,
    };
    Some(number(millis)?.map(|millis| At::new(millis, precision)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> impl Strategy<Value = Identity> {
        ("[A-Za-z0-9._-]{1,64}", any::<[u8; 32]>()).prop_map(|(tenant, full)| {
            // The pattern is a tenant id's.
            Identity::new(tenant.parse().unwrap(), full)
        })
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Negative),
            identity().prop_map(Content::Pointer),
            (prop::collection::vec(any::<u8>(), 0..200), any::<[u8; 16]>(), any::<Option<i64>>()).prop_map(
                |(body, validator, modified)| Content::Found(Found {
                    body: ProfileBody::new(body.into()),
                    validator,
                    modified: modified.map(Modified::from_millis),
                })
            ),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let duration = || (0..=u64::MAX / 2).prop_map(Duration::from_millis);
        (identity(), any::<[u8; 16]>(), content(), any::<i64>(), duration(), duration(), duration(), any::<bool>())
            .prop_map(|(identity, token, content, fetched_at, fetch_cost, ttl, grace, settled)| Record {
                identity,
                token: Token::from_bytes(token),
                content,
                fetched_at: Timestamp::from_millis(fetched_at),
                fetch_cost,
                ttl,
                grace,
                settled,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in record()) {
            let decoded = decode(encode(&record));
            // A body's Debug hides it, so bodies are compared as well.
            let body = |record: &Record| match &record.content {
                Content::Found(found) => Some(found.body.clone()),
                Content::Negative | Content::Pointer(_) => None,
            };
            let Entry::Record(read) = decoded else { panic!("not a record") };
            prop_assert_eq!(format!("{read:?}"), format!("{record:?}"));
            prop_assert_eq!(body(&read), body(&record));
        }

        #[test]
        fn anything_else_is_a_miss_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Entry::Corrupt(kept) = decode(bytes.clone()) {
                prop_assert_eq!(kept, bytes);
            }
        }

        #[test]
        fn a_record_cut_short_is_a_miss(record in record(), share in 0.0f64..1.0) {
            let whole = encode(&record);
            // A body may end anywhere; everything before it may not.
            let fixed = whole.len() - match &record.content {
                Content::Found(found) => found.body.len(),
                Content::Negative | Content::Pointer(_) => 0,
            };
            let cut = (share * fixed as f64) as usize;
            prop_assert!(matches!(decode(whole.slice(..cut)), Entry::Corrupt(_)));
        }

        #[test]
        fn a_newer_version_is_a_miss(record in record(), version in VERSION + 1..=u8::MAX) {
            let mut bytes = encode(&record).to_vec();
            bytes[0] = version;
            prop_assert!(matches!(decode(bytes.into()), Entry::Corrupt(_)));
        }

        #[test]
        fn any_text_of_a_fence_is_read_or_has_no_say(text in "[0-9|UCDXsm-]{0,60}") {
            let _ = decode_fence(text.as_bytes());
        }
    }
}
