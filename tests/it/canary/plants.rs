//! The plants, and the search for them: which plant is in which place, in which form.
//!
//! A plant is found verbatim and in each encoding that programs use: escaped, percent-encoded, in hex, in base64 at any
//! offset, and as a list of numbers. The comparison ignores case. The forms are long enough to exclude matches by chance.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// The planted person. All values are unique, so that every hit is a leak.
pub(super) const FIRST_NAME: &str = "Zephyrina";
pub(super) const LAST_NAME: &str = "Canaryname-Østergård";
pub(super) const EMAIL: &str = "zephyrina.canary@example.com";
pub(super) const PHONE: &str = "+15550199871";
pub(super) const ADDRESS: &str = "17 Canarybird Lane";
/// Her id at Genesys.
pub(super) const UUID: &str = "c4a4a7e0-cafe-4bad-8ace-0123456789ab";
/// Her id in the CRM, and the id of another person.
pub(super) const FREE_ID: &str = "CANARY-CUSTOMER-4711";
pub(super) const SPACED_ID: &str = "kanarie klant ø 4712";

/// The credentials of senders of events.
pub(super) const API_KEY: &str = "canary-webhook-api-key";
pub(super) const PASSWORD: &str = "canary-webhook:password";
pub(super) const BEARER: &str = "canary-webhook-bearer";
pub(super) const HUB_SECRET: &str = "canary-webhook-hub-secret";
pub(super) const STANDARD_SECRET: &[u8] = b"canary-standard-webhooks-secret";
/// A secret that a reload adds.
pub(super) const NEXT_SECRET: &str = "canary-next-webhook-key";

/// The credentials of callers and operators, and a wrong one.
pub(super) const CALLER_KEY: &str = "canary-caller-key-desktop";
pub(super) const NARROW_KEY: &str = "canary-caller-key-narrow";
pub(super) const SLOW_KEY: &str = "canary-caller-key-slow";
pub(super) const ADMIN_KEY: &str = "canary-operators-key";
pub(super) const WRONG: &str = "canary-wrong-credential";

/// The credentials of profile-edge itself.
pub(super) const CLIENT_SECRET: &str = "canary-genesys-client-secret";
pub(super) const GENESYS_TOKEN: &str = "canary-genesys-access-token";
/// That of an agent.
pub(super) const AGENT_TOKEN: &str = "canary-agents-own-genesys-token";
pub(super) const REDIS_PASSWORD: &str = "canary-redis-password";
pub(super) const AMQP_PASSWORD: &str = "canary-amqp-password";
pub(super) const OTLP_AUTHORIZATION: &str = "Bearer canary-otlp-collector";

/// Keys, which are configured in base64.
pub(super) const TOKEN_KEY: &[u8; 32] = b"canary-key-of-our-access-tokens.";
pub(super) const HASH_KEY: &[u8; 32] = b"canary-key-of-customers-digests.";
pub(super) const SEALING_KEY: &[u8; 32] = b"canary-key-that-seals-records...";
pub(super) const AUDIT_KEY: &[u8; 32] = b"canary-key-of-the-audits-chain..";

/// The characters that `application/x-www-form-urlencoded` and most programs do not encode (RFC 3986 section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The shortest form that is searched.
const SHORTEST: usize = 8;

/// A place where a plant may have leaked.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Place {
    pub(super) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

/// A plant in a place where it must not be.
#[derive(Debug)]
pub(super) struct Leak {
    pub(super) what: String,
    pub(super) form: &'static str,
    pub(super) place: String,
    #[expect(dead_code, reason = "shown where the test fails")]
    around: String,
}

/// All plants.
pub(super) struct Plants(Vec<Plant>);

