//! The format of the values in Redis and Memcached: the bytes of an entry and the text of a fence.
//!
//! # Entries
//!
//! Every value of an entry key starts with the version (one byte, [`VERSION`]), the kind (one letter) and the token
//! (16 bytes) of the write that placed it, so that a script compares tokens without reading further. A generation is written
//! only after the first clear of a tenant.
//! The rest depends on the kind. A record holds its identity, its times and its content, in clear or sealed. A
//! tombstone and a lease hold their times as decimal text, which scripts write and read too, and a tombstone its MAC if it
//! has one: `at|precision|written[|mac]`. Numbers are big-endian.
//!
//! A value of an unknown version, kind or shape decodes to [`Entry::Corrupt`]: a miss, never an error. So a program
//! without support for sealing treats a sealed record as a miss. All known versions are read; only the newest is
//! written.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::domain::{EventTime, Modified, Precision, TenantId, Timestamp};
use crate::store::fence::{Fence, Newest};
use crate::store::sealed::macs::{MAC, StoreMac};
use crate::store::{Entry, Leased, Record, Token, Tombstone, encoding};

/// The version of the values that are written.
pub(super) const VERSION: u8 = 1;

/// Version, kind and token.
const HEADER: usize = 18;

/// Encodes a record.
pub(super) fn encode(record: &Record) -> Bytes {
    let clear = 33 + TenantId::MAX_LEN + 5 * size_of::<u64>();
    let mut out = BytesMut::with_capacity(HEADER + clear + encoding::length_of(&record.content));
    header(&mut out, encoding::kind_of(&record.content), record.token);
    encoding::put_clear(&mut out, record);
    encoding::put_content(&mut out, &record.content, record.settled, record.generation);
    out.freeze()
}

/// Encodes a lease.
pub(super) fn encode_lease(leased: &Leased) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + 20);
    header(&mut out, b'L', leased.token);
    out.put_slice(leased.until.as_millis().to_string().as_bytes());
    out.freeze()
}

/// Decodes the value of an entry key.
pub(super) fn decode(bytes: Bytes) -> Entry {
    read(&bytes).unwrap_or(Entry::Corrupt(bytes))
}

fn read(bytes: &Bytes) -> Option<Entry> {
    let mut rest = bytes.clone();
    if rest.try_get_u8().ok()? != VERSION {
        return None;
    }
    let kind = rest.try_get_u8().ok()?;
    let token = Token::from_bytes(encoding::take_array(&mut rest)?);
    match kind {
        b'L' => Some(Entry::Leased(Leased { token, until: Timestamp::from_millis(text(&rest)?.parse().ok()?) })),
        b'T' => {
            let mut parts = text(&rest)?.split('|');
            let at = at(parts.next()?, parts.next()?)?;
            let written_at = Timestamp::from_millis(parts.next()?.parse().ok()?);
            let is_whole = parts.next().is_none_or(|mac| mac.len() == 2 * MAC) && parts.next().is_none();
            is_whole.then_some(Entry::Tombstone(Tombstone { token, at, written_at }))
        }
        b'P' | b'N' | b'A' | b'I' | b'S' => read_record(kind, token, rest).map(Entry::Record),
        _ => None,
    }
}

fn read_record(kind: u8, token: Token, mut rest: Bytes) -> Option<Record> {
    let (identity, fetched_at, [fetch_cost, ttl, grace]) = encoding::take_clear(&mut rest)?;
    let (content, settled, generation) = encoding::take_content(kind, rest)?;
    Some(Record { identity, token, content, fetched_at, fetch_cost, ttl, grace, settled, generation })
}

/// Returns the MAC in the value of a tombstone.
pub(super) fn mac_of(tombstone: &[u8]) -> Option<StoreMac> {
    let (rest, digits) = tombstone.split_last_chunk::<{ 2 * MAC }>()?;
    let mut mac = [0; MAC];
    rest.ends_with(b"|").then(|| hex::decode_to_slice(digits, &mut mac).ok())?.map(|()| mac)
}

/// Returns what follows the token in the value of a tombstone with a MAC. Scripts copy it as it is.
pub(super) fn tombstone_text(at: Option<EventTime>, written_at: Timestamp, mac: StoreMac) -> String {
    format!("{}|{}", tombstone_times(at, written_at), hex::encode(mac))
}

/// Returns what follows the token in the value of a tombstone without a MAC.
pub(super) fn tombstone_times(at: Option<EventTime>, written_at: Timestamp) -> String {
    format!("{}|{}", event_time(at), written_at.as_millis())
}

/// Encodes a tombstone from what follows its token.
pub(super) fn encode_tombstone(token: Token, text: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + text.len());
    header(&mut out, b'T', token);
    out.put_slice(text.as_bytes());
    out.freeze()
}

/// Returns what follows the token in the value of a tombstone.
pub(super) fn text_of_tombstone(tombstone: &[u8]) -> Option<&str> {
    std::str::from_utf8(tombstone.get(HEADER..)?).ok()
}

/// Encodes a fence, as scripts do.
pub(super) fn encode_fence(fence: &Fence) -> String {
    let newest = match fence.newest {
        Newest::Update => "U",
        Newest::Creation => "C",
        Newest::Deletion => "D",
        Newest::Contested => "X",
    };
    let modified = fence.modified.map_or_else(String::new, |modified| modified.as_millis().to_string());
    let [doubt, unstamped] = [fence.doubt, fence.unstamped].map(u8::from);
    let at = event_time(fence.at);
    format!("1|{modified}|{at}|{newest}|{doubt}|{unstamped}|{}", fence.raised.as_millis())
}

