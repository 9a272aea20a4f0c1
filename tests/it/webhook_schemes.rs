//! The signature schemes of webhooks, over HTTP.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use profile_edge::clock::{Clock, SystemClock};
use profile_edge::config;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::edge::{Edge, LookupAnswer, looked};
use crate::support::process::{Process, configuration, free_port};
use crate::support::{customer, eventually};

const SETTINGS: &str = r#"
[[tenant]]
id = "10001"
upstream = { api_url = "http://127.0.0.1:9", login_url = "http://127.0.0.1:9", client_id = "c", client_secret = "s" }

[[tenant.webhook]]
scheme = "api-key"
header = "X-Edge-Key"
secrets = ["planted-old-api-key", "planted-new-api-key"]

[[tenant.webhook]]
scheme = "basic"
username = "eventbridge"
secrets = ["planted-old-password", "planted:new:password"]

[[tenant.webhook]]
scheme = "bearer"
secrets = ["planted-old-token", "planted-new-token"]

[[tenant.webhook]]
scheme = "hub-signature"
secrets = ["planted-old-secret", "planted-new-secret"]

[[tenant.webhook]]
scheme = "standard-webhooks"
secrets = ["whsec_cGxhbnRlZC1vbGQtc2VjcmV0LW9mLTMyLWJ5dGVzIQ==", "whsec_cGxhbnRlZC1uZXctc2VjcmV0LW9mLTMyLWJ5dGVzIQ"]
"#;

const STANDARD_KEYS: [&[u8]; 2] = [b"planted-old-secret-of-32-bytes!", b"planted-new-secret-of-32-bytes!"];

/// The headers that prove a sender's identity.
type SenderHeaders = Vec<(&'static str, String)>;

fn now() -> i64 {
    SystemClock.now().as_millis() / 1_000
}

fn mac(key: &[u8], text: &[u8]) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().into()
}

fn standard(key: &[u8], id: &str, timestamp: i64, body: &str) -> SenderHeaders {
    let signature = STANDARD.encode(mac(key, format!("{id}.{timestamp}.{body}").as_bytes()));
    vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", format!("v1,AAAA v1,{signature} v1a,other")),
    ]
}

fn basic(credentials: &str) -> SenderHeaders {
    vec![("authorization", format!("Basic {}", STANDARD.encode(credentials)))]
}

/// Returns the valid headers of a body, for each secret of each scheme.
fn genuine(body: &str) -> Vec<SenderHeaders> {
    let hub = |encoded: String| vec![("x-hub-signature-256", format!("sha256={encoded}"))];
    let mut heads = vec![basic("eventbridge:planted-old-password"), basic("eventbridge:planted:new:password")];
    for age in ["old", "new"] {
        heads.push(vec![("x-edge-key", format!("planted-{age}-api-key"))]);
        heads.push(vec![("authorization", format!("Bearer planted-{age}-token"))]);
        let signature = mac(format!("planted-{age}-secret").as_bytes(), body.as_bytes());
        heads.extend([hub(hex::encode(signature)), hub(STANDARD.encode(signature))]);
    }
    heads.extend(STANDARD_KEYS.iter().map(|key| standard(key, "msg_planted", now(), body)));
    heads
}

/// Returns headers that are almost valid.
fn forged(body: &str) -> Vec<SenderHeaders> {
    let other = body.replace("10001", "10002");
    let mut heads = vec![
        vec![],
        vec![("x-api-key", "planted-old-api-key".to_owned())],
        vec![("x-edge-key", "planted-old-api-ke".to_owned())],
        basic("eventbridge:planted-old-passwor"),
        basic("stranger:planted-old-password"),
        vec![("authorization", "Bearer planted-old-token-".to_owned())],
        vec![("authorization", "Bearer planted-old-api-key".to_owned())],
        vec![("x-hub-signature-256", "sha256=planted".to_owned())],
        standard(STANDARD_KEYS[0], "msg_planted", now() - 301, body),
        standard(STANDARD_KEYS[0], "msg_planted", now() + 400, body),
        standard(b"planted-unknown-secret", "msg_planted", now(), body),
    ];
    // Valid signatures of another body.
    heads.extend(genuine(&other).into_iter().filter(|head| head[0].0.contains("hub") || head[0].0.contains("webhook")));
    // Valid signatures with a header missing.
    for part in 0..3 {
        let mut head = standard(STANDARD_KEYS[0], "msg_planted", now(), body);
        head.remove(part);
        heads.push(head);
    }
    heads
}

