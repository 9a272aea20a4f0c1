//! The sandbox behaves like Genesys, and fails as configured.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use parking_lot::Mutex;
use profile_edge::clock::ManualClock;
use profile_edge::domain::{Secret, Timestamp};
use profile_edge::sandbox::{Sandbox, SandboxOptions, Webhook};
use profile_edge::shutdown::{Controller, Shutdown};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

const CONTACTS: &str = "/api/v2/externalcontacts/contacts";
const ONE: &str = "00000000-0000-4000-8000-000000000001";
const TWO: &str = "00000000-0000-4000-8000-000000000002";
const EDITOR: &str = "sandbox-editor";
const PATIENCE: Duration = Duration::from_secs(20);

/// A sandbox and its client.
struct Play {
    addr: SocketAddr,
    clock: Arc<ManualClock>,
    controller: Controller,
    http: reqwest::Client,
}

/// A webhook that keeps the events it gets, after a configured number of failures.
struct Receiver {
    webhook: Webhook,
    events: mpsc::UnboundedReceiver<(HeaderMap, Value)>,
    shutdown: Controller,
}

fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).no_proxy().timeout(PATIENCE).build().expect("a plain client")
}

async fn play(webhook: Option<Webhook>) -> Play {
    let (controller, shutdown) = Shutdown::new();
    let clock = ManualClock::at(Timestamp::from_millis(1_800_000_000_123));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let options = SandboxOptions { listen, customers: 1_000_000, latency: Duration::ZERO, webhook };
    let sandbox = Sandbox::start(options, clock.clone(), shutdown).await.expect("a free port");
    Play { addr: sandbox.addr, clock, controller, http: http() }
}