struct Plant {
    what: String,
    /// Its forms, with their names.
    forms: Vec<(&'static str, String)>,
}

impl Plants {
    /// Creates all of the above.
    pub(super) fn all() -> Self {
        let mut plants = Self(Vec::new());
        for (what, text) in [
            ("the first name", FIRST_NAME),
            ("the last name", LAST_NAME),
            ("the e-mail", EMAIL),
            // With the plus and without.
            ("the phone", &PHONE[1..]),
            ("the address", ADDRESS),
            ("the id at Genesys", UUID),
            ("the id in the CRM", FREE_ID),
            ("the other id in the CRM", SPACED_ID),
            ("the webhook's api key", API_KEY),
            ("the webhook's password", PASSWORD),
            ("the webhook's bearer", BEARER),
            ("the webhook's hub secret", HUB_SECRET),
            ("the webhook's next secret", NEXT_SECRET),
            ("a caller's key", CALLER_KEY),
            ("the narrow caller's key", NARROW_KEY),
            ("the slow caller's key", SLOW_KEY),
            ("the operators' key", ADMIN_KEY),
            ("a wrong credential", WRONG),
            ("the client secret", CLIENT_SECRET),
            ("the token of Genesys", GENESYS_TOKEN),
            ("the token of an agent", AGENT_TOKEN),
            ("the password of Redis", REDIS_PASSWORD),
            ("the password of RabbitMQ", AMQP_PASSWORD),
            ("the collector's authorization", &OTLP_AUTHORIZATION["Bearer ".len()..]),
        ] {
            plants.plant(what, text.as_bytes());
        }
        for (what, key) in [
            ("the key of tokens", &TOKEN_KEY[..]),
            ("the key of digests", HASH_KEY),
            ("the key that seals", SEALING_KEY),
            ("the key of the audit", AUDIT_KEY),
            ("the webhook's standard secret", STANDARD_SECRET),
        ] {
            plants.plant(what, key);
        }
        plants
    }

    /// Adds a plant.
    pub(super) fn plant(&mut self, what: impl Into<String>, bytes: &[u8]) {
        let forms = forms(bytes);
        assert!(forms.iter().all(|(_, form)| form.len() >= SHORTEST), "{forms:?}");
        self.0.push(Plant { what: what.into(), forms });
    }

    /// Adds what anybody could compute from a customer id: its digest without a key.
    pub(super) fn plant_digest(&mut self, customer: &str) {
        let digest = Sha256::digest(customer.as_bytes());
        // The part of it that a key holds.
        self.plant(format!("the plain digest of {customer}"), &digest[..16]);
    }

    /// Returns which plant is in which place.
    pub(super) fn leaks(&self, places: &[Place]) -> Vec<Leak> {
        let mut found = Vec::new();
        for place in places {
            let text = fold(&place.bytes);
            for plant in &self.0 {
                for (form, written) in &plant.forms {
                    if let Some(at) = text.find(written) {
                        let (what, place) = (plant.what.clone(), place.name.clone());
                        let around = around(&text, at, written.len());
                        found.push(Leak { what, form, place, around });
                    }
                }
            }
        }
        found
    }
}

/// Converts each byte to a character, ASCII in lower case, so that all bytes are text.
fn fold(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect()
}

fn around(text: &str, at: usize, length: usize) -> String {
    let (before, after) = (text[..at].chars().rev().take(200), text[at + length..].chars().take(100));
    let before: String = before.collect::<Vec<_>>().into_iter().rev().collect();
    format!("{before}>>>{}<<<{}", &text[at..at + length], after.collect::<String>())
}

/// Returns the forms of bytes, in lower case.
fn forms(bytes: &[u8]) -> Vec<(&'static str, String)> {
    let mut forms = vec![("as it is", bytes.to_vec()), ("hex", hex::encode(bytes).into_bytes())];
    let mut add = |form, text: String| forms.push((form, text.into_bytes()));
    for (engine, name) in [(STANDARD_NO_PAD, "base64"), (URL_SAFE_NO_PAD, "base64url")] {
        for before in 0..3 {
            // The encoded data has `before` other bytes in front of the plant and more after it: only the characters
            // that depend on the plant alone are compared.
            let encoded = engine.encode([&[0; 3][..before], bytes].concat());
            let (begin, end) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
            add(name, encoded[begin..end].to_owned());
        }
    }
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    add("numbers", numbers.join(", "));
    add("numbers", numbers.join(","));
    add("escaped bytes", bytes.escape_ascii().to_string());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let percent = utf8_percent_encode(text, RESERVED).to_string();
        add("percent-encoded", percent.clone());
        add("form-encoded", percent.replace("%20", "+"));
        add("percent-encoded", utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        add("escaped", text.escape_default().to_string());
        add("json-escaped", json_escaped(text));
        if let Ok(uuid) = uuid::Uuid::parse_str(text) {
            add("a uuid without hyphens", uuid.simple().to_string());
            forms.push(("a uuid's bytes", uuid.as_bytes().to_vec()));
        }
    }
    let mut forms: Vec<_> = forms.into_iter().map(|(name, bytes)| (name, fold(&bytes))).collect();
    let mut seen = std::collections::HashSet::new();
    forms.retain(|(_, form)| seen.insert(form.clone()));
    forms
}

/// Escapes what is not ASCII as JSON does (RFC 8259 section 7).
fn json_escaped(text: &str) -> String {
    let units = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { units(c) }).collect()
}

