use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use proptest::prelude::*;

use super::*;

/// The example of the Open Messaging documentation of Genesys.
const BODY: &[u8] = br#"{"id":"m1","type":"Text","text":"hi"}"#;
const SIGNATURE: &str = "sha256=NWWtmyELOP7eWVLU0uDIWgoiBzcpvwknWXYoojjn5oE=";

/// RFC 7617 section 2.
const ALADDIN: &str = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";

const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_000);

fn config(scheme: Scheme, secrets: &[&str]) -> Config {
    let secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
    Config { scheme, header: None, username: None, secrets, networks: None }
}

fn authenticators(scheme: Scheme, secrets: &[&str]) -> Vec<Authenticator> {
    vec![Authenticator::new(&config(scheme, secrets)).unwrap()]
}

fn aladdin(secrets: &[&str]) -> Vec<Authenticator> {
    let config = Config { username: Some("Aladdin".to_owned()), ..config(Scheme::Basic, secrets) };
    vec![Authenticator::new(&config).unwrap()]
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn accepts(authenticators: &[Authenticator], headers: &HeaderMap, body: &[u8]) -> bool {
    verify(authenticators, &ReceivedRequest { headers, body, peer: None }, NOW).is_some()
}

fn authorized(authenticators: &[Authenticator], authorization: &str) -> bool {
    accepts(authenticators, &headers(&[("authorization", authorization)]), BODY)
}

fn hex_form() -> String {
    format!("sha256={}", hex::encode(STANDARD.decode(&SIGNATURE[7..]).unwrap()))
}

#[test]
fn hub_signatures_verify_in_base64_and_in_hex() {
    let hub = authenticators(Scheme::HubSignature, &["another", "shared-secret"]);
    let upper = format!("sha256={}", hex_form()[7..].to_ascii_uppercase());
    for signature in [SIGNATURE, &hex_form(), &upper] {
        assert!(accepts(&hub, &headers(&[("x-hub-signature-256", signature)]), BODY), "{signature}");
    }
}

#[test]
fn a_prefix_of_a_hub_signature_is_refused() {
    let hub = authenticators(Scheme::HubSignature, &["shared-secret"]);
    for whole in [SIGNATURE, &hex_form()] {
        for end in 0..whole.len() {
            assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", &whole[..end])]), BODY), "{}", &whole[..end]);
        }
        let longer = format!("{whole}00");
        assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", &longer)]), BODY), "{longer}");
    }
}

#[test]
fn invalid_hub_signatures_are_refused() {
    let hub = authenticators(Scheme::HubSignature, &["shared-secret"]);
    let bare = &SIGNATURE[7..];
    for signature in [bare, "sha1=NWWtmyELOP7eWVLU0uDIWgoiBzcpvwknWXYoojjn5oE="] {
        assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", signature)]), BODY), "{signature}");
    }
    assert!(!accepts(&hub, &HeaderMap::new(), BODY));
    let twice = headers(&[("x-hub-signature-256", SIGNATURE), ("x-hub-signature-256", SIGNATURE)]);
    assert!(!accepts(&hub, &twice, BODY));
    assert!(!accepts(&[], &headers(&[("x-hub-signature-256", SIGNATURE)]), BODY));
}

#[test]
fn an_api_key_must_match_in_the_configured_header() {
    let keys = authenticators(Scheme::ApiKey, &["old", "new"]);
    assert!(accepts(&keys, &headers(&[("x-api-key", "old")]), BODY));
    assert!(accepts(&keys, &headers(&[("x-api-key", "new")]), BODY));
    for wrong in ["newer", "ne", "", "NEW"] {
        assert!(!accepts(&keys, &headers(&[("x-api-key", wrong)]), BODY), "{wrong}");
    }
    assert!(!accepts(&keys, &headers(&[("x-api-key", "old"), ("x-api-key", "old")]), BODY));
    let own = Config { header: Some("X-Edge-Key".to_owned()), ..config(Scheme::ApiKey, &["k"]) };
    let own = [Authenticator::new(&own).unwrap()];
    assert!(accepts(&own, &headers(&[("x-edge-key", "k")]), BODY));
    assert!(!accepts(&own, &headers(&[("x-api-key", "k")]), BODY));
}

#[test]
fn basic_is_the_username_and_one_of_the_secrets() {
    let basic = aladdin(&["another", "open sesame"]);
    assert!(authorized(&basic, ALADDIN));
    let unpadded = ALADDIN.trim_end_matches('=');
    assert!(authorized(&basic, unpadded));
    assert!(authorized(&basic, &ALADDIN.replace("Basic", "bASIC ")));
    for credentials in ["aladdin:open sesame", "Aladdin:open", "Aladdin", ":open sesame", "Aladdin:", ":", ""] {
        assert!(!authorized(&basic, &format!("Basic {}", STANDARD.encode(credentials))), "{credentials}");
    }
    for value in ["Basic", "Basic ", "Basic !", "Basi", ALADDIN.trim_start_matches("Basic "), "Bearer open sesame"] {
        assert!(!authorized(&basic, value), "{value}");
    }
    let twice = headers(&[("authorization", ALADDIN), ("authorization", ALADDIN)]);
    assert!(!accepts(&basic, &twice, BODY));
}

#[test]
fn a_colon_does_not_move_between_username_and_secret() {
    let config = |username: &str, secret: &str| Config {
        username: Some(username.to_owned()),
        ..config(Scheme::Basic, &[secret])
    };
    assert!(config("a:b", "c").validate().is_err());
    let basic = [Authenticator::new(&config("a", "b:c")).unwrap()];
    assert!(authorized(&basic, &format!("Basic {}", STANDARD.encode("a:b:c"))));
}

#[test]
fn a_bearer_is_one_of_the_secrets() {
    let bearer = authenticators(Scheme::Bearer, &["old", "new"]);
    for value in ["Bearer old", "bearer new", "BEARER  new "] {
        assert!(authorized(&bearer, value), "{value}");
    }
    for value in ["Bearer", "Bearer ", "Bearerold", "Bearer ol", "Bearer older", "Basic old", "old", ""] {
        assert!(!authorized(&bearer, value), "{value}");
    }
    let twice = headers(&[("authorization", "Bearer old"), ("authorization", "Bearer old")]);
    assert!(!accepts(&bearer, &twice, BODY));
}

#[test]
fn one_of_several_schemes_is_enough_and_secrets_are_not_shared() {
    let mut all = authenticators(Scheme::ApiKey, &["key"]);
    all.extend(aladdin(&["open sesame"]));
    all.extend(authenticators(Scheme::Bearer, &["token"]));
    all.extend(authenticators(Scheme::HubSignature, &["shared-secret"]));
    let key = ("x-api-key", "key");
    for pair in [key, ("authorization", ALADDIN), ("authorization", "Bearer token"), ("x-hub-signature-256", SIGNATURE)]
    {
        assert!(accepts(&all, &headers(&[pair]), BODY), "{pair:?}");
    }
    assert!(accepts(&all, &headers(&[("authorization", "Bearer wrong"), key]), BODY));
    for pair in [("x-api-key", "token"), ("authorization", "Bearer key"), ("authorization", "Bearer open sesame")] {
        assert!(!accepts(&all, &headers(&[pair]), BODY), "{pair:?}");
    }
}

#[test]
fn an_unsigned_message_id_is_not_trusted() {
    let keys = authenticators(Scheme::ApiKey, &["key"]);
    let headers = headers(&[("x-api-key", "key"), ("webhook-id", "msg_1")]);
    let verified = verify(&keys, &ReceivedRequest { headers: &headers, body: BODY, peer: None }, NOW).unwrap();
    assert!(verified.message_id.is_none());
}

#[test]
fn invalid_configurations_name_the_field() {
    let field = |edit: fn(&mut Config)| {
        let mut config = config(Scheme::ApiKey, &["a"]);
        edit(&mut config);
        config.validate().unwrap_err().field
    };
    assert_eq!(field(|config| config.secrets.clear()), "secrets");
    assert_eq!(field(|config| config.secrets.push(Secret::new(""))), "secrets");
    assert_eq!(field(|config| config.header = Some("a b".to_owned())), "header");
    assert_eq!(field(|config| config.username = Some("a".to_owned())), "username");
    assert_eq!(field(|config| config.scheme = Scheme::Basic), "username");
    assert_eq!(field(|config| config.scheme = Scheme::StandardWebhooks), "secrets");
    for scheme in [Scheme::Basic, Scheme::Bearer, Scheme::HubSignature, Scheme::StandardWebhooks] {
        let config = Config { header: Some("x-a".to_owned()), ..config(scheme, &["a"]) };
        assert_eq!(config.validate().unwrap_err().field, "header", "{scheme:?}");
    }
    for username in ["", "a:b", "a\nb"] {
        let config = Config { username: Some(username.to_owned()), ..config(Scheme::Basic, &["a"]) };
        assert_eq!(config.validate().unwrap_err().field, "username", "{username:?}");
    }
}

#[test]
fn debug_output_never_contains_a_secret() {
    let planted = "whsec_cGxhbnRlZC1zZWNyZXQtcGxhbnRlZA";
    let mut all = aladdin(&[planted]);
    for scheme in [Scheme::ApiKey, Scheme::Bearer, Scheme::HubSignature, Scheme::StandardWebhooks] {
        all.extend(authenticators(scheme, &[planted]));
        assert!(!format!("{:?}", config(scheme, &[planted])).contains("cGxhbnRlZ"));
    }
    let shown = format!("{all:?}");
    assert!(!shown.contains("cGxhbnRlZ") && !shown.contains("112, 108, 97"), "{shown}");
}

proptest! {
    #[test]
    fn one_changed_byte_of_body_signature_or_secret_is_refused(at in 0usize..1000, flip in 1u8..=255) {
        let hub = authenticators(Scheme::HubSignature, &["shared-secret"]);
        let mut body = BODY.to_vec();
        let place = at % body.len();
        body[place] ^= flip;
        prop_assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", SIGNATURE)]), &body));

        let mut signature = STANDARD.decode(&SIGNATURE[7..]).unwrap();
        signature[at % 32] ^= flip;
        let forged = format!("sha256={}", STANDARD.encode(&signature));
        prop_assert!(!accepts(&hub, &headers(&[("x-hub-signature-256", &forged)]), BODY));

        let mut secret = b"shared-secret".to_vec();
        let place = at % secret.len();
        secret[place] = (secret[place] ^ flip) & 0x7f;
        prop_assume!(secret != b"shared-secret");
        let other = authenticators(Scheme::HubSignature, &[std::str::from_utf8(&secret).unwrap()]);
        prop_assert!(!accepts(&other, &headers(&[("x-hub-signature-256", SIGNATURE)]), BODY));
    }

    #[test]
    fn unknown_credentials_are_refused(presented in "[!-~][ -~]{0,60}[!-~]") {
        prop_assume!(presented != "the-secret" && presented != "Aladdin:the-secret");
        prop_assert!(!accepts(&authenticators(Scheme::ApiKey, &["the-secret"]), &headers(&[("x-api-key", &presented)]), BODY));
        let (bearer, basic) = (format!("Bearer {presented}"), format!("Basic {}", STANDARD.encode(&presented)));
        prop_assert!(!authorized(&authenticators(Scheme::Bearer, &["the-secret"]), &bearer));
        prop_assert!(!authorized(&aladdin(&["the-secret"]), &basic));
        prop_assert!(!authorized(&aladdin(&["the-secret"]), &presented));
    }
}

#[test]
fn a_proof_contains_only_what_it_covers() {
    let both = [
        Authenticator::new(&config(Scheme::HubSignature, &["shared-secret"])).unwrap(),
        Authenticator::new(&config(Scheme::ApiKey, &["key"])).unwrap(),
    ];
    let mut headers = headers(&[("x-hub-signature-256", SIGNATURE), ("ce-type", "customer.deleted")]);
    let proof = |headers: &HeaderMap| {
        let proof = verify(&both, &ReceivedRequest { headers, body: BODY, peer: None }, NOW).unwrap();
        (proof.headers.is_some(), proof.is_repeatable())
    };
    assert_eq!(proof(&headers), (false, true));
    headers.insert("x-api-key", HeaderValue::from_static("key"));
    assert_eq!(proof(&headers), (true, false));
}

#[test]
fn a_scheme_accepts_only_peers_of_its_networks() {
    let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap()).to_vec();
    let limited = Config { networks: Some(networks), ..config(Scheme::ApiKey, &["key"]) };
    let limited = [Authenticator::new(&limited).unwrap()];
    let headers = headers(&[("x-api-key", "key")]);
    let accepts = |peer: Option<&str>| {
        let peer = peer.map(|peer| peer.parse().unwrap());
        verify(&limited, &ReceivedRequest { headers: &headers, body: BODY, peer }, NOW).is_some()
    };
    for peer in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
        assert!(accepts(Some(peer)), "{peer}");
    }
    for peer in ["11.1.2.3", "::ffff:11.1.2.3", "2001:db9::1"] {
        assert!(!accepts(Some(peer)), "{peer}");
    }
    assert!(!accepts(None));
    assert!(Config { networks: Some(Vec::new()), ..config(Scheme::ApiKey, &["key"]) }.validate().is_err());
}

#[test]
fn a_credential_that_no_header_can_carry_is_refused() {
    for secret in ["key\n", "a\nb", " key", "key "] {
        assert!(config(Scheme::ApiKey, &[secret]).validate().is_err(), "{secret:?}");
        assert!(config(Scheme::HubSignature, &[secret]).validate().is_ok(), "{secret:?}");
    }
}
