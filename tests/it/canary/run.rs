//! A run of everything: every shape, scheme and answer, valid and invalid, about planted people.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use profile_edge::clock::{Clock, SystemClock};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{customer, eventually};

use super::genesys::{person, with_status};
use super::plants::{
    AGENT_TOKEN, API_KEY, BEARER, CALLER_KEY, EMAIL, FIRST_NAME, FREE_ID, HUB_SECRET, LAST_NAME, NARROW_KEY,
    NEXT_SECRET, PASSWORD, PHONE, Place, SLOW_KEY, SPACED_ID, STANDARD_SECRET, UUID, WRONG, base64,
};
use super::world::{Running, webhooks};

const CONTACTS: &str = "/api/v2/externalcontacts/contacts";

/// The answers of a run, and the plants that they added.
#[derive(Default)]
pub(super) struct RunRecord {
    statuses: BTreeSet<u16>,
    details: BTreeSet<String>,
    /// Answers without a profile: they must not repeat the request.
    pub(super) refusals: Vec<Place>,
    /// The issued tokens.
    pub(super) tokens: Vec<String>,
}

impl RunRecord {
    /// Sends a request, and keeps the parts to be searched.
    async fn ask(&mut self, request: RequestBuilder) -> (u16, String) {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let detail = answer.headers().get("cache-status").map(|record| record.to_str().unwrap().to_owned());
        let headers = format!("{:?}", answer.headers());
        let text = answer.text().await.unwrap();
        self.statuses.insert(status);
        self.details.extend(detail.clone());
        if status >= 400 {
            self.refusals.push(Place::new(format!("the refusal {status}"), format!("{headers}\n{text}")));
        }
        (status, text)
    }

    /// # Panics
    ///
    /// Some answer never occurred, so the run was not complete.
    pub(super) fn is_everything(&self) {
        for status in [200, 202, 304, 400, 401, 403, 404, 405, 410, 413, 415, 429, 431, 502, 503] {
            assert!(self.statuses.contains(&status), "{status} was never answered: {:?}", self.statuses);
        }
        for detail in ["; hit", "fwd=miss", "detail=negative", "detail=tombstone", "fwd=stale", "fwd=bypass"] {
            assert!(self.details.iter().any(|record| record.contains(detail)), "never {detail}: {:?}", self.details);
        }
    }
}

/// Runs all requests at the public listener and at Genesys.
pub(super) async fn everything(running: &Running<'_>) -> RunRecord {
    let mut record = RunRecord::default();
    events(running, &mut record).await;
    running.settled().await;
    answers(running, &mut record).await;
    nonsense(running, &mut record).await;
    sandbox(running, &mut record).await;
    reloads(running, &mut record).await;
    running.settled().await;
    record.is_everything();
    record
}

fn lookup(running: &Running<'_>, tenant: &str, customer: &str) -> RequestBuilder {
    let request = running.world.client.get(running.url("/api/v1/profile"));
    request.query(&[("tenantId", tenant), ("customerId", customer)]).header("X-API-Key", CALLER_KEY)
}

/// Waits for a status, because a busy machine may miss deadlines at first.
async fn reaches(record: &mut RunRecord, status: u16, request: RequestBuilder) -> String {
    let record = tokio::sync::Mutex::new(record);
    eventually(&format!("{status} to {request:?}"), || async {
        let (got, text) = record.lock().await.ask(request.try_clone().unwrap()).await;
        (got == status).then_some(text)
    })
    .await
}

fn mac(key: &[u8], text: &str) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().into()
}

/// Returns the headers of each signature scheme for these secrets.
fn proofs(body: &str, secrets: [&str; 4], standard: &[u8]) -> Vec<Vec<(&'static str, String)>> {
    let [api_key, password, bearer, hub] = secrets;
    let basic = base64(format!("eventbridge:{password}").as_bytes());
    let (id, now) = (format!("message-{}", rand::random::<u64>()), SystemClock.now().as_millis() / 1_000);
    let signature = base64(&mac(standard, &format!("{id}.{now}.{body}")));
    vec![
        vec![("x-api-key", api_key.to_owned())],
        vec![("authorization", format!("Basic {basic}"))],
        vec![("authorization", format!("Bearer {bearer}"))],
        vec![("x-hub-signature-256", format!("sha256={}", hex::encode(mac(hub.as_bytes(), body))))],
        vec![("x-hub-signature-256", format!("sha256={}", base64(&mac(hub.as_bytes(), body))))],
        vec![
            ("webhook-id", id),
            ("webhook-timestamp", now.to_string()),
            ("webhook-signature", format!("v1,{signature}")),
        ],
    ]
}