fn event_time(at: Option<EventTime>) -> String {
    let millis = at.map_or_else(String::new, |at| at.as_millis().to_string());
    format!("{millis}|{}", at.map_or("", |at| precision(at.precision())))
}

/// Decodes the text of a fence, which scripts write: `1|modified|at|precision|newest|doubt|unstamped|raised`. The text of a
/// tombstone with a MAC, for a script that restores it, may follow and is ignored.
///
/// Returns `None` for an unknown version, which is ignored.
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

/// The furthest that the clocks of processes may differ; `common.lua` has the same number.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Returns whether a tombstone that says that it was written then can still be in use; `timely` of the scripts decides the
/// same. The value says so itself, because whoever writes to Redis also sets its expiry.
pub(super) fn is_timely(written_at: Timestamp, tombstone_ttl: Duration, now: Timestamp) -> bool {
    written_at.plus(tombstone_ttl) > now && written_at <= now.plus(MAX_CLOCK_SKEW)
}

/// Returns a duration in whole milliseconds, at least one: Redis refuses a lifetime of zero.
pub(super) fn lifetime(duration: Duration) -> u64 {
    // The limit of ten years avoids an overflow in Redis.
    encoding::millis(duration).clamp(1, 315_360_000_000)
}

/// Returns the letter by which scripts know a precision.
pub(super) const fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Seconds => "s",
        Precision::Millis => "m",
    }
}

fn header(out: &mut BytesMut, kind: u8, token: Token) {
    out.put_u8(VERSION);
    out.put_u8(kind);
    out.put_slice(token.as_bytes());
}

fn text(bytes: &Bytes) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Parses a number that may be missing; the outer `None` means that the text is not a number.
fn number(text: &str) -> Option<Option<i64>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
}

fn at(millis: &str, precision: &str) -> Option<Option<EventTime>> {
    let precision = match precision {
        "s" => Precision::Seconds,
        "m" | "" => Precision::Millis,
        _ => return None,
    };
    Some(number(millis)?.map(|millis| EventTime::new(millis, precision)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{IdentifierMarks, Identity, ProfileBody};
    use crate::store::{Ciphertext, Content, Found, IdentifierPointer};

    fn identity() -> impl Strategy<Value = Identity> {
        ("[A-Za-z0-9._-]{1,64}", any::<[u8; 32]>(), any::<bool>()).prop_map(|(tenant, full, of_identifier)| {
            // The pattern is that of a tenant id.
            let tenant = tenant.parse().unwrap();
            if of_identifier { Identity::of_identifier(tenant, full) } else { Identity::new(tenant, full) }
        })
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Negative),
            identity().prop_map(Content::Pointer),
            (identity(), any::<Option<[u8; 16]>>()).prop_map(|(to, token)| {
                Content::IdentifierPointer(IdentifierPointer { to, filled_with: token.map(Token::from_bytes) })
            }),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Content::Sealed(Ciphertext::new(bytes.into()))),
            (prop::collection::vec(any::<u8>(), 0..200), any::<[u8; 16]>(), any::<Option<i64>>(), 0_usize..=64)
                .prop_map(|(body, validator, modified, marks)| Content::Found(Found {
                    identifiers: IdentifierMarks::from_bytes(vec![7; 8 * marks].into()).unwrap(),
                    body: ProfileBody::new(body.into()),
                    validator,
                    modified: modified.map(Modified::from_millis),
                })),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let duration = || (0..=u64::MAX / 2).prop_map(Duration::from_millis);
        let times = (any::<i64>(), duration(), duration(), duration());
        (identity(), any::<[u8; 16]>(), content(), times, any::<bool>(), any::<u64>()).prop_map(
            |(identity, token, content, (fetched_at, fetch_cost, ttl, grace), settled, generation)| Record {
                identity,
                token: Token::from_bytes(token),
                content,
                fetched_at: Timestamp::from_millis(fetched_at),
                fetch_cost,
                ttl,
                grace,
                settled,
                generation,
            },
        )
    }

    proptest! {
        #[test]
        fn an_encoded_record_decodes_to_itself(record in record()) {
            let decoded = decode(encode(&record));
            // Debug hides a body, so bodies are compared as well.
            let body = |record: &Record| match &record.content {
                Content::Found(found) => Some(found.body.expose().clone()),
                Content::Sealed(ciphertext) => Some(ciphertext.as_bytes().clone()),
                Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) => None,
            };
            let Entry::Record(read) = decoded else { panic!("not a record") };
            prop_assert_eq!(format!("{read:?}"), format!("{record:?}"));
            prop_assert_eq!(body(&read), body(&record));
        }

        #[test]
        fn any_other_bytes_are_a_miss_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Entry::Corrupt(kept) = decode(bytes.clone()) {
                prop_assert_eq!(kept, bytes);
            }
        }

        #[test]
        fn a_truncated_record_is_a_miss(record in record(), share in 0.0f64..1.0) {
            let whole = encode(&record);
            // A body and a ciphertext may end anywhere; everything before them may not.
            let fixed = whole.len() - match &record.content {
                Content::Found(found) => found.body.len(),
                Content::Sealed(ciphertext) => ciphertext.as_bytes().len(),
                Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) => 0,
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
        fn any_text_of_a_fence_is_decoded_or_ignored(text in "[0-9|UCDXsm-]{0,60}") {
            let _ = decode_fence(text.as_bytes());
        }
    }
}