fn request(client: &reqwest::Client, url: String, body: &str, head: &SenderHeaders) -> RequestBuilder {
    let request = client.post(url).header("content-type", "application/json").body(body.to_owned());
    head.iter().fold(request, |request, (name, value)| request.header(*name, value))
}

async fn post(edge: &Edge, body: &str, head: &SenderHeaders) -> LookupAnswer {
    looked(request(&edge.client, edge.url("/webhooks/10001"), body, head).send().await.unwrap()).await
}

fn flat(n: u32, event: &str) -> String {
    json!({ "tenantId": "10001", "customerId": customer(n), "eventId": event }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_secret_of_every_scheme_is_accepted_on_both_routes() {
    let edge = Edge::start_with(SETTINGS).await;
    let body = flat(1, "e-1");
    for head in genuine(&body) {
        let answer = post(&edge, &body, &head).await;
        assert_eq!(answer.status, 202, "{head:?}: {}", answer.text);
        let answer = request(&edge.client, edge.url("/webhook/customer-updated"), &body, &head).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{head:?}");
    }
    assert_eq!(edge.metric("profile_edge_auth_failures_total{door=\"webhook\"}").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_forged_webhooks_get_the_same_answer_and_are_counted() {
    let edge = Edge::start_with(SETTINGS).await;
    let body = flat(1, "e-1");
    let heads = forged(&body);
    let mut words = BTreeSet::new();
    for head in &heads {
        let answer = post(&edge, &body, head).await;
        assert_eq!(answer.status, 401, "{head:?}: {}", answer.text);
        let named: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
        words.insert(format!("{} {named:?} {:?}", answer.text, answer.headers.get("www-authenticate")));
    }
    assert_eq!(words.len(), 1, "{words:#?}");
    assert_eq!(edge.metric("profile_edge_auth_failures_total{door=\"webhook\"}").await, heads.len() as f64);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_identifies_an_event_only_if_signed() {
    let edge = Edge::start_with(SETTINGS).await;
    let duplicates = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"duplicate\"}";
    // A signed message id identifies the event; the event id in the body is ignored.
    for event in ["e-1", "e-2"] {
        let body = flat(1, event);
        let message = "01arz3ndektsv4rrffq69g5fav";
        let answer = post(&edge, &body, &standard(STANDARD_KEYS[1], message, now(), &body)).await;
        assert_eq!((answer.status, &answer.json()["eventId"]), (202, &Value::from(message)));
    }
    edge.wait_for_metric(duplicates, 1.0).await;
    // An unsigned message id is ignored; each event is identified by its own id.
    for event in ["4cbedb0f-4dfd-4c8e-9e57-0acded092527", "4cbedb0f-4dfd-4c8e-9e57-0acded092528"] {
        let head = vec![("x-edge-key", "planted-new-api-key".to_owned()), ("webhook-id", "msg_2".to_owned())];
        let answer = post(&edge, &flat(2, event), &head).await;
        assert_eq!((answer.status, &answer.json()["eventId"]), (202, &Value::from(event)));
    }
    edge.applied("updated", 3.0).await;
    assert_eq!(edge.metric(duplicates).await, 1.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_webhook_is_logged_without_its_contents() {
    let directory = tempfile::tempdir().unwrap();
    let file = configuration(directory.path(), SETTINGS);
    let (public, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let environment = [
        ("PROFILE_EDGE__HTTP__LISTEN", public.as_str()),
        ("PROFILE_EDGE__ADMIN__LISTEN", &admin),
        ("RUST_LOG", "trace"),
    ];
    let file = file.display().to_string();
    let mut process = Process::start(directory.path(), &["run", "--config", &file], &environment);
    let client = reqwest::Client::new();
    eventually("readiness", || async { client.get(format!("http://{admin}/readyz")).send().await.ok() }).await;
    let body = flat(1, "e-1");
    let heads = forged(&body);
    for head in &heads {
        let answer = request(&client, format!("http://{public}/webhooks/10001"), &body, head).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0));
    let log = process.log();
    // Lines of a kind are sampled: each has the number of those that were left out before it.
    assert!((1..=heads.len()).contains(&log.matches("without a valid credential").count()), "{log}");
    assert!(!log.contains("planted") && !log.contains(&STANDARD.encode("stranger:")[..10]), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheme_accepts_only_connections_from_its_networks() {
    for (networks, status) in [("[\"10.0.0.0/8\", \"2001:db8::/32\"]", 401), ("[\"127.0.0.0/8\"]", 202)] {
        let limit = format!("header = \"X-Edge-Key\"\nnetworks = {networks}");
        let edge = Edge::start_with(&SETTINGS.replace("header = \"X-Edge-Key\"", &limit)).await;
        let body = flat(1, "e-1");
        let head = vec![("x-edge-key", "planted-new-api-key".to_owned()), ("x-forwarded-for", "10.0.0.1".to_owned())];
        assert_eq!(post(&edge, &body, &head).await.status, status, "{networks}");
        let refused = edge.metric("profile_edge_auth_failures_total{door=\"webhook\"}").await;
        assert_eq!(refused, if status == 401 { 1.0 } else { 0.0 });
        assert_eq!(
            post(&edge, &body, &vec![("authorization", "Bearer planted-new-token".to_owned())]).await.status,
            202
        );
        edge.stop().await;
    }
}

#[test]
fn equal_secrets_of_two_tenants_are_refused_with_both_names() {
    let second = SETTINGS.replace("\"10001\"", "\"10002\"").replace("planted", "another");
    let encoded = second.replace("cGxhbnRlZC", "b3RoZXJzLX");
    let both = |second: &str| config::from_toml(&format!("{SETTINGS}{second}"));
    assert!(both(&encoded).is_ok(), "{:?}", both(&encoded).err());
    for same in ["another-new-secret", "another-old-token"] {
        let error = both(&encoded.replace(same, &same.replace("another", "planted"))).unwrap_err().to_string();
        assert!(error.contains("10001") && error.contains("10002") && error.contains("tenant[1].webhook"), "{error}");
        assert!(!error.contains("planted"), "{error}");
    }
    // The same key in another spelling.
    assert!(both(&encoded.replace("b3RoZXJzLX", "cGxhbnRlZC").replace("whsec_", "")).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn newlines_at_the_end_of_a_secret_do_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "planted-file-key\r\n\n").unwrap();
    let settings = SETTINGS.replace("\"planted-old-api-key\"", &format!("\"file:{}\"", file.display()));
    let edge = Edge::start_with(&settings).await;
    assert_eq!(post(&edge, &flat(1, "e-1"), &vec![("x-edge-key", "planted-file-key".to_owned())]).await.status, 202);
    edge.stop().await;
    let written = SETTINGS.replace("planted-old-secret", "planted-old-secret\\n");
    let error = config::from_toml(&written).unwrap_err().to_string();
    assert!(error.contains("ends with a newline"), "{error}");
    let environment = [("HUB".to_owned(), "planted-new-secret\n".to_owned())];
    let path = directory.path().join("edge.toml");
    std::fs::write(&path, SETTINGS.replace("\"planted-new-secret\"", "\"env:HUB\"")).unwrap();
    let loaded = config::load(Some(&path), environment, None).unwrap();
    let secrets = loaded.config.tenants[0].webhooks.iter().flat_map(|webhook| &webhook.secrets);
    assert!(secrets.into_iter().any(|secret| secret.matches(b"planted-new-secret")));
}