fn webhook(running: &Running<'_>, body: &str, head: &[(&'static str, String)]) -> RequestBuilder {
    let request = running.world.client.post(running.url("/webhooks/10001")).header("content-type", "application/json");
    head.iter().fold(request.body(body.to_owned()), |request, (name, value)| request.header(*name, value))
}

fn notification(id: &str) -> Value {
    let mut body = person(id);
    body["modifyDate"] = "2126-03-04T05:06:07.089Z".into();
    json!({ "topicName": format!("v2.externalcontacts.contacts.{id}"), "version": "2", "eventBody": body,
            "metadata": { "CorrelationId": EMAIL } })
}

fn eventbridge(detail: &Value) -> Value {
    json!({ "version": "0", "id": format!("event of {UUID}"), "detail-type": format!("v2.contacts.{UUID}"),
            "source": "aws.partner/genesys.com/cloud/org/suffix", "account": "1", "time": "2126-03-04T05:06:08Z",
            "region": "us-east-1", "resources": [EMAIL], "detail": detail })
}

/// Returns events of every shape and kind, and invalid ones.
fn shapes() -> Vec<Value> {
    let flat = |kind: &str, id: &str| {
        json!({ "tenantId": "10001", "customerId": id, "eventType": kind, "eventId": format!("change-of-{id}"),
                "mergedIds": if kind == "customer.merged" { json!([SPACED_ID, UUID]) } else { Value::Null },
                "person": person(id) })
    };
    let mut merge = notification(UUID);
    merge["eventBody"]["mergedFrom"] = json!([FREE_ID, SPACED_ID]);
    let mut unresolved = notification(UUID);
    unresolved["topicName"] = format!("v2.externalcontacts.contacts.{UUID}.unresolved").into();
    let mut note = notification(UUID);
    note["topicName"] = format!("v2.externalcontacts.contacts.{UUID}.notes").into();
    let audit = json!({ "topicName": format!("v2.audits.entitytype.Contact.entityid.{UUID}"), "version": "2",
        "eventBody": { "id": UUID, "serviceName": "ExternalContacts", "eventTime": "2025-03-04T05:06:25.000Z",
            "action": "Delete", "entityType": "Contact", "entity": { "id": UUID, "name": LAST_NAME },
            "propertyChanges": [{ "property": "email", "oldValues": [EMAIL], "newValues": [PHONE] }] } });
    let cloud = |data: Value| {
        json!({ "specversion": "1.0", "id": format!("of {FREE_ID}"), "source": format!("/{EMAIL}"),
                                      "type": "customer.updated", "subject": EMAIL, "data": data })
    };
    let mut encoded = cloud(Value::Null);
    encoded.as_object_mut().unwrap().remove("data");
    encoded["data_base64"] = base64(flat("customer.updated", FREE_ID).to_string().as_bytes()).into();
    vec![
        flat("customer.created", FREE_ID),
        flat("customer.updated", SPACED_ID),
        flat("customer.deleted", &UUID.to_uppercase()),
        flat("customer.merged", FREE_ID),
        notification(UUID),
        merge,
        unresolved,
        note,
        eventbridge(&notification(UUID)),
        eventbridge(&audit),
        json!([eventbridge(&notification(UUID)), eventbridge(&audit)]),
        cloud(json!({ "customerId": FREE_ID, "name": LAST_NAME })),
        encoded,
        // Malformed, foreign, and nothing at all.
        json!({ "tenantId": "10001", "customerId": [FREE_ID, LAST_NAME, EMAIL, PHONE] }),
        json!({ "tenantId": "10001", "customerId": format!("{FREE_ID}/{EMAIL}") }),
        json!({ "tenantId": "10001", "customerId": FREE_ID, "eventType": EMAIL, "modifyDate": PHONE }),
        json!({ "tenantId": FREE_ID, "customerId": FREE_ID }),
        json!({ EMAIL: person(UUID) }),
        json!([person(UUID), EMAIL]),
        json!([]),
        eventbridge(&json!({ "topicName": EMAIL, "eventBody": LAST_NAME })),
    ]
}

