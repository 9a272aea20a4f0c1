//! The wire form of an event, version 1: JSON, the same in every queue.
//!
//! [`encode`] and [`decode`] are inverses. The rules for reading are fixed, so that a newer program can extend the
//! form: an unknown field is ignored; an unknown `shape` is read as [`Shape::Other`], since the shape does not change
//! how an event is applied; a higher version is refused as [`DeadLetterReason::UnknownVersion`], whatever its other fields are;
//! all other bytes are refused as [`DeadLetterReason::Undecodable`]. A refusal carries the length and the SHA-256 of the bytes,
//! never the bytes.
//!
//! The form contains no customer id, no identifier and no part of a profile, see [`crate::domain::event`].

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::{
    Digest, Event, EventTime, Modified, Precision, Redelivery, Shape, Stamps, TenantId, Timestamp, Traceparent,
};

use super::{DeadLetterReason, Undecodable};

/// The version that this program writes, and the highest version that it reads.
pub const VERSION: u64 = 1;

/// The fields of version 1. An optional field without a value is omitted.
#[derive(Serialize, Deserialize)]
struct WireEvent<'a> {
    v: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    tenant: TenantId,
    keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    identifiers: Vec<String>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<Modified>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_precision: Option<Precision>,
    received_at: Timestamp,
    #[serde(borrow)]
    shape: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    force: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    again: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
}

/// The only field that every version has.
#[derive(Deserialize)]
struct Versioned {
    v: u64,
}

/// Encodes an event in version 1.
///
/// # Panics
///
/// Never: a struct of strings and numbers always serializes to JSON.
#[must_use]
pub fn encode(event: &Event) -> Bytes {
    let form = WireEvent {
        v: VERSION,
        id: event.id.as_str().into(),
        tenant: event.tenant.clone(),
        keys: event.keys.iter().map(Digest::to_string).collect(),
        identifiers: event.identifiers.iter().map(Digest::to_string).collect(),
        kind: event.kind.as_str().into(),
        modified: event.stamps.modified,
        at: event.stamps.at.map(EventTime::as_millis),
        at_precision: event.stamps.at.map(EventTime::precision),
        received_at: event.received_at,
        shape: event.shape.as_str().into(),
        identity: Some(event.identity.to_string()),
        force: event.force,
        traceparent: event.traceparent.as_ref().map(Traceparent::to_string),
        again: event.again.map(|again| again.as_str().into()),
        replay: match event.again {
            Some(Redelivery::Replayed(id)) => Some(id.to_string()),
            Some(Redelivery::Restored | Redelivery::Redriven) | None => None,
        },
    };
    // Serialization fails only on map keys that are not strings and on failing writers. There are none here.
    serde_json::to_vec(&form).expect("texts and numbers are JSON").into()
}

/// Decodes an event of version 1.
///
/// # Errors
///
/// [`Undecodable`] with the reason, see the module head.
pub fn decode(bytes: &[u8]) -> Result<Event, Undecodable> {
    let event = serde_json::from_slice(bytes).ok().and_then(read);
    event.ok_or_else(|| match serde_json::from_slice::<Versioned>(bytes) {
        Ok(Versioned { v }) if v > VERSION => undecodable(bytes, DeadLetterReason::UnknownVersion),
        Ok(_) | Err(_) => undecodable(bytes, DeadLetterReason::Undecodable),
    })
}

fn read(form: WireEvent<'_>) -> Option<Event> {
    let at = match (form.at, form.at_precision) {
        (Some(millis), Some(precision)) => Some(EventTime::new(millis, precision)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return None,
    };
    let identity = match &form.identity {
        Some(identity) => identity.parse().ok()?,
        None => derived_identity(&form),
    };
    Some(Event {
        id: form.id.parse().ok()?,
        identity,
        keys: distinct(&form.keys).filter(|keys| !keys.is_empty())?,
        identifiers: distinct(&form.identifiers)?,
        tenant: form.tenant,
        kind: form.kind.parse().ok()?,
        stamps: Stamps { modified: form.modified, at },
        received_at: form.received_at,
        shape: form.shape.parse().unwrap_or(Shape::Other),
        // A malformed trace context must not cost the event.
        traceparent: form.traceparent.and_then(|text| text.parse().ok()),
        force: form.force,
        again: form.again.map(|again| redelivery(&again, form.replay.as_deref())),
    })
    .filter(|_| form.v == VERSION)
}

/// Returns why an event is redelivered. An unknown reason is read as `Restored`, the most cautious one.
fn redelivery(again: &str, replay: Option<&str>) -> Redelivery {
    match (again, replay.and_then(|id| id.parse().ok())) {
        ("replayed", Some(id)) => Redelivery::Replayed(id),
        ("redriven", _) => Redelivery::Redriven,
        _ => Redelivery::Restored,
    }
}

/// Parses digests; `None` if one is repeated.
fn distinct(texts: &[String]) -> Option<Vec<Digest>> {
    let digests: Vec<Digest> = texts.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
    let mut sorted = digests.clone();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1]).then_some(digests)
}

