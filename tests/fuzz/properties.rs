//! The properties of every parser of external input, for any input.
//!
//! Each function takes arbitrary bytes and panics if a property is violated. Each fuzz target calls one function; the
//! integration tests replay all stored inputs, so that an old finding cannot return.
//!
//! [`PLANTED`] marks personal data and secrets in the inputs: no error text and no queue message may contain it.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use profile_edge::config;
use profile_edge::domain::{
    CustomerId, Digest, EventId, EventTime, Key, KeyHasher, Modified, ProfileBody, Secret, TenantId, Timestamp, profile,
};
use profile_edge::http::auth::field_set::FieldSet;
use profile_edge::http::request::query;
use profile_edge::ingest::authenticate::{self, Authenticator, ReceivedRequest, Scheme};
use profile_edge::ingest::shapes::{self, PostedEvent, PostedRequest};
use profile_edge::queue::wire;
use profile_edge::store::sealed::keyring::{self, Keyring};
use profile_edge::store::{Content, Entry, Record, redis};
use sha2::Sha256;

/// The marker of personal data. No field, key or identifier has this name.
const PLANTED: &str = "planted";

/// The arrival time of signed requests, in seconds: the test vector of the Standard Webhooks libraries.
const NOW: i64 = 1_614_265_330;

const API_KEY: &str = "planted-key";
const USER: &str = "eventbridge";
const PASSWORD: &str = "planted-password-1";
const TOKEN: &str = "planted-token";
const HUB_SECRET: &str = "planted-secret";
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A webhook body, after the headers of a binary `CloudEvents` event if there are any: it is parsed or refused, and neither
/// the error nor the queue message reveals the customer.
pub(super) fn webhooks(data: &[u8]) {
    let (headers, body) = request(data);
    let tenant: TenantId = "10001".parse().expect("a tenant id");
    for posted in [shapes::read_any(Some(&headers), body), shapes::read_flat(body)] {
        match posted {
            Ok(posted) => announced(posted, &tenant),
            Err(malformed) => hides_planted(&format!("{malformed} {malformed:?}")),
        }
    }
    if let Err(malformed) = shapes::read_tenant(body) {
        hides_planted(&malformed.to_string());
    }
}

fn announced(posted: PostedRequest, tenant: &TenantId) {
    assert!(posted.items.len() <= shapes::MAX_EVENTS && !posted.items.is_empty());
    for item in posted.items {
        let PostedEvent::Announced(announcement) = item else { continue };
        let named = announcement.customers.clone();
        assert!(!named.is_empty() && named.len() <= shapes::MAX_CUSTOMERS);
        let hasher = KeyHasher::Sha256;
        let event = announcement.into_event(tenant, std::slice::from_ref(&hasher), Timestamp::from_millis(0));
        for customer in &named {
            assert!(event.keys.contains(&hasher.identify(tenant, customer).digest()), "an id without a key to evict");
        }
        let written = wire::encode(&event);
        let text = String::from_utf8(written.to_vec()).expect("the wire form is text");
        for customer in named.iter().filter(|customer| customer.expose().contains(PLANTED)) {
            assert!(!text.contains(customer.expose()), "a customer id in the wire form: {text}");
        }
        assert_eq!(wire::decode(&written).expect("an encoded value decodes"), event);
    }
}