async fn events(running: &Running<'_>, record: &mut RunRecord) {
    let right = [API_KEY, PASSWORD, BEARER, HUB_SECRET];
    for shape in shapes() {
        let body = shape.to_string();
        record.ask(webhook(running, &body, &proofs(&body, right, STANDARD_SECRET)[0])).await;
    }
    let body = json!({ "tenantId": "10001", "customerId": FREE_ID, "eventId": format!("{EMAIL} {PHONE}") }).to_string();
    for head in proofs(&body, right, STANDARD_SECRET) {
        let (status, text) = record.ask(webhook(running, &body, &head)).await;
        assert_eq!(status, 202, "{head:?}: {text}");
    }
    for head in proofs(&body, [WRONG; 4], WRONG.as_bytes()) {
        assert_eq!(record.ask(webhook(running, &body, &head)).await.0, 401, "{head:?}");
    }
    let binary = [("x-api-key", API_KEY), ("ce-specversion", "1.0"), ("ce-id", FREE_ID), ("ce-source", EMAIL)];
    let binary = binary.map(|(name, value)| (name, value.to_owned())).to_vec();
    let binary = [binary, vec![("ce-type", "customer.updated".to_owned())]].concat();
    assert_eq!(record.ask(webhook(running, &json!({ "customerId": FREE_ID }).to_string(), &binary)).await.0, 202);

    let key = [("x-api-key", API_KEY.to_owned())];
    let broken = format!("{{\"tenantId\":\"10001\",\"customerId\":\"{FREE_ID}\",{LAST_NAME}");
    record.ask(webhook(running, &broken, &key)).await;
    record.ask(webhook(running, &EMAIL.repeat(1 << 16), &key)).await;
    record
        .ask(running.world.client.post(running.url("/webhooks/10001")).header("content-type", "text/csv").body(EMAIL))
        .await;
    // Values in the wrong places.
    for path in [format!("/webhooks/{FREE_ID}"), format!("/webhooks/{EMAIL}"), "/webhook/customer-updated".to_owned()] {
        let request = running.world.client.post(running.url(&path)).header("x-api-key", API_KEY);
        record.ask(request.json(&json!({ "tenantId": FREE_ID, "customerId": EMAIL }))).await;
    }
}

async fn answers(running: &Running<'_>, record: &mut RunRecord) {
    let client = &running.world.client;
    for id in [UUID, FREE_ID, SPACED_ID] {
        for _ in 0..2 {
            let text = reaches(record, 200, lookup(running, "10002", id)).await;
            assert!(text.contains(EMAIL), "the planted profile is answered");
        }
        let asked = json!({ "tenantId": "10002", "customerId": id });
        let url = running.url("/api/v1/profile");
        for request in [client.get(&url), client.post(&url)] {
            record.ask(request.bearer_auth(CALLER_KEY).json(&asked)).await;
        }
        record.ask(lookup(running, "10002", id).query(&[("fields", "id,workPhone.e164")])).await;
        record.ask(lookup(running, "10002", id).header("if-none-match", "*")).await;
    }
    let by = |name: &str, value: &str| {
        let request = client.get(running.url("/api/v1/profile")).header("X-API-Key", CALLER_KEY);
        request.query(&[("tenantId", "10002"), (name, value)])
    };
    for _ in 0..3 {
        for request in
            [by("phone", PHONE), by("email", EMAIL), by("externalId", FREE_ID).query(&[("externalSource", UUID)])]
        {
            let text = reaches(record, 200, request).await;
            assert!(text.contains(EMAIL), "the planted profile is answered");
        }
    }
    let genesys = |path: &str| running.url(&format!("/api/v2/externalcontacts/{path}"));
    let asked = client.post(genesys("identifierlookup/contacts")).json(&json!({ "type": "Email", "value": EMAIL }));
    reaches(record, 200, asked.header("X-API-Key", CALLER_KEY).header("X-Tenant-Id", "10002")).await;
    let asked = client.get(genesys("reversewhitepageslookup")).query(&[("lookupVal", PHONE)]);
    reaches(record, 200, asked.header("X-API-Key", CALLER_KEY).header("X-Tenant-Id", "10002")).await;
    for request in
        [by("phone", EMAIL), by("email", PHONE), by("phone", &format!("sip:{EMAIL}")), by("externalId", EMAIL)]
    {
        assert_eq!(record.ask(request).await.0, 400);
    }
    let narrow = |fields: &str| {
        client.get(running.url("/api/v1/profile")).header("X-API-Key", NARROW_KEY).query(&[
            ("tenantId", "10002"),
            ("customerId", UUID),
            ("fields", fields),
        ])
    };
    record.ask(narrow("id")).await;
    assert_eq!(record.ask(narrow("firstName")).await.0, 403);
    reaches(record, 404, lookup(running, "10001", FREE_ID)).await;
    reaches(record, 404, lookup(running, "10001", FREE_ID)).await;
    assert_eq!(record.ask(lookup(running, FREE_ID, FREE_ID)).await.0, 403);
    // Many at once and ahead of time, also customers that Genesys does not know or fails for.
    let many = json!({ "tenantId": "10002", "customerIds": [UUID, FREE_ID, SPACED_ID, with_status("404"), with_status("400")] });
    for path in ["/api/v1/profiles", "/api/v1/profiles/prefetch"] {
        let request = client.post(running.url(path)).header("X-API-Key", CALLER_KEY).json(&many);
        assert!(matches!(record.ask(request).await.0, 200 | 202), "{path}");
    }
    // Every answer of Genesys.
    let kinds = ["400", "404", "410", "413", "415", "302", "500", "503", "merged", "malformed", "silent"];
    for kind in kinds.iter().chain(&["401", "403", "429"]) {
        record.ask(lookup(running, "10002", &with_status(kind))).await;
    }
    // Stale answers while Genesys fails: the breaker is open, or opens.
    reaches(record, 200, lookup(running, "10003", FREE_ID)).await;
    let failing = with_status("500");
    let record = tokio::sync::Mutex::new(record);
    eventually("something stale", || async {
        let failing = (0..5).map(|_| lookup(running, "10003", &failing).send());
        join_all(failing).await;
        let mut record = record.lock().await;
        record.ask(lookup(running, "10003", FREE_ID)).await;
        record.details.iter().any(|record| record.contains("fwd=stale")).then_some(())
    })
    .await;
}

