//! Known answers of the seal, and all that it must refuse.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::domain::{CustomerId, IdentifierMarks, Identity, KeyHasher, Modified, ProfileBody, Timestamp};
use crate::store::{Found, Token};

fn config(active: &str, keys: &[(&str, u8)]) -> Config {
    let secret = |byte: &u8| Secret::new(STANDARD.encode([*byte; 32]));
    Config {
        active: active.to_owned(),
        keys: keys.iter().map(|(name, byte)| ((*name).to_owned(), secret(byte))).collect(),
    }
}

fn keyring(active: &str, keys: &[(&str, u8)]) -> Keyring {
    Keyring::new(&config(active, keys), &["10001".parse().unwrap()]).unwrap()
}

fn identity(tenant: &str, customer: &str) -> Identity {
    let customer: CustomerId = customer.parse().unwrap();
    KeyHasher::Sha256.identify(&tenant.parse().unwrap(), &customer)
}

fn found(body: &[u8], modified: Option<i64>) -> Content {
    let body = ProfileBody::new(Bytes::copy_from_slice(body));
    let (validator, modified) = (body.validator(), modified.map(Modified::from_millis));
    Content::Found(Found { validator, body, modified, identifiers: IdentifierMarks::default() })
}

fn record(content: Content) -> Record {
    Record {
        identity: identity("10001", "ada"),
        token: Token::from_bytes([7; 16]),
        content,
        fetched_at: Timestamp::from_millis(1_750_000_000_000),
        fetch_cost: Duration::from_millis(150),
        ttl: Duration::from_secs(300),
        grace: Duration::from_secs(600),
        settled: true,
        generation: 9,
    }
}