/// A request with credentials of any scheme: it is accepted if and only if a straightforward implementation of the scheme,
/// without constant-time comparison, accepts it.
pub(super) fn signatures(data: &[u8]) {
    let (headers, body) = request(data);
    let config = |scheme, username: Option<&str>, secret: &str| authenticate::Config {
        scheme,
        header: None,
        username: username.map(str::to_owned),
        secrets: vec![Secret::new("AnotherSecretOfLength24b"), Secret::new(secret)],
        networks: None,
    };
    let schemes = [
        (config(Scheme::ApiKey, None, API_KEY), api_key(&headers)),
        (config(Scheme::Basic, Some(USER), PASSWORD), basic(&headers)),
        (config(Scheme::Bearer, None, TOKEN), bearer(&headers)),
        (config(Scheme::HubSignature, None, HUB_SECRET), hub_signature(&headers, body)),
        (config(Scheme::StandardWebhooks, None, STANDARD_SECRET), standard_webhooks(&headers, body)),
    ];
    let now = Timestamp::from_millis(NOW * 1_000);
    let request = ReceivedRequest { headers: &headers, body, peer: None };
    let mut all = Vec::new();
    for (config, expected) in &schemes {
        let authenticator = Authenticator::new(config).expect("the configuration is usable");
        let alone = std::slice::from_ref(&authenticator);
        assert_eq!(authenticate::verify(alone, &request, now).is_some(), *expected, "{:?}", config.scheme);
        all.push(authenticator);
    }
    let verified = authenticate::verify(&all, &request, now);
    assert_eq!(verified.is_some(), schemes.iter().any(|(_, expected)| *expected));
    let signed = schemes[4].1;
    let is_trusted = schemes[..3].iter().any(|(_, expected)| *expected);
    let sees_headers = verified.as_ref().is_some_and(|proof| proof.headers.is_some());
    assert_eq!(sees_headers, is_trusted, "a signature covers no header");
    let id_counts = verified.is_some_and(|verified| verified.message_id.is_some());
    assert_eq!(id_counts, signed, "an id counts only if it is signed");
}

fn api_key(headers: &HeaderMap) -> bool {
    one(headers, "x-api-key") == Some(API_KEY.as_bytes())
}

fn basic(headers: &HeaderMap) -> bool {
    // Thirty bytes need no base64 padding, so there is only one encoding.
    credentials(headers, "basic") == Some(STANDARD.encode(format!("{USER}:{PASSWORD}")).as_bytes())
}

fn bearer(headers: &HeaderMap) -> bool {
    credentials(headers, "bearer") == Some(TOKEN.as_bytes())
}

fn hub_signature(headers: &HeaderMap, body: &[u8]) -> bool {
    let Some(given) = one(headers, "x-hub-signature-256") else { return false };
    let Some(given) = given.trim_ascii().strip_prefix(b"sha256=") else { return false };
    let mac = mac(HUB_SECRET.as_bytes(), body);
    given == STANDARD.encode(mac).as_bytes() || given.eq_ignore_ascii_case(hex::encode(mac).as_bytes())
}

fn standard_webhooks(headers: &HeaderMap, body: &[u8]) -> bool {
    let (id, timestamp) = (one(headers, "webhook-id"), one(headers, "webhook-timestamp"));
    let (Some(id), Some(timestamp), Some(given)) = (id, timestamp, one(headers, "webhook-signature")) else {
        return false;
    };
    let seconds = std::str::from_utf8(timestamp).ok().and_then(|text| text.parse::<u64>().ok());
    let recent = seconds.is_some_and(|seconds| (NOW as u64).abs_diff(seconds) <= 300);
    if !recent || timestamp.starts_with(b"+") || id.is_empty() || std::str::from_utf8(id).is_err() {
        return false;
    }
    let key = STANDARD.decode(&STANDARD_SECRET[6..]).expect("our own");
    let expected = format!("v1,{}", STANDARD.encode(mac(&key, &[id, b".", timestamp, b".", body].concat())));
    given.split(|b| *b == b' ').any(|given| given == expected.as_bytes())
}

fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a [u8]> {
    let given = one(headers, "authorization")?;
    let space = given.iter().position(|b| *b == b' ')?;
    let rest = given[space..].trim_ascii();
    (given[..space].eq_ignore_ascii_case(scheme.as_bytes()) && !rest.is_empty()).then_some(rest)
}

fn mac(key: &[u8], text: &[u8]) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).expect("any key").chain_update(text).finalize().into_bytes().into()
}

/// An identifier or a time as text: a parsed value prints as it was, or parses again as an equal value.
pub(super) fn identifiers(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<CustomerId>() {
        Ok(customer) => {
            assert_eq!(customer.expose(), text);
            assert!((1..=256).contains(&text.len()) && text != "." && text != "..");
            assert!(!text.contains(['/', '\\', '?', '#', '%']) && !text.chars().any(char::is_control));
            let form = customer.hashed_form().parse::<CustomerId>().expect("the hashed form is an id too");
            assert_eq!(form.hashed_form(), customer.hashed_form());
            assert!(!text.contains(PLANTED) || !format!("{customer:?}").contains(text));
        }
        Err(error) => hides_planted(&error.to_string()),
    }
    round_trip::<TenantId>(text, |tenant| tenant.to_string());
    round_trip::<EventId>(text, |event| event.to_string());
    round_trip::<Digest>(text, |digest| digest.to_string());
    round_trip::<Key>(text, |key| key.to_string());
    if let (Ok(modified), Ok(at)) = (text.parse::<Modified>(), text.parse::<EventTime>()) {
        assert_eq!(modified.as_millis(), at.as_millis(), "one text, one time");
    }
    if let Err(error) = text.parse::<EventTime>() {
        hides_planted(&error.to_string());
    }
}