async fn receiver(failures: u32) -> Receiver {
    let (controller, shutdown) = Shutdown::new();
    let (sender, events) = mpsc::unbounded_channel();
    let failures = Arc::new(AtomicU32::new(failures));
    let take = move |State(sender): State<mpsc::UnboundedSender<_>>, headers: HeaderMap, body: String| {
        let failures = Arc::clone(&failures);
        async move {
            let left = failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_ok() {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let _ = sender.send((headers, serde_json::from_str(&body).expect("an event is JSON")));
            StatusCode::ACCEPTED
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/webhooks/10001", listener.local_addr().expect("it is bound"));
    let app = Router::new().route("/webhooks/10001", post(take)).with_state(sender);
    let stop = shutdown.clone();
    shutdown
        .spawn(axum::serve(listener, app).with_graceful_shutdown(async move { stop.requested().await }).into_future());
    let webhook = Webhook { url: url.parse().expect("a URL"), key: Secret::new("demo-secret") };
    Receiver { webhook, events, shutdown: controller }
}

impl Receiver {
    async fn next(&mut self) -> (HeaderMap, Value) {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the receiver is there")
    }
}

impl Play {
    async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Response {
        let request = self.http.request(method, format!("http://{}{path}", self.addr)).bearer_auth(token);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        request.send().await.expect("an answer")
    }

    async fn get(&self, id: &str) -> Response {
        self.call(Method::GET, &format!("{CONTACTS}/{id}"), EDITOR, None).await
    }

    async fn contact(&self, id: &str) -> Value {
        let answer = self.get(id).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.expect("JSON")
    }

    async fn edit(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.call(method, &format!("{CONTACTS}{path}"), EDITOR, Some(body)).await;
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.json().await.expect("JSON")
    }

    async fn patch(&self, id: &str, body: Value) -> Value {
        self.edit(Method::PATCH, &format!("/{id}"), body).await
    }

    async fn delete(&self, id: &str) {
        let answer = self.call(Method::DELETE, &format!("{CONTACTS}/{id}"), EDITOR, None).await;
        assert_eq!(answer.status(), 204);
    }

    async fn behave(&self, behaviour: Value) -> Value {
        let answer = self.call(Method::POST, "/sandbox/behaviour", "", Some(behaviour)).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.expect("JSON")
    }

    async fn calls(&self) -> Value {
        self.call(Method::GET, "/sandbox/calls", "", None).await.json().await.expect("JSON")
    }

    /// Waits until a read has reached the sandbox.
    async fn read_arrives(&self) {
        let arrived = async {
            while self.calls().await["total"] == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, arrived).await.expect("the read arrives");
    }

    async fn log_in(&self, client: &str, secret: &str) -> Response {
        let request = self.http.post(format!("http://{}/oauth/token", self.addr)).basic_auth(client, Some(secret));
        request.form(&HashMap::from([("grant_type", "client_credentials")])).send().await.expect("an answer")
    }

    async fn token(&self, client: &str) -> String {
        let answer: Value = self.log_in(client, client).await.json().await.expect("JSON");
        assert_eq!(answer["token_type"], "bearer");
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    async fn stop(self) {
        assert!(self.controller.drain(PATIENCE).await, "the sandbox stops in time");
    }
}

/// Asserts that an answer is a Genesys `ErrorBody`; returns its message.
async fn refused(answer: Response, status: u16, code: &str) -> String {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let correlation = answer.headers()["inin-correlation-id"].clone();
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!((&body["status"], &body["code"]), (&json!(status), &json!(code)));
    assert_eq!(body["contextId"].as_str(), correlation.to_str().ok());
    assert_eq!((&body["details"], &body["errors"], &body["messageParams"]), (&json!([]), &json!([]), &json!({})));
    body["message"].as_str().expect("a message").to_owned()
}

#[tokio::test]
async fn a_contact_is_shaped_as_at_genesys_and_the_same_at_each_start() {
    let (play, other) = (play(None).await, play(None).await);
    let answer = play.get(ONE).await;
    assert_eq!(answer.headers()["cache-control"], "no-cache, no-store, must-revalidate");
    assert!(answer.headers().contains_key("inin-correlation-id"));
    let contact: Value = answer.json().await.unwrap();
    let uri = format!("{CONTACTS}/{ONE}");
    assert_eq!(contact["id"], ONE);
    assert_eq!(contact["selfUri"], uri);
    assert_eq!(contact["canonicalContact"], json!({ "id": ONE, "selfUri": uri }));
    assert_eq!(contact["type"], "Curated");
    assert!(contact["workPhone"]["e164"].as_str().unwrap().contains("55501"));
    assert!(contact["workEmail"].as_str().unwrap().ends_with("@example.com"));
    let modified = contact["modifyDate"].as_str().unwrap();
    assert!(modified.len() == 24 && modified.ends_with('Z'), "{modified}");
    assert_eq!(other.contact(ONE).await, contact);

    assert!(play.contact("00000000-0000-4000-8000-000001000000").await["surveyOptOut"].is_boolean());
    for nobody in ["00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000001000001", "nobody", "a%2Fb"] {
        refused(play.get(nobody).await, 404, "not.found").await;
    }
    play.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn patch_merges_put_replaces_and_read_only_fields_stay() {
    let play = play(None).await;
    let before = play.contact(ONE).await;
    let patched = play
        .patch(
            ONE,
            json!({ "firstName": "Zoë", "address": { "city": "Bern" }, "title": null, "id": TWO, "type": "x",
                            "modifyDate": "1999-01-01T00:00:00Z", "mergeSet": [] }),
        )
        .await;
    assert_eq!(patched["firstName"], "Zoë");
    assert_eq!(patched["address"]["city"], "Bern");
    assert_eq!(patched["address"]["address1"], before["address"]["address1"]);
    assert_eq!(patched.get("title"), None);
    for kept in ["id", "type", "lastName", "createDate", "mergeSet", "selfUri"] {
        assert_eq!(patched[kept], before[kept], "{kept}");
    }
    assert_eq!(play.contact(ONE).await, patched);

    // The clock is stopped, but the stamp rises.
    let again = play.patch(ONE, json!({})).await;
    assert!(again["modifyDate"].as_str() > patched["modifyDate"].as_str());

    let replaced = play.edit(Method::PUT, &format!("/{ONE}"), json!({ "lastName": "Only" })).await;
    assert_eq!(replaced["lastName"], "Only");
    assert_eq!((replaced.get("firstName"), &replaced["id"]), (None, &before["id"]));
    play.stop().await;
}

#[tokio::test]
async fn a_created_contact_can_be_read_and_a_deleted_one_cannot() {
    let play = play(None).await;
    let answer = play.call(Method::POST, CONTACTS, EDITOR, Some(json!({ "firstName": "New", "id": ONE }))).await;
    assert_eq!(answer.status(), 201);
    let created: Value = answer.json().await.unwrap();
    assert_eq!(created["createDate"], "2027-01-15T08:00:00.123Z");
    let id = created["id"].as_str().unwrap();
    assert_ne!(id, ONE);
    assert_eq!(play.contact(id).await, created);
    assert_eq!(play.contact(&id.to_uppercase()).await, created);

    play.delete(id).await;
    refused(play.get(id).await, 404, "not.found").await;
    play.delete(ONE).await;
    let path = format!("{CONTACTS}/{ONE}");
    refused(play.get(ONE).await, 404, "not.found").await;
    refused(play.call(Method::DELETE, &path, EDITOR, None).await, 404, "not.found").await;
    refused(play.call(Method::PATCH, &path, EDITOR, Some(json!({}))).await, 404, "not.found").await;
    play.stop().await;
}

#[tokio::test]
async fn a_merge_creates_a_canonical_contact_for_its_ancestors() {
    let play = play(None).await;
    let (one, two) = (play.contact(ONE).await, play.contact(TWO).await);
    let merged = play
        .edit(Method::POST, "/merge", json!({ "contactIds": [ONE, TWO], "valueOverride": { "lastName": "Both" } }))
        .await;
    let id = merged["id"].as_str().unwrap();
    assert!(id != ONE && id != TWO);
    assert_eq!((&merged["firstName"], &merged["lastName"]), (&one["firstName"], &json!("Both")));
    assert!(merged["modifyDate"].as_str() > two["modifyDate"].as_str());
    let ids = |list: &Value| {
        list.as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&merged["mergedFrom"]), [ONE, TWO]);
    assert_eq!(ids(&merged["mergeSet"]), [id, ONE, TWO]);
    assert_eq!(play.contact(ONE).await, merged);

    let raw: Value =
        play.call(Method::GET, &format!("{CONTACTS}/{TWO}/unresolved"), EDITOR, None).await.json().await.unwrap();
    assert_eq!((&raw["id"], &raw["firstName"]), (&json!(TWO), &two["firstName"]));
    assert_eq!((&raw["mergedTo"]["id"], &raw["canonicalContact"]["id"]), (&json!(id), &json!(id)));

    assert_eq!(play.patch(TWO, json!({ "firstName": "Via" })).await["id"], id);
    assert_eq!(play.contact(ONE).await["firstName"], "Via");

    let three = "00000000-0000-4000-8000-000000000003";
    let again = play.edit(Method::POST, "/merge", json!({ "contactIds": [ONE, three] })).await;
    assert_eq!(ids(&again["mergedFrom"]), [id, three]);
    assert_eq!(ids(&again["mergeSet"]).len(), 5);
    assert_eq!(play.contact(TWO).await["id"], again["id"]);

    play.delete(ONE).await;
    for gone in [ONE, TWO, id, again["id"].as_str().unwrap()] {
        refused(play.get(gone).await, 404, "not.found").await;
    }
    play.stop().await;
}

#[tokio::test]
async fn an_impossible_merge_is_refused() {
    let play = play(None).await;
    let path = format!("{CONTACTS}/merge");
    let many: Vec<_> = (1..=26).map(|n| format!("00000000-0000-4000-8000-{n:012}")).collect();
    for body in [
        json!({}),
        json!({ "contactIds": [ONE] }),
        json!({ "contactIds": many }),
        json!({ "contactIds": [ONE, ONE] }),
        json!({ "contactIds": [ONE, TWO], "valueOverride": 1 }),
    ] {
        refused(play.call(Method::POST, &path, EDITOR, Some(body)).await, 400, "bad.request").await;
    }
    let with_nobody = json!({ "contactIds": [ONE, "nobody"] });
    refused(play.call(Method::POST, &path, EDITOR, Some(with_nobody)).await, 404, "not.found").await;
    assert_eq!(play.contact(ONE).await["id"], ONE);
    play.stop().await;
}

#[tokio::test]
async fn wrong_requests_get_the_errors_of_genesys() {
    let play = play(None).await;
    let path = format!("{CONTACTS}/{ONE}");
    let url = format!("http://{}{path}", play.addr);
    let bare = play.http.get(&url).send().await.unwrap();
    let message = refused(bare, 401, "authentication.required").await;
    assert_eq!(message, "No authentication bearer token specified in authorization header.");
    refused(play.call(Method::GET, &path, "invented", None).await, 401, "bad.credentials").await;
    // Authentication is checked before the content.
    refused(play.http.put(&url).body("{").send().await.unwrap(), 401, "authentication.required").await;

    let viewer = play.token("sandbox").await;
    let merge = json!({ "contactIds": [ONE, TWO] });
    for (method, path, body) in [
        (Method::PUT, path.as_str(), Some(json!({}))),
        (Method::PATCH, &path, Some(json!({}))),
        (Method::DELETE, &path, None),
        (Method::POST, CONTACTS, Some(json!({}))),
        (Method::POST, &format!("{CONTACTS}/merge"), Some(merge)),
    ] {
        refused(play.call(method, path, &viewer, body).await, 403, "missing.permissions").await;
    }
    for body in ["", "{", "[]", "7", "\u{1}"] {
        let answer = play.http.patch(&url).bearer_auth(EDITOR).body(body).send().await.unwrap();
        refused(answer, 400, "bad.request").await;
    }
    let large = json!({ "firstName": "x".repeat(512_000) });
    refused(play.call(Method::PATCH, &path, EDITOR, Some(large)).await, 413, "request.entity.too.large").await;
    refused(play.call(Method::GET, "/api/v2/users/me", EDITOR, None).await, 404, "not.found").await;
    refused(play.call(Method::POST, &path, EDITOR, None).await, 405, "method.not.allowed").await;
    play.stop().await;
}

#[tokio::test]
async fn many_small_changes_cannot_exceed_the_size_limit_of_a_contact() {
    let play = play(None).await;
    play.patch(ONE, json!({ "one": "x".repeat(300_000) })).await;
    let other = json!({ "other": "x".repeat(300_000) });
    let path = format!("{CONTACTS}/{ONE}");
    refused(play.call(Method::PATCH, &path, EDITOR, Some(other)).await, 413, "request.entity.too.large").await;
    assert_eq!(play.contact(ONE).await.get("other"), None);
    play.stop().await;
}

#[tokio::test]
async fn clients_get_tokens_by_basic_or_form_and_others_get_none() {
    let play = play(None).await;
    let token = play.token("editor").await;
    let path = format!("{CONTACTS}/{ONE}");
    assert_eq!(play.call(Method::PATCH, &path, &token, Some(json!({}))).await.status(), 200);

    let login = format!("http://{}/login/oauth/token", play.addr);
    let form = |grant: &'static str, client: &'static str| {
        play.http.post(&login).form(&[("grant_type", grant), ("client_id", client), ("client_secret", client)]).send()
    };
    let given: Value = form("client_credentials", "sandbox").await.unwrap().json().await.unwrap();
    assert_eq!(given["expires_in"], 86_399);
    assert_eq!(play.call(Method::GET, &path, given["access_token"].as_str().unwrap(), None).await.status(), 200);

    for (answer, status, error) in [
        (form("client_credentials", "stranger").await.unwrap(), 401, "invalid_client"),
        (play.log_in("sandbox", "wrong").await, 401, "invalid_client"),
        (form("password", "sandbox").await.unwrap(), 400, "unsupported_grant_type"),
        (form("", "sandbox").await.unwrap(), 400, "invalid_request"),
        (play.http.post(&login).header("Authorization", "Basic ?").send().await.unwrap(), 401, "invalid_client"),
    ] {
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401);
        assert_eq!(answer.json::<Value>().await.unwrap()["error"], error);
    }
    assert_eq!(play.calls().await["tokens"], 2);
    play.stop().await;
}

#[tokio::test]
async fn a_token_ends_with_its_lifetime_or_its_revocation() {
    let play = play(None).await;
    play.behave(json!({ "token_lifetime": 300 })).await;
    let path = format!("{CONTACTS}/{ONE}");
    let token = play.token("sandbox").await;
    play.clock.advance(Duration::from_secs(299));
    assert_eq!(play.call(Method::GET, &path, &token, None).await.status(), 200);
    play.clock.advance(Duration::from_secs(1));
    refused(play.call(Method::GET, &path, &token, None).await, 401, "bad.credentials").await;

    let (viewer, editor) = (play.token("sandbox").await, play.token("editor").await);
    play.behave(json!({ "revoke_tokens": true })).await;
    for token in [viewer, editor] {
        refused(play.call(Method::GET, &path, &token, None).await, 401, "bad.credentials").await;
    }
    assert_eq!(play.get(ONE).await.status(), 200, "the fixed bearer always works");
    let fresh = play.token("sandbox").await;
    assert_eq!(play.call(Method::GET, &path, &fresh, None).await.status(), 200);
    play.stop().await;
}

#[tokio::test]
async fn the_client_and_permissions_of_a_token_can_be_read() {
    let play = play(None).await;
    let token = play.token("sandbox").await;
    let me: Value = play.call(Method::GET, "/api/v2/tokens/me", &token, None).await.json().await.unwrap();
    assert_eq!(me["OAuthClient"]["name"], "sandbox");
    assert_eq!(me["OAuthClient"]["organization"], me["organization"]);
    let subject = "/api/v2/authorization/subjects/me";
    let policies = |subject: Value| subject["grants"][0]["role"]["policies"].clone();
    let contact = |actions: Value| json!({ "domain": "externalContacts", "entityName": "contact", "actions": actions });
    let asked = play.call(Method::GET, subject, &token, None).await.json().await.unwrap();
    assert_eq!(policies(asked), json!([contact(json!(["view"]))]));

    play.behave(json!({ "permissions": ["externalContacts:contact:view", "externalContacts:contact:edit"] })).await;
    let asked = play.call(Method::GET, subject, &token, None).await.json().await.unwrap();
    assert_eq!(policies(asked), json!([contact(json!(["view", "edit"]))]));
    let path = format!("{CONTACTS}/{ONE}");
    assert_eq!(play.call(Method::PATCH, &path, &token, Some(json!({}))).await.status(), 200);

    play.behave(json!({ "permissions": [] })).await;
    let message = refused(play.call(Method::GET, &path, &token, None).await, 403, "missing.permissions").await;
    assert!(message.ends_with("externalContacts:contact:view"), "{message}");
    play.behave(json!({ "permissions": ["externalContacts:contact:*"] })).await;
    assert_eq!(play.call(Method::DELETE, &path, &token, None).await.status(), 204);
    play.stop().await;
}

#[tokio::test]
async fn reads_fail_as_configured_and_writes_do_not() {
    let play = play(None).await;
    play.behave(json!({ "fail_status": 500 })).await;
    refused(play.get(ONE).await, 500, "internal.server.error").await;
    assert_eq!(play.patch(ONE, json!({ "firstName": "Meanwhile" })).await["firstName"], "Meanwhile");

    play.behave(json!({ "fail_status": 429, "retry_after": 42 })).await;
    let answer = play.get(ONE).await;
    assert_eq!(answer.headers()["retry-after"], "42");
    assert_eq!(answer.headers()["cache-control"], "no-cache, no-store, must-revalidate");
    let message = refused(answer, 429, "too.many.requests.retry.after").await;
    assert_eq!(message, "Rate limit exceeded the maximum. Retry the request in [42] seconds");

    play.behave(json!({ "fail_ratio": 0 })).await;
    assert_eq!(play.contact(ONE).await["firstName"], "Meanwhile");
    play.behave(json!({ "fail_ratio": 1.0, "fail_status": null, "retry_after": null })).await;
    refused(play.get(ONE).await, 500, "internal.server.error").await;

    play.behave(json!({ "fail_ratio": null, "malformed": true })).await;
    let answer = play.get(ONE).await;
    assert_eq!(answer.status(), 200);
    assert!(serde_json::from_str::<Value>(&answer.text().await.unwrap()).is_err());
    play.stop().await;
}

#[tokio::test]
async fn a_rate_limit_refuses_the_rest_of_its_minute() {
    let play = play(None).await;
    play.behave(json!({ "rate_limit_per_minute": 1 })).await;
    assert_eq!(play.get(ONE).await.status(), 200);
    play.clock.advance(Duration::from_millis(17_500));
    let answer = play.get(ONE).await;
    assert_eq!(answer.headers()["retry-after"], "43");
    refused(answer, 429, "too.many.requests.retry.after").await;
    play.clock.advance(Duration::from_secs(43));
    assert_eq!(play.get(ONE).await.status(), 200);
    play.stop().await;
}

#[tokio::test]
async fn the_read_side_lags_until_the_time_passes_or_the_lag_is_removed() {
    let play = play(None).await;
    let before = play.contact(ONE).await;
    play.behave(json!({ "read_lag": "10s" })).await;
    let changed = play.patch(ONE, json!({ "firstName": "Later" })).await;
    assert_eq!(changed["firstName"], "Later", "the writer sees its change");
    assert_eq!(play.contact(ONE).await, before);
    play.clock.advance(Duration::from_millis(9_999));
    assert_eq!(play.contact(ONE).await, before);
    play.clock.advance(Duration::from_millis(1));
    assert_eq!(play.contact(ONE).await, changed);

    play.delete(ONE).await;
    assert_eq!(play.contact(ONE).await, changed);
    let created = play.edit(Method::POST, "", json!({ "firstName": "Soon" })).await;
    let merged = play.edit(Method::POST, "/merge", json!({ "contactIds": [TWO, created["id"]] })).await;
    assert_eq!(play.contact(TWO).await["id"], TWO);
    for not_yet in [&created["id"], &merged["id"]] {
        refused(play.get(not_yet.as_str().unwrap()).await, 404, "not.found").await;
    }
    play.behave(json!({ "read_lag": null })).await;
    refused(play.get(ONE).await, 404, "not.found").await;
    assert_eq!(play.contact(TWO).await["id"], merged["id"]);
    play.stop().await;
}

#[tokio::test]
async fn a_change_can_overtake_a_read_before_its_answer_is_sent() {
    let play = play(None).await;
    play.behave(json!({ "latency": 400 })).await;
    let before = Instant::now();
    let overtaken = async {
        let answer = play.contact(ONE).await;
        assert!(before.elapsed() >= Duration::from_millis(400));
        answer
    };
    let change = async {
        play.read_arrives().await;
        play.behave(json!({ "latency": "0s" })).await;
        play.patch(ONE, json!({ "firstName": "Overtaker" })).await
    };
    let (read, changed) = tokio::join!(overtaken, change);
    assert_ne!(read["firstName"], "Overtaker");
    assert_eq!(play.contact(ONE).await, changed);
    play.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_latency() {
    let play = play(None).await;
    play.behave(json!({ "latency": "1h" })).await;
    let read = play.http.get(format!("http://{}{CONTACTS}/{ONE}", play.addr)).bearer_auth(EDITOR).send();
    let stop = async {
        play.read_arrives().await;
        play.stop().await;
    };
    let (answer, ()) = tokio::join!(read, stop);
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test]
async fn reads_are_counted_by_requested_id_whatever_their_result() {
    let play = play(None).await;
    for id in [ONE, ONE, TWO, "nobody"] {
        play.get(id).await;
    }
    play.behave(json!({ "fail_ratio": 1 })).await;
    play.get(TWO).await;
    play.call(Method::GET, &format!("{CONTACTS}/{ONE}"), "invented", None).await;
    play.patch(ONE, json!({})).await;
    assert_eq!(
        play.calls().await,
        json!({ "contacts": { ONE: 2, TWO: 2, "nobody": 1 }, "total": 5, "bulk": 0, "searches": 0, "tokens": 0, "audits": 0 })
    );
    play.stop().await;
}

#[tokio::test]
async fn an_invalid_behaviour_is_refused_by_name_and_changes_nothing() {
    let play = play(None).await;
    let unknown = play.call(Method::POST, "/sandbox/behaviour", "", Some(json!({ "latency": 5, "lateness": 1 }))).await;
    let message = refused(unknown, 400, "bad.request").await;
    assert!(message.contains("\"lateness\"") && message.contains("rate_limit_per_minute"), "{message}");
    for (key, value) in [
        ("latency", json!("soon")),
        ("latency", json!(-1)),
        ("latency", json!("2days")),
        ("fail_ratio", json!(1.5)),
        ("fail_status", json!(200)),
        ("malformed", json!("yes")),
        ("retry_after", json!("1s")),
        ("events", json!(0)),
        ("event_duplicates", json!(101)),
        ("rate_limit_per_minute", json!(0.5)),
        ("permissions", json!(["view"])),
        ("permissions", json!("a:b:c")),
        ("token_lifetime", json!(0)),
        ("revoke_tokens", json!("all")),
    ] {
        let answer = play.call(Method::POST, "/sandbox/behaviour", "", Some(json!({ key: value }))).await;
        let message = refused(answer, 400, "bad.request").await;
        assert!(message.starts_with(key), "{message}");
    }
    let shown: Value = play.call(Method::GET, "/sandbox/behaviour", "", None).await.json().await.unwrap();
    assert_eq!((&shown["latency"], &shown["token_lifetime"]), (&json!("0s"), &json!(86_399)));
    play.stop().await;
}

#[tokio::test]
async fn a_change_is_announced_on_the_contact_topic_with_the_whole_contact() {
    let mut receiver = receiver(0).await;
    let play = play(Some(receiver.webhook.clone())).await;
    let changed = play.patch(ONE, json!({ "firstName": "Told" })).await;
    let (headers, event) = receiver.next().await;
    assert_eq!(
        (&headers["x-api-key"], headers["content-type"].to_str().unwrap().starts_with("application/json")),
        (&"demo-secret".parse().unwrap(), true)
    );
    assert_eq!(event["detail-type"], "v2.externalcontacts.contacts.{id}");
    assert!(event["source"].as_str().unwrap().starts_with("aws.partner/genesys.com/cloud/"));
    assert_eq!((&event["version"], &event["time"]), (&json!("0"), &json!("2027-01-15T08:00:00Z")));
    let detail = &event["detail"];
    assert_eq!(detail["topicName"], format!("v2.externalcontacts.contacts.{ONE}"));
    assert_eq!(detail["timestamp"], "2027-01-15T08:00:00.123Z");
    let body = &detail["eventBody"];
    for same in ["id", "firstName", "modifyDate", "workPhone", "type"] {
        assert_eq!(body[same], changed[same], "{same}");
    }
    assert_eq!((&body["canonicalContactId"], &body["mergeSet"]), (&json!(ONE), &json!([ONE])));
    assert_eq!((body.get("selfUri"), body.get("canonicalContact")), (None, None));
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
}

#[tokio::test]
async fn a_deletion_is_announced_on_the_audit_topic() {
    let mut receiver = receiver(0).await;
    let play = play(Some(receiver.webhook.clone())).await;
    let gone = play.contact(ONE).await;
    play.delete(ONE).await;
    let (_, event) = receiver.next().await;
    assert_eq!(event["detail-type"], "v2.audits.entitytype.{id}.entityid.{id}");
    assert_eq!(event["detail"]["topicName"], format!("v2.audits.entitytype.Contact.entityid.{ONE}"));
    let body = &event["detail"]["eventBody"];
    assert_eq!(
        (&body["action"], &body["entityType"], &body["serviceName"]),
        (&json!("Delete"), &json!("Contact"), &json!("ExternalContacts"))
    );
    assert_eq!(body["eventTime"], "2027-01-15T08:00:00.123Z");
    let name = format!("{} {}", gone["firstName"].as_str().unwrap(), gone["lastName"].as_str().unwrap());
    assert_eq!(body["entity"], json!({ "id": ONE, "name": name }));
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
}

#[tokio::test]
async fn a_merge_is_announced_for_the_canonical_contact_and_for_each_ancestor() {
    let mut receiver = receiver(0).await;
    let play = play(Some(receiver.webhook.clone())).await;
    let merged = play.edit(Method::POST, "/merge", json!({ "contactIds": [ONE, TWO] })).await;
    let mut bodies = HashMap::new();
    for _ in 0..3 {
        let (_, event) = receiver.next().await;
        let body = event["detail"]["eventBody"].clone();
        bodies.insert(body["id"].as_str().unwrap().to_owned(), body);
    }
    let id = merged["id"].as_str().unwrap();
    assert_eq!(bodies[id]["mergedFrom"], json!([ONE, TWO]));
    for body in bodies.values() {
        assert_eq!((&body["canonicalContactId"], &body["mergeSet"]), (&json!(id), &json!([id, ONE, TWO])));
    }
    for ancestor in [ONE, TWO] {
        assert_eq!(bodies[ancestor]["mergedTo"], id);
    }
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
}

#[tokio::test]
async fn an_event_is_retried_until_accepted_and_copies_keep_its_id() {
    let mut receiver = receiver(2).await;
    let play = play(Some(receiver.webhook.clone())).await;
    play.behave(json!({ "events": false })).await;
    play.patch(ONE, json!({ "firstName": "Unheard" })).await;
    play.behave(json!({ "events": true, "event_duplicates": 1, "event_lag": "10ms" })).await;
    play.patch(ONE, json!({ "firstName": "Heard" })).await;
    let ((_, first), (_, copy)) = (receiver.next().await, receiver.next().await);
    assert_eq!(first["detail"]["eventBody"]["firstName"], "Heard");
    assert_eq!(first, copy);
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
    assert!(receiver.events.recv().await.is_none(), "no other event was posted");
}

#[tokio::test]
async fn a_write_names_its_events_and_counters_show_their_results() {
    let mut receiver = receiver(1).await;
    let play = play(Some(receiver.webhook.clone())).await;
    play.behave(json!({ "event_duplicates": 1 })).await;
    let body = Some(json!({ "contactIds": [ONE, TWO] }));
    let answer = play.call(Method::POST, &format!("{CONTACTS}/merge"), EDITOR, body).await;
    let named = answer.headers()["sandbox-events"].to_str().unwrap().to_owned();
    let merged: Value = answer.json().await.unwrap();
    let mut posted = HashMap::new();
    for _ in 0..6 {
        let (_, event) = receiver.next().await;
        let about = event["detail"]["eventBody"]["id"].as_str().unwrap().to_owned();
        posted.insert(about, event["id"].as_str().unwrap().to_owned());
    }
    // The canonical contact's event comes first, those of its ancestors follow.
    let order = [merged["id"].as_str().unwrap(), ONE, TWO].map(|id| posted[id].as_str());
    assert_eq!(named, order.join(","));
    let all = json!({ "announced": 3, "acknowledged": 3, "waiting": 0 });
    let settled = async {
        while play.call(Method::GET, "/sandbox/events", "", None).await.json::<Value>().await.unwrap() != all {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, settled).await.expect("every copy is taken");

    play.behave(json!({ "events": false })).await;
    let unheard = play.call(Method::DELETE, &format!("{CONTACTS}/{ONE}"), EDITOR, None).await;
    assert!(!unheard.headers().contains_key("sandbox-events"));
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
}

#[tokio::test]
async fn events_overtake_each_other_under_jitter() {
    let mut receiver = receiver(0).await;
    let play = play(Some(receiver.webhook.clone())).await;
    play.behave(json!({ "event_jitter": "200ms" })).await;
    let mut posted = Vec::new();
    for round in 0..20 {
        play.patch(ONE, json!({ "firstName": format!("v{round}") })).await;
    }
    for _ in 0..20 {
        let (_, event) = receiver.next().await;
        posted.push(event["detail"]["eventBody"]["modifyDate"].as_str().unwrap().to_owned());
    }
    // Only one order of 20! is the original one.
    assert!(!posted.is_sorted(), "{posted:?}");
    play.stop().await;
    receiver.shutdown.drain(PATIENCE).await;
}

#[tokio::test]
async fn a_profile_shows_its_read_time_on_request() {
    let play = play(None).await;
    assert!(play.contact(ONE).await.get("sandboxReadAt").is_none());
    play.behave(json!({ "stamp_reads": true })).await;
    assert_eq!(play.contact(ONE).await["sandboxReadAt"], 1_800_000_000_123_u64);
    play.clock.advance(Duration::from_millis(5));
    assert_eq!(play.contact(ONE).await["sandboxReadAt"], 1_800_000_000_128_u64);
    play.stop().await;
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stop_drops_undelivered_events_and_logs_only_their_number() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false);
    let _scope = tracing::subscriber::set_default(subscriber.finish());
    let unbound = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let webhook = Webhook { url: format!("http://{unbound}/").parse().unwrap(), key: Secret::new("demo-secret") };
    let play = play(Some(webhook)).await;
    play.patch(ONE, json!({ "firstName": "Canary" })).await;
    play.delete(TWO).await;
    play.stop().await;
    let log = String::from_utf8(log.0.lock().clone()).unwrap();
    assert!(log.contains("sandbox dropped undelivered events at shutdown") && log.contains("events=2"), "{log}");
    let ours: Vec<_> = log.lines().filter(|line| line.contains("profile_edge")).collect();
    assert!(ours.iter().all(|line| !line.contains(ONE) && !line.contains(TWO) && !line.contains("Canary")), "{ours:?}");
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_controller, shutdown) = Shutdown::new();
    let listen = taken.local_addr().unwrap().into();
    let options = SandboxOptions { listen, customers: 1, latency: Duration::ZERO, webhook: None };
    let error = Sandbox::start(options, profile_edge::clock::SystemClock::shared(), shutdown).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}
