//! The test cases of the reference libraries (standard-webhooks, Python and Rust), and cases that they lack.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const MESSAGE: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SECONDS: i64 = 1_614_265_330;
const VECTOR: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

/// Signatures that match no message of these tests.
const OTHERS: [&str; 3] = [
    "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=",
    "v1,tFtCZ5RDCPxzWQRWXWPgrCgE2frDBe9gjpbWQxnVfsQ=",
    "v2,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=",
];

fn keys(secrets: &[&str]) -> StandardWebhooks {
    let secrets: Vec<Secret> = secrets.iter().map(|secret| Secret::new(*secret)).collect();
    StandardWebhooks::new(&secrets).unwrap()
}

fn sign(secret: &str, message: &str, timestamp: &str, body: &[u8]) -> String {
    let key = LENIENT.decode(secret).unwrap();
    let mac = mac(&key, &[format!("{message}.{timestamp}.").as_bytes(), body]);
    format!("v1,{}", STANDARD.encode(mac))
}

fn headers(message: &str, timestamp: &str, signature: &str) -> HeaderMap {
    let value = |text: &str| HeaderValue::from_str(text).unwrap();
    [(ID, value(message)), (TIMESTAMP, value(timestamp)), (SIGNATURE, value(signature))].into_iter().collect()
}

/// The headers of the reference vector, with another signature.
fn signed_as(signature: &str) -> HeaderMap {
    headers(MESSAGE, &SECONDS.to_string(), signature)
}

fn accepts(headers: &HeaderMap) -> bool {
    accepts_at(headers, SECONDS * 1_000)
}

fn accepts_at(headers: &HeaderMap, now: i64) -> bool {
    keys(&[SECRET]).accept(headers, BODY, Timestamp::from_millis(now)).into()
}