/// Sends invalid credentials, requests and paths, and uses the route for SDKs.
async fn nonsense(running: &Running<'_>, record: &mut RunRecord) {
    let client = &running.world.client;
    let url = running.url("/api/v1/profile");
    let query = [("tenantId", "10001"), ("customerId", FREE_ID)];
    for request in [
        client.get(&url).query(&query),
        client.get(&url).query(&query).header("X-API-Key", WRONG),
        client.get(&url).query(&query).bearer_auth(WRONG),
        client.get(&url).query(&query).basic_auth(EMAIL, Some(WRONG)),
        client.get(&url).query(&query).basic_auth("desktop", Some(WRONG)),
        client.get(&url).query(&[("email", EMAIL)]).header("X-API-Key", CALLER_KEY),
        lookup(running, "10001", FREE_ID).query(&[("customerId", SPACED_ID)]),
        lookup(running, "10001", FREE_ID).query(&[("fields", EMAIL)]),
        lookup(running, "10001", &format!("{FREE_ID}/{EMAIL}")),
        lookup(running, EMAIL, FREE_ID),
        client.post(&url).header("X-API-Key", CALLER_KEY).body(format!("{{\"customerId\":\"{FREE_ID}\",{EMAIL}")),
        client.post(&url).header("X-API-Key", CALLER_KEY).json(&json!({ "customerId": [person(UUID)] })),
        client.post(&url).header("X-API-Key", CALLER_KEY).header("content-type", "text/csv").body(EMAIL),
        client.post(&url).header("X-API-Key", CALLER_KEY).body(EMAIL.repeat(1 << 16)),
        client.delete(&url).query(&query),
        client.get(running.url(&format!("/nowhere/{EMAIL}?q={FREE_ID}"))).bearer_auth(CALLER_KEY),
        lookup(running, "10001", FREE_ID).header("x-large", EMAIL.repeat(1_000)),
        lookup(running, "10002", UUID)
            .header("X-Request-Id", EMAIL)
            .header("Cookie", format!("session={WRONG}; mail={EMAIL}"))
            .header("User-Agent", EMAIL)
            .header("Referer", format!("https://crm/{FREE_ID}?mail={EMAIL}"))
            .header("baggage", format!("mail={EMAIL}"))
            .header("traceparent", format!("00-{FREE_ID}-01"))
            .header("tracestate", format!("crm={FREE_ID}")),
    ] {
        record.ask(request).await;
    }
    let slow = || client.get(&url).query(&[("tenantId", "10002"), ("customerId", UUID)]).header("X-API-Key", SLOW_KEY);
    reaches(record, 429, slow()).await;

    for (path, id, secret) in [
        ("/oauth/token", "desktop", CALLER_KEY),
        ("/login/oauth/token", "narrow", NARROW_KEY),
        ("/oauth/token", "desktop", WRONG),
        ("/oauth/token", EMAIL, CALLER_KEY),
    ] {
        let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
        let (status, text) = record.ask(client.post(running.url(path)).form(&form)).await;
        let basic = client.post(running.url(path)).basic_auth(id, Some(secret));
        record.ask(basic.form(&[("grant_type", "client_credentials"), ("scope", EMAIL)])).await;
        record.ask(client.post(running.url(path)).form(&[("grant_type", EMAIL)])).await;
        if status == 200 {
            let answer: Value = serde_json::from_str(&text).unwrap();
            record.tokens.push(answer["access_token"].as_str().unwrap().to_owned());
        }
    }
    let agent = |token: &str| client.get(&url).query(&[("tenantId", "10002"), ("customerId", UUID)]).bearer_auth(token);
    reaches(record, 200, agent(AGENT_TOKEN)).await;
    reaches(record, 401, agent(WRONG)).await;
    let token = record.tokens[0].clone();
    let contact = |id: &str| {
        let request = client.get(running.url(&format!("{CONTACTS}/{id}"))).header("X-Tenant-Id", "10002");
        request.bearer_auth(&token)
    };
    reaches(record, 200, contact(UUID)).await;
    reaches(record, 200, contact(UUID).query(&[("expand", "division")])).await;
    record.ask(contact(UUID).header("X-Tenant-Id", EMAIL)).await;
    record.ask(contact(FREE_ID)).await;
    record.ask(contact(UUID).bearer_auth(format!("{token}x"))).await;
    record.ask(client.patch(running.url(&format!("{CONTACTS}/{UUID}"))).bearer_auth(&token).json(&person(UUID))).await;

    // Input that is not HTTP.
    for rude in [format!("GET /{EMAIL} HTTP/9.9\r\n\r\n"), format!("{LAST_NAME}: {EMAIL}\r\n{FREE_ID}\r\n\r\n")] {
        let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", running.world.ports.public)).await.unwrap();
        raw.write_all(rude.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The connection may be closed without an answer.
        let _ = raw.read_to_end(&mut answer).await;
        record.refusals.push(Place::new("the answer to what is not HTTP", answer));
    }
}

/// Uses the sandbox: changes with their events, and all its faults.
async fn sandbox(running: &Running<'_>, record: &mut RunRecord) {
    let client = &running.world.client;
    let sandbox = |method: Method, path: &str, body: &Value| {
        let url = format!("http://127.0.0.1:{}{path}", running.world.ports.sandbox);
        client.request(method, url).bearer_auth("sandbox-editor").json(body).send()
    };
    let contact = format!("{CONTACTS}/{}", customer(1));
    let mut patch = person("");
    patch.as_object_mut().unwrap().retain(|name, _| matches!(name.as_str(), "firstName" | "lastName" | "workEmail"));
    assert_eq!(sandbox(Method::PATCH, &contact, &patch).await.unwrap().status(), 200);
    reaches(record, 200, lookup(running, "10001", &customer(1))).await;
    for (n, wrong) in (10..).zip([
        json!({ "fail_status": 500 }),
        json!({ "fail_status": 503, "retry_after": 0 }),
        json!({ "fail_status": 401 }),
        json!({ "malformed": true, "fail_status": null }),
        json!({ "malformed": null, "latency": "60s" }),
        json!({ "latency": null, "revoke_tokens": true }),
        json!({ EMAIL: FIRST_NAME }),
    ]) {
        sandbox(Method::POST, "/sandbox/behaviour", &wrong).await.unwrap();
        record.ask(lookup(running, "10001", &customer(n))).await;
        record.ask(lookup(running, "10001", FREE_ID)).await;
    }
    reaches(record, 200, lookup(running, "10001", &customer(20))).await;
    sandbox(Method::DELETE, &contact, &Value::Null).await.unwrap();
    reaches(record, 410, lookup(running, "10001", &customer(1))).await;
}

/// Reloads with another secret, and with invalid files.
async fn reloads(running: &Running<'_>, record: &mut RunRecord) {
    let good = running.world.settings().replace(&webhooks(""), &webhooks(&format!(", \"{NEXT_SECRET}\"")));
    let broken = good.replace("[[tenant.webhook]]\n", &format!("[[tenant.webhook]]\nsecrets {NEXT_SECRET}\n"));
    let wrong = good.replace("secrets = [", &format!("secrets = \"{NEXT_SECRET}\" # ["));
    for (settings, outcome) in [(&broken, "error"), (&wrong, "error"), (&good, "ok")] {
        let label = format!("outcome=\"{outcome}\"");
        let before = running.sum("profile_edge_config_reloads_total", &label).await;
        std::fs::write(running.world.path().join("edge.toml"), settings).unwrap();
        running.process.signal("HUP");
        eventually("the reload", || async {
            (running.sum("profile_edge_config_reloads_total", &label).await > before).then_some(())
        })
        .await;
    }
    let body = json!({ "tenantId": "10001", "customerId": FREE_ID }).to_string();
    let (status, text) = record.ask(webhook(running, &body, &[("x-api-key", NEXT_SECRET.to_owned())])).await;
    assert_eq!(status, 202, "{text}");
}