fn round_trip<T: FromStr + PartialEq + std::fmt::Debug>(text: &str, format: impl Fn(&T) -> String)
where
    T::Err: std::fmt::Debug,
{
    match text.parse::<T>() {
        Ok(parsed) => {
            assert_eq!(format(&parsed), text);
            assert_eq!(format(&parsed).parse::<T>().expect("a printed value parses"), parsed);
        }
        Err(error) => hides_planted(&format!("{error:?}")),
    }
}

/// A query string: parsed values, written as a query again, parse to the same values.
pub(super) fn queries(data: &[u8]) {
    const NAMES: [&str; 3] = ["customerId", "tenantId", "fields"];
    let Ok(text) = std::str::from_utf8(data) else { return };
    let found = match query::parse(text, NAMES) {
        Ok(found) => found,
        Err(problem) => return hides_planted(&format!("{} {problem:?}", problem.detail())),
    };
    let mut written = String::new();
    for (name, value) in NAMES.iter().zip(&found) {
        if let Some(value) = value {
            let encoded: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            let _ = write!(written, "&{name}={encoded}");
        }
    }
    assert_eq!(query::parse(&written, NAMES).expect("an encoded value decodes"), found);
}

/// A queue message: it is refused with only its length and digest in the error, or it encodes and decodes again as the same
/// event.
pub(super) fn wire(data: &[u8]) {
    match wire::decode(data) {
        Ok(event) => assert_eq!(wire::decode(&wire::encode(&event)).expect("an encoded value decodes"), event),
        Err(refused) => {
            assert_eq!(refused.length, data.len());
            hides_planted(&format!("{refused:?}"));
        }
    }
}

/// A value in Redis: it is corrupt and keeps its bytes, or it encodes and decodes again as the same record.
pub(super) fn records(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    match redis::fuzz::decode(bytes.clone()) {
        Entry::Record(record) => {
            let Entry::Record(again) = redis::fuzz::decode(redis::fuzz::encode(&record)) else {
                panic!("an encoded value decodes");
            };
            // The Debug form hides the body; the encoded form contains it.
            assert_eq!(format!("{again:?}"), format!("{record:?}"));
            assert_eq!(redis::fuzz::encode(&again), redis::fuzz::encode(&record));
            hides_planted_body(&format!("{record:?}"), &record);
            opens_or_stays_sealed(record);
        }
        Entry::Corrupt(kept) => assert_eq!(kept, bytes),
        Entry::Tombstone(_) | Entry::Leased(_) => {}
    }
    let _ = redis::fuzz::decode_fence(data);
}

/// A sealed record opens or stays sealed; an opened record can be sealed again.
fn opens_or_stays_sealed(record: Record) {
    static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
        let key = Secret::new(STANDARD.encode([1; 32]));
        let config = keyring::Config { active: "k1".to_owned(), keys: [("k1".to_owned(), key)].into() };
        Keyring::new(&config, &["10001".parse().expect("a tenant id")]).expect("the configuration is usable")
    });
    let (key, mut opened) = (record.identity.key(), record);
    let answer = KEYRING.open(&key, &mut opened);
    assert_eq!(answer.is_err(), matches!(opened.content, Content::Sealed(_)));
    if answer.is_ok() {
        let mut again = KEYRING.seal(&key, opened.clone());
        assert_eq!(KEYRING.open(&key, &mut again), Ok(()));
        assert_eq!(redis::fuzz::encode(&again), redis::fuzz::encode(&opened));
    }
}