fn sealed(keyring: &Keyring) -> (Key, Record) {
    let record = record(found(br#"{"firstName":"Ada"}"#, Some(5)));
    let key = record.identity.key();
    (key.clone(), keyring.seal(&key, record))
}

fn bytes(record: &Record) -> Bytes {
    let Content::Sealed(ciphertext) = &record.content else { panic!("not sealed: {record:?}") };
    ciphertext.as_bytes().clone()
}

/// The vectors of the specification (<https://c2sp.org/XAES-256-GCM>), one for each value of its first bit.
#[test]
fn the_cipher_matches_the_vectors_of_the_specification() {
    let nonce = Nonce::from(*b"ABCDEFGHIJKLMNOPQRSTUVWX");
    for (key, bound, expected) in [
        (1, &b""[..], "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, &b"c2sp.org/XAES-256-GCM"[..], "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ] {
        let mut text = b"XAES-256-GCM".to_vec();
        let cipher = Xaes256Gcm::new(&[key; 32].into());
        let tag = cipher.encrypt_inout_detached(&nonce, bound, text.as_mut_slice().into()).unwrap();
        assert_eq!(hex::encode(&text) + &hex::encode(tag), expected);
    }
}

/// The expected value is from two rounds of HMAC-SHA-256 in Python, as RFC 5869 defines them.
#[test]
fn a_tenants_key_is_derived_by_rfc_5869() {
    let mut derived = [0; 32];
    let hkdf = Hkdf::<Sha256>::new(None, &[9; 32]);
    hkdf.expand_multi_info(&[LABEL, b"10001"], &mut derived).unwrap();
    assert_eq!(hex::encode(derived), "8faf98c4fbe1c434476cd86a5331552c12e5f989baedca6bfa3d670b92b9ea91");
}

proptest! {
    #[test]
    fn a_sealed_record_opens_to_itself(
        body in prop::collection::vec(any::<u8>(), 0..3000),
        modified in any::<Option<i64>>(),
        kind in 0..3u8,
        settled in any::<bool>(),
    ) {
        let keyring = keyring("k1", &[("k1", 1)]);
        let mut plain = record(match kind {
            0 => found(&body, modified),
            1 => Content::Negative,
            _ => Content::Pointer(identity("10001", "grace")),
        });
        plain.settled = settled;
        let key = plain.identity.key();
        let mut opened = keyring.seal(&key, plain.clone());
        keyring.open(&key, &mut opened).unwrap();
        prop_assert_eq!(format!("{opened:?}"), format!("{plain:?}"));
        if let (Content::Found(opened), Content::Found(plain)) = (opened.content, plain.content) {
            prop_assert_eq!(opened.body, plain.body);
        }
    }
}

#[test]
fn a_seal_hides_the_body_and_no_two_seals_are_equal() {
    let keyring = keyring("k1", &[("k1", 1)]);
    let (first, second) = (bytes(&sealed(&keyring).1), bytes(&sealed(&keyring).1));
    assert_ne!(first[3..3 + NONCE], second[3..3 + NONCE]);
    let Content::Found(found) = found(br#"{"firstName":"Ada"}"#, Some(5)) else { unreachable!() };
    for hidden in [&b"Ada"[..], &b"firstName"[..], &found.validator[..], &5i64.to_be_bytes()[..]] {
        assert!(!first.windows(hidden.len()).any(|window| window == hidden));
    }
}

#[test]
fn an_altered_or_missing_byte_is_refused() {
    let keyring = keyring("k1", &[("k1", 1)]);
    let (key, record) = sealed(&keyring);
    let whole = bytes(&record);
    let refused = |altered: Bytes| {
        let mut record = Record { content: Content::Sealed(Ciphertext::new(altered)), ..record.clone() };
        let refused = keyring.open(&key, &mut record).is_err();
        refused && matches!(record.content, Content::Sealed(_))
    };
    for at in 0..whole.len() {
        let mut altered = whole.to_vec();
        altered[at] ^= 1;
        assert!(refused(altered.into()), "byte {at}");
        assert!(refused(whole.slice(..at)), "cut at {at}");
    }
    assert!(refused([&whole[..], b"\0"].concat().into()));
}

#[test]
fn an_altered_field_of_the_record_is_refused() {
    let keyring = keyring("k1", &[("k1", 1)]);
    let (key, record) = sealed(&keyring);
    let alterations: [fn(&mut Record); 8] = [
        |record| record.token = Token::from_bytes([8; 16]),
        |record| record.identity = identity("10001", "grace"),
        |record| record.identity = identity("10002", "ada"),
        |record| record.fetched_at = record.fetched_at.plus(Duration::from_millis(1)),
        |record| record.fetch_cost += Duration::from_millis(1),
        |record| record.ttl += Duration::from_millis(1),
        |record| record.grace += Duration::from_millis(1),
        |record| record.settled = false,
    ];
    for (number, alter) in alterations.iter().enumerate() {
        let mut altered = record.clone();
        alter(&mut altered);
        assert_eq!(keyring.open(&key, &mut altered), Err(UnsealError::NotAuthentic), "{number}");
    }
    assert_eq!(keyring.open(&key, &mut record.clone()), Ok(()));
}

#[test]
fn a_record_moved_to_another_key_is_refused() {
    let keyring = keyring("k1", &[("k1", 1)]);
    let (_, record) = sealed(&keyring);
    for elsewhere in [identity("10001", "grace"), identity("10002", "ada")] {
        let mut moved = record.clone();
        assert_eq!(keyring.open(&elsewhere.key(), &mut moved), Err(UnsealError::NotAuthentic));
        // Also with a fitting identity.
        let mut moved = Record { identity: elsewhere.clone(), ..record.clone() };
        assert_eq!(keyring.open(&elsewhere.key(), &mut moved), Err(UnsealError::NotAuthentic));
    }
}

#[test]
fn old_keys_open_and_the_active_one_seals() {
    let before = keyring("k1", &[("k1", 1)]);
    let during = keyring("k2", &[("k1", 1), ("k2", 2)]);
    let after = keyring("k2", &[("k2", 2)]);
    let (key, old) = sealed(&before);
    let (_, new) = sealed(&during);
    assert_eq!(during.open(&key, &mut old.clone()), Ok(()));
    assert_eq!(after.open(&key, &mut new.clone()), Ok(()));
    assert_eq!(after.open(&key, &mut old.clone()), Err(UnsealError::UnknownKey));
    assert_eq!(before.open(&key, &mut new.clone()), Err(UnsealError::UnknownKey));
    // The key must be the same, not only its name.
    let reused = keyring("k1", &[("k1", 3)]);
    assert_eq!(reused.open(&key, &mut old.clone()), Err(UnsealError::NotAuthentic));
}

#[test]
fn records_in_clear_are_refused_once_keys_are_configured() {
    let mut plain = record(found(b"{}", None));
    let key = plain.identity.key();
    assert_eq!(keyring("k1", &[("k1", 1)]).open(&key, &mut plain), Err(UnsealError::InClear));
    assert!(matches!(plain.content, Content::Sealed(_)));

    let off = Keyring::default();
    let mut plain = off.seal(&key, record(found(b"{}", None)));
    assert_eq!(off.open(&key, &mut plain), Ok(()));
    assert!(matches!(plain.content, Content::Found(_)));
    let (key, mut sealed) = sealed(&keyring("k1", &[("k1", 1)]));
    assert_eq!(off.open(&key, &mut sealed), Err(UnsealError::UnknownKey));
}

#[test]
fn a_record_is_opened_in_place() {
    let keyring = keyring("k1", &[("k1", 1)]);
    let (key, mut record) = sealed(&keyring);
    let place = bytes(&record).as_ptr();
    keyring.open(&key, &mut record).unwrap();
    let Content::Found(found) = record.content else { panic!("not found") };
    let offset = found.body.expose().as_ptr() as usize - place as usize;
    // The name, the nonce, and the parts before a body: letter, flags, `modified` and validator.
    assert_eq!(offset, 3 + NONCE + 26);
}

#[test]
fn names_and_keys_are_validated() {
    let refused = |config: &Config| config.validate().unwrap_err().field;
    let long = "k".repeat(33);
    assert_eq!(refused(&config("k2", &[("k1", 1)])), "active");
    assert_eq!(refused(&config("", &[])), "active");
    for name in ["", "k.1", "k 1", "ключ", &long] {
        assert_eq!(refused(&config("k1", &[("k1", 1), (name, 2)])), format!("keys.{name}"));
    }
    let mut short = config("k1", &[("k1", 1)]);
    short.keys.insert("k1".to_owned(), Secret::new(STANDARD.encode([1; 31])));
    assert_eq!(refused(&short), "keys.k1");
    assert_eq!(config("k1", &[("k1", 1)]).validate(), Ok(()));
}