/// Returns the identity of an event that was written without one: the first 16 bytes of a SHA-256 over tenant, shape
/// and id, each followed by a zero byte, which none of them can contain.
fn derived_identity(form: &WireEvent<'_>) -> Digest {
    let mut hash = Sha256::new();
    for part in [form.tenant.as_str(), &form.shape, &form.id] {
        hash.update(part);
        hash.update([0]);
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&hash.finalize()[..16]);
    Digest::from_bytes(identity)
}

/// Describes bytes that are refused.
pub(super) fn undecodable(bytes: &[u8], reason: DeadLetterReason) -> Undecodable {
    Undecodable { length: bytes.len(), sha256: hex::encode(Sha256::digest(bytes)), reason }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::domain::{EventId, Kind, ReplayId};

    use super::*;

    fn digest() -> impl Strategy<Value = Digest> {
        any::<[u8; 16]>().prop_map(Digest::from_bytes)
    }

    prop_compose! {
        fn event()(
            id in "[A-Za-z0-9._:+-]{1,128}",
            identity in digest(),
            tenant in "[A-Za-z0-9._-]{1,64}",
            keys in proptest::collection::btree_set(digest(), 1..5),
            identifiers in proptest::collection::btree_set(digest(), 0..5),
            kind in proptest::sample::select(&Kind::ALL[..]),
            modified in proptest::option::of(any::<i64>()),
            at in proptest::option::of((any::<i64>(), any::<bool>())),
            received_at in any::<i64>(),
            shape in proptest::sample::select(&Shape::ALL[..]),
            traceparent in proptest::option::of(any::<([u8; 16], [u8; 8], bool)>()),
            force in any::<bool>(),
            again in proptest::option::of(proptest::sample::select(vec![
                Redelivery::Restored, Redelivery::Redriven, Redelivery::Replayed(ReplayId::fresh()),
            ])),
        ) -> Event {
            let precision = |fine| if fine { Precision::Millis } else { Precision::Seconds };
            Event {
                id: id.parse().unwrap(),
                identity,
                tenant: tenant.parse().unwrap(),
                keys: keys.into_iter().collect(),
                identifiers: identifiers.into_iter().collect(),
                kind,
                stamps: Stamps {
                    modified: modified.map(Modified::from_millis),
                    at: at.map(|(millis, fine)| EventTime::new(millis, precision(fine))),
                },
                received_at: Timestamp::from_millis(received_at),
                shape,
                traceparent: traceparent.and_then(|(trace, parent, sampled)| Traceparent::new(trace, parent, sampled)),
                force,
                again,
            }
        }
    }

    fn documented() -> Value {
        json!({
            "v": 1, "id": "e-1", "tenant": "10001", "keys": ["000102030405060708090a0b0c0d0e0f"],
            "kind": "updated", "modified": 1_741_064_767_089_i64, "at": 1_741_064_767_435_i64,
            "at_precision": "ms", "received_at": 1_741_064_767_500_i64, "shape": "eventbridge",
        })
    }

    fn decode_json(value: &Value) -> Result<Event, Undecodable> {
        decode(value.to_string().as_bytes())
    }

    fn with(field: &str, value: Value) -> Value {
        let mut form = documented();
        form[field] = value;
        form
    }

    fn reason(value: &Value) -> DeadLetterReason {
        decode_json(value).unwrap_err().reason
    }

    proptest! {
        #[test]
        fn encode_and_decode_are_inverses(event in event()) {
            prop_assert_eq!(decode(&encode(&event)).unwrap(), event);
        }

        #[test]
        fn any_bytes_are_refused_with_their_length_and_digest(bytes in any::<Vec<u8>>()) {
            let refused = decode(&bytes).unwrap_err();
            prop_assert_eq!(refused.length, bytes.len());
            prop_assert_eq!(refused.sha256, hex::encode(Sha256::digest(&bytes)));
        }

        #[test]
        fn damaged_bytes_are_refused_or_decode_to_a_valid_event(event in event(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = encode(&event).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&read)).unwrap(), read);
            }
            prop_assert!(decode(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_malformed_trace_context_is_ignored() {
        let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = |text: &str| decode_json(&with("traceparent", text.into())).unwrap().traceparent;
        assert_eq!(read(context).map(|read| read.to_string()).as_deref(), Some(context));
        assert_eq!(read("planted"), None);
    }

    #[test]
    fn the_documented_form_is_read() {
        let event = decode_json(&documented()).unwrap();
        assert_eq!(event.id, "e-1".parse::<EventId>().unwrap());
        assert_eq!(event.keys[0].to_string(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(event.stamps.at, Some(EventTime::new(1_741_064_767_435, Precision::Millis)));
        assert_eq!(event.stamps.modified, Some(Modified::from_millis(1_741_064_767_089)));
        assert_eq!((event.kind, event.shape, event.force), (Kind::Updated, Shape::EventBridge, false));
    }

    #[test]
    fn the_documented_form_is_written_without_absent_fields() {
        let mut written: Value = serde_json::from_slice(&encode(&decode_json(&documented()).unwrap())).unwrap();
        assert!(written["identity"].take().is_string());
        written.as_object_mut().unwrap().remove("identity");
        assert_eq!(written, documented());

        let mut bare = documented();
        for stamp in ["modified", "at", "at_precision"] {
            bare.as_object_mut().unwrap().remove(stamp);
        }
        let written: Value = serde_json::from_slice(&encode(&decode_json(&bare).unwrap())).unwrap();
        let fields: BTreeSet<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["v", "id", "tenant", "keys", "kind", "received_at", "shape", "identity"];
        assert_eq!(fields, expected.into_iter().collect());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert_eq!(decode_json(&with("later", json!({"x": [1]}))), decode_json(&documented()));
    }

    #[test]
    fn an_unknown_shape_decodes_as_other_and_changes_nothing_else() {
        let identity = "f0e0d0c0b0a090807060504030201000";
        let of_a_newer_version = json!({"fields": ["later"]});
        let decoded = |shape: &str| {
            let mut form = with("shape", shape.into());
            form["identity"] = identity.into();
            form["details"] = of_a_newer_version.clone();
            decode_json(&form).unwrap()
        };
        let unknown = decoded("audiohook");
        assert_eq!(unknown, Event { shape: Shape::Other, ..decoded("flat") });
        assert_eq!(unknown.dedup_digest(), decoded("flat").dedup_digest());
        assert_eq!(serde_json::from_slice::<Value>(&encode(&unknown)).unwrap()["shape"], "other");
        assert_eq!(decode(&encode(&unknown)).unwrap(), unknown);

        let mut higher = with("shape", "audiohook".into());
        higher["v"] = json!(VERSION + 1);
        assert_eq!(reason(&higher), DeadLetterReason::UnknownVersion);
    }

    #[test]
    fn a_higher_version_is_not_reported_as_damage() {
        assert_eq!(reason(&with("v", json!(2))), DeadLetterReason::UnknownVersion);
        assert_eq!(reason(&json!({"v": 7, "everything": "else"})), DeadLetterReason::UnknownVersion);
        assert_eq!(reason(&with("v", json!(0))), DeadLetterReason::Undecodable);
        assert_eq!(reason(&with("v", json!("1"))), DeadLetterReason::Undecodable);
    }

    #[test]
    fn invalid_field_values_are_refused() {
        let key = "000102030405060708090a0b0c0d0e0f";
        for (field, value) in [
            ("id", json!("")),
            ("id", json!("with space")),
            ("tenant", json!("a/b")),
            ("keys", json!([])),
            ("keys", json!([key, key])),
            ("keys", json!([key.to_uppercase()])),
            ("identifiers", json!([key, key])),
            ("identifiers", json!(["+13175550101"])),
            ("kind", json!("renamed")),
            ("shape", json!(7)),
            ("at", Value::Null),
            ("at_precision", Value::Null),
            ("at_precision", json!("ns")),
            ("received_at", json!("now")),
            ("identity", json!("short")),
        ] {
            assert_eq!(reason(&with(field, value.clone())), DeadLetterReason::Undecodable, "{field}: {value}");
        }
    }

    #[test]
    fn a_missing_identity_is_derived_from_tenant_shape_and_id() {
        let identity = |value: &Value| decode_json(value).unwrap().identity;
        assert_eq!(identity(&documented()), identity(&with("kind", json!("deleted"))));
        for (field, value) in [("tenant", "10002"), ("shape", "flat"), ("id", "e-2")] {
            assert_ne!(identity(&documented()), identity(&with(field, json!(value))), "{field}");
        }
    }
}