fn hides_planted_body(shown: &str, record: &Record) {
    // A tenant id may contain the marker, and is shown.
    let target = match &record.content {
        Content::Pointer(to) => Some(to),
        Content::IdentifierPointer(pointer) => Some(&pointer.to),
        _ => None,
    };
    if !std::iter::once(&record.identity).chain(target).any(|shown| shown.tenant().as_str().contains(PLANTED)) {
        hides_planted(shown);
    }
}

/// A configuration file: it loads, or its errors are reported; neither output contains its secrets.
pub(super) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The parser must not read files of this machine.
    if text.contains("file:") {
        return;
    }
    let secrets: Vec<String> = text.parse::<toml::Table>().map(|table| secrets(&table)).unwrap_or_default();
    let output = match config::from_toml(text) {
        Ok(loaded) => format!("{} {} {:?}", loaded.report.text(), loaded.report.json_lines(), loaded.config),
        Err(errors) => errors.to_string(),
    };
    for secret in secrets {
        assert!(!output.contains(&secret), "the output contains a secret: {output}");
    }
}

/// Returns the marked secrets: the values of `client_secret` and `secrets` that appear nowhere else.
fn secrets(table: &toml::Table) -> Vec<String> {
    let (mut secret, mut open) = (Vec::new(), String::new());
    classify("", &toml::Value::Table(table.clone()), &mut secret, &mut open);
    secret.retain(|text| text.contains(PLANTED) && !text.starts_with("env:") && !open.contains(text.as_str()));
    secret
}

fn classify(key: &str, value: &toml::Value, secret: &mut Vec<String>, open: &mut String) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let _ = writeln!(open, "{key}");
                classify(key, value, secret, open);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| classify(key, item, secret, open)),
        toml::Value::String(text) if matches!(key, "client_secret" | "secrets") => secret.push(text.clone()),
        other => drop(writeln!(open, "{other}")),
    }
}

/// A list of fields and a profile, separated by a line end: the filtered JSON object is a JSON object, and all of it is
/// visible.
pub(super) fn fields(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let Ok(list) = std::str::from_utf8(&data[..end]) else { return };
    let Ok(visible) = FieldSet::parse(list.split(',').map(str::trim)) else { return };
    assert!(visible.covers(&visible) && FieldSet::All.covers(&visible));
    let body = Bytes::copy_from_slice(data.get(end + 1..).unwrap_or_default());
    let whole = serde_json::from_slice::<serde_json::Value>(&body).ok().filter(serde_json::Value::is_object);
    let Ok((left, _)) = visible.filter(&body) else {
        assert!(whole.is_none(), "an object is filtered");
        return;
    };
    assert_eq!(visible.filter(&left).expect("what is left is an object").0, left);
    if let Some(whole) = whole.as_ref().filter(|whole| levels(whole) > profile::MAX_NESTING) {
        assert!(ProfileBody::new(body).is_nested_too_deep(), "{whole}");
    }
    if let (Some(whole), FieldSet::Only(_)) = (whole, &visible) {
        let left: serde_json::Value = serde_json::from_slice(&left).expect("a filtered object is JSON");
        is_part_of(&left, &whole);
    }
}

fn levels(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    let below = match value {
        Value::Object(members) => members.values().map(levels).max(),
        Value::Array(items) => items.iter().map(levels).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    1 + below.unwrap_or_default()
}

fn is_part_of(part: &serde_json::Value, whole: &serde_json::Value) {
    use serde_json::Value;
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().for_each(|(name, part)| is_part_of(part, whole.get(name).expect("filtering adds no fields")));
        }
        (Value::Array(part), Value::Array(whole)) => {
            assert!(part.len() <= whole.len());
        }
        // If only fields of a scalar are visible, nothing is left of it.
        (Value::Null, Value::Bool(_) | Value::Number(_) | Value::String(_)) => {}
        (part, whole) => assert_eq!(part, whole),
    }
}

/// Reads `name: value` lines up to an empty line as headers; without an empty line everything is the body.
fn request(data: &[u8]) -> (HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    let Some(end) = data.windows(2).position(|pair| pair == b"\n\n") else { return (headers, data) };
    for line in data[..end].split(|b| *b == b'\n') {
        let mut parts = line.splitn(2, |b| *b == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    (headers, &data[end + 2..])
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

fn hides_planted(text: &str) {
    assert!(!text.contains(PLANTED), "marked data in the output: {text}");
}