/// A key as it is configured.
pub(super) fn base64(key: &[u8]) -> String {
    STANDARD.encode(key)
}

#[test]
fn a_planted_leak_is_found_and_named_in_every_form() {
    /// Its base64 has a character that differs between the two alphabets.
    const ODD: &str = "odd?>?>?>ways";
    let mut plants = Plants::all();
    plants.plant("what is odd", ODD.as_bytes());
    let numbers = format!("{:?}", EMAIL.as_bytes());
    let url: String = url::form_urlencoded::Serializer::new(String::new()).append_pair("id", SPACED_ID).finish();
    let uuid = uuid::Uuid::parse_str(UUID).unwrap();
    let simple = uuid.simple().to_string();
    for (form, what, written) in [
        ("as it is", "the id in the CRM", format!("lookup of {FREE_ID} failed").into_bytes()),
        ("as it is", "the id in the CRM", FREE_ID.to_lowercase().into_bytes()),
        ("as it is", "the id at Genesys", format!("<{}>", UUID.to_uppercase()).into_bytes()),
        ("as it is", "the phone", format!("tel:{PHONE}").into_bytes()),
        ("as it is", "the last name", [&b"\xff\0"[..], LAST_NAME.as_bytes(), b"\xfe"].concat()),
        ("hex", "the client secret", hex::encode_upper(format!("Basic {CLIENT_SECRET}")).into_bytes()),
        ("base64", "the webhook's password", STANDARD.encode(format!("user:{PASSWORD}")).into_bytes()),
        ("base64", "the webhook's password", STANDARD.encode(format!("users:{PASSWORD}!")).into_bytes()),
        ("base64", "the key that seals", base64(SEALING_KEY).into_bytes()),
        ("base64", "the id at Genesys", STANDARD.encode(format!("{{\"id\":\"{UUID}\"}}")).into_bytes()),
        ("base64url", "what is odd", URL_SAFE_NO_PAD.encode(format!("...{ODD}")).into_bytes()),
        ("numbers", "the e-mail", numbers.clone().into_bytes()),
        ("numbers", "the e-mail", numbers.replace(' ', "").into_bytes()),
        ("percent-encoded", "the e-mail", b"?mail=zephyrina.canary%40example.com".to_vec()),
        ("percent-encoded", "the e-mail", b"zephyrina%2Ecanary%40example%2ecom".to_vec()),
        ("form-encoded", "the other id in the CRM", url.into_bytes()),
        ("escaped", "the last name", format!("{{ lastName: \"{}\" }}", LAST_NAME.escape_default()).into_bytes()),
        ("json-escaped", "the last name", br#"{"lastName":"Canaryname-\u00D8sterg\u00e5rd"}"#.to_vec()),
        (
            "escaped bytes",
            "the last name",
            format!("{:?}", bytes::Bytes::from_static(LAST_NAME.as_bytes())).into_bytes(),
        ),
        ("a uuid without hyphens", "the id at Genesys", simple.into_bytes()),
        ("a uuid's bytes", "the id at Genesys", [b"\x10", &uuid.as_bytes()[..], b"\x00"].concat()),
    ] {
        let leaks = plants.leaks(&[Place::new("the log", written.clone()), Place::new("the metrics", "nothing")]);
        let is_it = |leak: &Leak| leak.form == form && leak.what == what && leak.place == "the log";
        assert!(leaks.iter().any(is_it), "{form} of {what}: {leaks:?}");
        assert!(leaks.iter().all(|leak| leak.place == "the log"), "{leaks:?}");
    }
    assert!(plants.leaks(&[Place::new("the log", "zephyr canary example.com 4711 Bearer")]).is_empty());
}

#[test]
fn a_plain_digest_of_a_customer_is_found() {
    let mut plants = Plants::all();
    plants.plant_digest(FREE_ID);
    let key = format!("cust:profile:10001:{}", hex::encode(&Sha256::digest(FREE_ID)[..16]));
    assert_eq!(plants.leaks(&[Place::new("the keys", key)]).len(), 1);
}