#[test]
fn the_vectors_of_the_reference_libraries_verify() {
    assert_eq!(sign(SECRET, MESSAGE, &SECONDS.to_string(), BODY), VECTOR);
    assert!(accepts(&signed_as(VECTOR)));
    let rust =
        headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", "1649367553", "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
    let body = br#"{"email":"test@example.com","username":"test_user"}"#;
    let now = Timestamp::from_millis(1_649_367_553_999);
    assert!(bool::from(keys(&["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]).accept(&rust, body, now)));
}

#[test]
fn a_missing_empty_or_repeated_header_is_refused() {
    for name in [ID, TIMESTAMP, SIGNATURE] {
        let mut without = signed_as(VECTOR);
        let value = without.remove(&name).unwrap();
        assert!(!accepts(&without), "without {name}");
        let mut empty = signed_as(VECTOR);
        empty.insert(&name, HeaderValue::from_static(""));
        assert!(!accepts(&empty), "empty {name}");
        let mut twice = signed_as(VECTOR);
        twice.append(&name, value);
        assert!(!accepts(&twice), "twice {name}");
    }
}

#[test]
fn an_empty_id_is_refused_even_if_signed() {
    let timestamp = SECONDS.to_string();
    assert!(!accepts(&headers("", &timestamp, &sign(SECRET, "", &timestamp, BODY))));
}

#[test]
fn an_invalid_signature_is_refused() {
    assert!(!accepts(&signed_as("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OA=")));
    for other in OTHERS {
        assert!(!accepts(&signed_as(other)), "{other}");
    }
    let bare = VECTOR.trim_start_matches("v1,");
    for wrong in [bare, &format!("v1{bare}"), &format!("V1,{bare}"), &format!("v1a,{bare}"), &format!("v1, {bare}")] {
        assert!(!accepts(&signed_as(wrong)), "{wrong}");
    }
}

/// CVE-2024-21491: a library compared signatures up to the length of the shorter one, so that `v1,` matched every
/// message.
#[test]
fn a_partial_signature_is_refused() {
    for end in 0..VECTOR.len() {
        assert!(!accepts(&signed_as(&VECTOR[..end])), "{}", &VECTOR[..end]);
    }
    assert!(!accepts(&signed_as("v1, v1, v1,")));
    for longer in [format!("{VECTOR}="), format!("{VECTOR}AAAA"), VECTOR.replace('=', "AA==")] {
        assert!(!accepts(&signed_as(&longer)), "{longer}");
    }
}

#[test]
fn a_timestamp_that_is_no_integer_is_refused_even_if_signed() {
    let near = ["", "+", "-", " ", "0"].map(|before| format!("{before}{SECONDS}.0"));
    let spelled = ["+", "-", " "].map(|before| format!("{before}{SECONDS}"));
    let nonsense = ["hello", "", "0x60380000", "99999999999999999999"].map(str::to_owned);
    for timestamp in near.iter().chain(&spelled).chain(&nonsense) {
        let signature = sign(SECRET, MESSAGE, timestamp, BODY);
        assert!(!accepts(&headers(MESSAGE, timestamp, &signature)), "{timestamp}");
    }
}

#[test]
fn a_timestamp_is_valid_for_five_minutes_before_and_after() {
    for (now, accepted) in [(-301, false), (-300, true), (0, true), (300, true), (301, false)] {
        assert_eq!(accepts_at(&signed_as(VECTOR), (SECONDS + now) * 1_000), accepted, "{now}");
    }
    assert!(accepts_at(&signed_as(VECTOR), (SECONDS + 300) * 1_000 + 999));
    for now in [i64::MIN, 0, i64::MAX] {
        assert!(!accepts_at(&signed_as(VECTOR), now), "{now}");
    }
}

#[test]
fn a_timestamp_cannot_be_changed() {
    let later = headers(MESSAGE, &(SECONDS + 1).to_string(), VECTOR);
    assert!(!accepts(&later));
    // The boundary between id and timestamp cannot be moved either.
    let (message, rest) = MESSAGE.split_at(10);
    assert!(!accepts(&headers(message, &SECONDS.to_string(), &sign(SECRET, &format!("{message}.{rest}"), "1", BODY))));
}

#[test]
fn one_valid_signature_of_several_is_enough() {
    let several = [OTHERS[0], OTHERS[2], VECTOR, OTHERS[1]].join(" ");
    assert!(accepts(&signed_as(&several)));
    assert!(accepts(&signed_as(&format!("  {VECTOR}  junk v1,"))));
    assert!(!accepts(&signed_as(&OTHERS.join(" "))));
    assert!(!accepts(&signed_as(&several.replace(VECTOR, &VECTOR.replace("v1,", "v2,")))));
}

#[test]
fn either_secret_verifies_while_one_is_rotated() {
    let next = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let (both, now) = (keys(&[SECRET, next]), Timestamp::from_millis(SECONDS * 1_000));
    let timestamp = SECONDS.to_string();
    for secret in [SECRET, next.trim_start_matches("whsec_")] {
        let signature = sign(secret, MESSAGE, &timestamp, BODY);
        assert!(bool::from(both.accept(&signed_as(&signature), BODY, now)));
    }
    let unknown = sign("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", MESSAGE, &timestamp, BODY);
    assert!(!bool::from(both.accept(&signed_as(&unknown), BODY, now)));
}

#[test]
fn secrets_work_with_and_without_prefix_and_padding() {
    let (timestamp, now) = (SECONDS.to_string(), Timestamp::from_millis(SECONDS * 1_000));
    let (none, one, two) = (SECRET, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr");
    for (bare, padding) in [(none, ""), (one, "="), (two, "==")] {
        let signed = signed_as(&sign(bare, MESSAGE, &timestamp, BODY));
        for prefix in ["", "whsec_"] {
            for padding in ["", padding] {
                let secret = format!("{prefix}{bare}{padding}");
                assert!(bool::from(keys(&[&secret]).accept(&signed, BODY, now)), "{prefix}…{padding}");
            }
        }
    }
}

#[test]
fn invalid_secrets_are_refused() {
    for secret in
        ["whsec_", "whsec_c2hvcnQ=", "whsec_not base64!", "whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "demo-planted!"]
    {
        let error = StandardWebhooks::new(&[Secret::new(secret)]).unwrap_err();
        assert_eq!(error.field, "secrets", "{secret}");
        assert!(!error.to_string().contains(&secret[6..]) || secret == "whsec_", "{error}");
    }
}

proptest! {
    #[test]
    fn one_changed_byte_is_refused(at in 0usize..1000, flip in 1u8..=255) {
        let now = Timestamp::from_millis(SECONDS * 1_000);
        let mut body = BODY.to_vec();
        body[at % BODY.len()] ^= flip;
        prop_assert!(!bool::from(keys(&[SECRET]).accept(&signed_as(VECTOR), &body, now)));

        let mut mac = base64_mac(&VECTOR.as_bytes()[3..]).unwrap();
        mac[at % 32] ^= flip;
        let forged = format!("v1,{}", STANDARD.encode(mac));
        prop_assert!(!accepts(&signed_as(&forged)));

        let mut message = MESSAGE.as_bytes().to_vec();
        message[at % MESSAGE.len()] = b'a' + flip % 26;
        prop_assume!(message != MESSAGE.as_bytes());
        let message = String::from_utf8(message).unwrap();
        prop_assert!(!accepts(&headers(&message, &SECONDS.to_string(), VECTOR)));
    }

    #[test]
    fn every_signed_message_verifies(message in "[!-~]{1,60}", body in any::<Vec<u8>>(), key in prop::collection::vec(any::<u8>(), 16..64)) {
        let (secret, timestamp) = (STANDARD.encode(&key), SECONDS.to_string());
        let signed = headers(&message, &timestamp, &sign(&secret, &message, &timestamp, &body));
        let now = Timestamp::from_millis(SECONDS * 1_000);
        prop_assert!(bool::from(keys(&[&secret]).accept(&signed, &body, now)));
    }
}
