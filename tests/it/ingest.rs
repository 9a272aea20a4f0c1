//! Webhooks: what is accepted, what is refused and in which order, and that accepted events evict entries.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use profile_edge::clock::{Clock, SystemClock};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::pairing::on_every_pairing;
use crate::support::customer;
use crate::support::edge::{Edge, LookupAnswer, Pairing, chunked, flat, looked};

const ROUTE: &str = "/webhooks/10001";
const FLAT_ROUTE: &str = "/webhook/customer-updated";

on_every_pairing!(
    an_event_of_any_shape_evicts_only_its_customer,
    the_readable_events_of_an_array_are_taken_each_with_its_status,
);

fn sign(body: &[u8]) -> [u8; 32] {
    let mac = Hmac::<Sha256>::new_from_slice(b"demo-secret").unwrap();
    mac.chain_update(body).finalize().into_bytes().into()
}

fn unsigned(edge: &Edge, route: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    edge.client.post(edge.url(route)).header("Content-Type", "application/json").body(body)
}

async fn send(request: RequestBuilder) -> LookupAnswer {
    looked(request.send().await.unwrap()).await
}

async fn post(edge: &Edge, route: &str, body: impl Into<reqwest::Body>) -> LookupAnswer {
    send(unsigned(edge, route, body).header("X-API-Key", "demo-secret")).await
}

async fn queued(edge: &Edge) -> f64 {
    let mut sum = 0.0;
    for shape in ["flat", "notification", "eventbridge", "cloudevents"] {
        let series = format!("profile_edge_ingest_events_total{{shape=\"{shape}\",outcome=\"queued\"}}");
        sum += edge.metric(&series).await;
    }
    sum
}

#[track_caller]
fn assert_refused(answer: &LookupAnswer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &Value::from(code)), "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}

fn notification(id: &str) -> Value {
    json!({
        "topicName": format!("v2.externalcontacts.contacts.{id}"), "version": "2",
        "eventBody": { "id": id, "modifyDate": "2126-03-04T05:06:07.089Z" },
        "metadata": { "CorrelationId": "c-1" },
    })
}

fn eventbridge(event: &str, id: &str) -> Value {
    json!({
        "version": "0", "id": event, "detail-type": "v2.externalcontacts.contacts.{id}",
        "source": "aws.partner/genesys.com/cloud/org/suffix", "account": "1", "time": "2126-03-04T05:06:08Z",
        "region": "us-east-1", "resources": [], "detail": notification(id),
    })
}

async fn an_event_of_any_shape_evicts_only_its_customer(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    let ids: Vec<String> = (1..=6).map(customer).collect();
    for id in &ids {
        assert_eq!(edge.look_up(id).await.status, 200);
    }
    let cloudevent = json!({ "specversion": "1.0", "id": "ce-1", "source": "/crm", "type": "customer.updated",
                             "data": { "customerId": ids[3] } });
    let bodies = [flat(&ids[0]), notification(&ids[1]), eventbridge("eb-1", &ids[2]), cloudevent];
    for body in &bodies {
        let answer = post(&edge, ROUTE, body.to_string()).await;
        assert_eq!((answer.status, &answer.json()["status"]), (202, &Value::from("queued")), "{body}");
        assert!(answer.json()["eventId"].is_string());
    }
    let binary = edge.client.post(edge.url(ROUTE)).header("X-API-Key", "demo-secret");
    let binary = binary.header("ce-specversion", "1.0").header("ce-id", "ce-2").header("ce-source", "/crm");
    let binary = binary.header("ce-type", "customer.updated").json(&json!({ "customerId": ids[4] }));
    assert_eq!(binary.send().await.unwrap().status(), 202);
    edge.applied("updated", 5.0).await;

    let evicted = [true, true, true, true, true, false];
    for (id, evicted) in ids.iter().zip(evicted) {
        assert_eq!(!edge.look_up(id).await.is_hit(), evicted, "{id}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hex_and_base64_signatures_are_accepted_and_changed_bodies_are_not() {
    let edge = Edge::start().await;
    let body = flat(&customer(1)).to_string().into_bytes();
    for encoded in [STANDARD.encode(sign(&body)), hex::encode(sign(&body))] {
        let signed =
            |body: Vec<u8>| unsigned(&edge, ROUTE, body).header("X-Hub-Signature-256", format!("sha256={encoded}"));
        assert_eq!(send(signed(body.clone())).await.status, 202);
        let before = queued(&edge).await;
        for at in [0, body.len() / 2, body.len() - 1] {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert_refused(&send(signed(changed)).await, 401, "unauthorized");
        }
        assert_eq!(queued(&edge).await, before);
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_checks_run_in_the_documented_order_and_publish_nothing() {
    let edge = Edge::start().await;
    let large = vec![b' '; 2 << 20];
    // Each request also has the faults of all later ones.
    for unknown in ["/webhooks/10002", "/webhooks/%FF"] {
        assert_refused(&send(unsigned(&edge, unknown, large.clone())).await, 404, "unknown_tenant");
    }
    let text = |route: &str, body: reqwest::Body| {
        send(edge.client.post(edge.url(route)).header("Content-Type", "text/csv").body(body))
    };
    for large in [chunked(&large), large.into()] {
        assert_refused(&text(ROUTE, large).await, 413, "body_too_large");
    }
    for body in [chunked(b"a,b"), "a,b".into()] {
        assert_refused(&text(ROUTE, body).await, 415, "unsupported_media_type");
    }
    assert_refused(&text(ROUTE, chunked(b"")).await, 401, "unauthorized");
    let compressed = unsigned(&edge, ROUTE, "\u{1f}").header("Content-Encoding", "gzip");
    assert_refused(&send(compressed).await, 415, "unsupported_media_type");
    assert_refused(&send(unsigned(&edge, ROUTE, "not json")).await, 401, "unauthorized");
    let wrong = unsigned(&edge, ROUTE, "not json").header("X-API-Key", "demo-secres");
    assert_refused(&send(wrong).await, 401, "unauthorized");
    let foreign = json!({ "tenantId": "10002", "customerId": 7 });
    assert_refused(&post(&edge, ROUTE, foreign.to_string()).await, 400, "invalid_field");
    let foreign = json!({ "tenantId": "10002", "customerId": "x" });
    assert_refused(&post(&edge, ROUTE, foreign.to_string()).await, 403, "foreign_tenant");

    assert_refused(&post(&edge, FLAT_ROUTE, foreign.to_string()).await, 404, "unknown_tenant");
    assert_refused(&text(FLAT_ROUTE, foreign.to_string().into()).await, 404, "unknown_tenant");
    assert_refused(&text(FLAT_ROUTE, flat(&customer(1)).to_string().into()).await, 415, "unsupported_media_type");
    let unsigned_bad = json!({ "tenantId": "10001", "customerId": 7 });
    assert_refused(&send(unsigned(&edge, FLAT_ROUTE, unsigned_bad.to_string())).await, 401, "unauthorized");
    assert_refused(&post(&edge, FLAT_ROUTE, unsigned_bad.to_string()).await, 400, "invalid_field");
    assert_eq!(queued(&edge).await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_events_are_refused_with_the_field_name() {
    let edge = Edge::start().await;
    let long = json!({ "tenantId": "10001", "customerId": "x".repeat(10_000) }).to_string();
    let cases: [(&[u8], &str); 11] = [
        (br#" ["10001"]"#, "body"),
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (br#"{"tenantId":"10001"}"#, "customerId"),
        (br#"{"tenantId":"10001","customerId":7}"#, "customerId"),
        (br#"{"tenantId":"10001","customerId":"a/b"}"#, "customerId"),
        (br#"{"tenantId":"10001","customerId":"a\nb"}"#, "customerId"),
        (br#"{"tenantId":"10001","customerId":".."}"#, "customerId"),
        (br#"{"tenantId":"10001","customerId":"a","customerId":"b"}"#, "customerId"),
        (long.as_bytes(), "customerId"),
    ];
    for route in [ROUTE, FLAT_ROUTE] {
        for (body, field) in cases {
            let answer = post(&edge, route, body.to_vec()).await;
            assert_refused(&answer, 400, "invalid_field");
            let field = if route == ROUTE && body.starts_with(b" [") { "[0]" } else { field };
            assert_eq!(answer.json()["field"], field, "{route}: {}", answer.text);
        }
    }
    assert_refused(&post(&edge, FLAT_ROUTE, r#"{"customerId":"a"}"#).await, 400, "invalid_field");
    let many = Value::from(vec![eventbridge("e", "x"); 1_001]).to_string();
    assert_refused(&post(&edge, ROUTE, many).await, 400, "invalid_field");
    assert_refused(&post(&edge, ROUTE, "[]").await, 400, "invalid_field");
    edge.stop().await;
}

async fn the_readable_events_of_an_array_are_taken_each_with_its_status(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    let note = json!({ "topicName": format!("v2.externalcontacts.contacts.{}.notes.n", customer(1)), "eventBody": {} });
    let mut ignored = eventbridge("eb-2", "x");
    ignored["detail"] = note.clone();
    let array = json!([eventbridge("eb-1", &customer(1)), ignored, eventbridge("eb-3", &customer(2))]);
    let answer = post(&edge, ROUTE, array.to_string()).await.json();
    assert_eq!(answer["status"], "queued");
    let statuses: Vec<&Value> = answer["events"].as_array().unwrap().iter().map(|event| &event["status"]).collect();
    assert_eq!(statuses, ["queued", "ignored", "queued"]);
    assert_eq!(answer["events"][0]["eventId"], "eb-1");
    assert!(answer["events"][0]["loggedAs"].as_str().unwrap().starts_with("digest-"));
    assert_eq!(queued(&edge).await, 2.0);

    let mut many: Vec<Value> = (0..1_000).map(|n| eventbridge(&format!("many-{n}"), &customer(n))).collect();
    many[500] = eventbridge("bad", "a/b");
    let answer = post(&edge, ROUTE, Value::from(many).to_string()).await;
    assert_eq!((answer.status, &answer.json()["status"]), (202, &Value::from("queued")), "{}", answer.text);
    let bad = &answer.json()["events"][500];
    assert_eq!((&bad["status"], &bad["field"]), (&"rejected".into(), &"[500].detail.eventBody.id".into()));
    assert_eq!(queued(&edge).await, 1_001.0);
    assert_eq!(edge.metric("profile_edge_ingest_events_total{shape=\"flat\",outcome=\"malformed\"}").await, 1.0);

    let bad = json!([eventbridge("eb-4", "a/b"), eventbridge("eb-5", "a/b")]);
    let answer = post(&edge, ROUTE, bad.to_string()).await;
    assert_eq!((answer.status, &answer.json()["field"]), (400, &Value::from("[0].detail.eventBody.id")));
    assert_eq!(queued(&edge).await, 1_001.0);

    let none = post(&edge, ROUTE, json!([eventbridge("eb-6", "a/b"), note]).to_string()).await;
    assert_eq!((none.status, &none.json()["status"]), (202, &Value::from("ignored")));
    assert_eq!(none.json()["reason"], "1 of 2 events cannot be read, and no other is relevant");
    let alone = post(&edge, ROUTE, note.to_string()).await;
    assert_eq!((alone.status, alone.json()), (202, json!({ "status": "ignored", "reason": "a note of a contact" })));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers_503_with_retry_after() {
    let settings = "queue.embedded.max_bytes = \"1MiB\"\nconsumer.concurrency = 1\n";
    let edge = Edge::start_with(settings).await;
    edge.faults.arm(profile_edge::faults::Fault::PauseBeforeApply);
    let refusal = loop {
        let events: Vec<Value> = (0..1_000).map(|n| eventbridge(&format!("e-{n}"), &customer(n))).collect();
        let answer = post(&edge, ROUTE, Value::from(events).to_string()).await;
        if answer.status != 202 {
            break answer;
        }
    };
    assert_refused(&refusal, 503, "not_durable");
    assert!(refusal.headers.contains_key("retry-after"));
    edge.faults.disarm(profile_edge::faults::Fault::PauseBeforeApply);
    crate::support::eventually("the queue has space", || async {
        let one = flat(&customer(1)).to_string();
        (post(&edge, ROUTE, one).await.status == 202).then_some(())
    })
    .await;
    edge.stop().await;
}

/// The metric of events of which a part was not believed.
fn doubts(reason: &str) -> String {
    format!("profile_edge_ingest_doubts_total{{reason=\"{reason}\"}}")
}

fn signed(edge: &Edge, body: &Value) -> RequestBuilder {
    let text = body.to_string();
    let signature = format!("sha256={}", hex::encode(sign(text.as_bytes())));
    unsigned(edge, ROUTE, text).header("X-Hub-Signature-256", signature)
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_outside_a_signature_change_nothing_about_an_event() {
    let edge = Edge::start().await;
    let update = signed(&edge, &flat(&customer(1))).header("ce-specversion", "1.0").header("ce-id", "x");
    let attack = update.header("ce-source", "x").header("ce-type", "customer.deleted");
    assert_eq!(send(attack.header("ce-time", "2025-03-04T05:06:07Z")).await.status, 202);
    edge.applied("updated", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200, "the customer is not deleted");
    assert_eq!(edge.metric(&doubts("unsigned_headers")).await, 1.0);
    let data = signed(&edge, &json!({ "any": "data" })).header("ce-specversion", "1.0");
    let answer = send(data).await;
    assert_refused(&answer, 400, "invalid_field");
    assert!(answer.text.contains("structured mode"), "{}", answer.text);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_in_the_far_future_can_be_outlived() {
    let edge = Edge::start().await;
    let mut deletion = flat(&customer(1));
    deletion["eventType"] = "customer.deleted".into();
    deletion["occurredAt"] = "2999-12-31T23:59:59Z".into();
    assert_eq!(edge.post_event(&deletion).await.status(), 202);
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 410);
    assert_eq!(edge.metric(&doubts("future_time")).await, 1.0);
    let mut creation = flat(&customer(1));
    creation["eventType"] = "customer.created".into();
    creation["occurredAt"] = SystemClock.now().to_string().into();
    assert_eq!(edge.post_event(&creation).await.status(), 202);
    edge.applied("created", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_signed_deletion_evicts_and_deletes_nobody() {
    let edge = Edge::start().await;
    let mut deletion = flat(&customer(1));
    deletion["eventType"] = "customer.deleted".into();
    deletion["occurredAt"] = "2025-03-04T05:06:07Z".into();
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert_eq!(send(signed(&edge, &deletion)).await.status, 202);
    edge.applied("updated", 1.0).await;
    let answer = edge.look_up(&customer(1)).await;
    assert_eq!((answer.status, answer.is_hit()), (200, false), "it was evicted");
    assert_eq!(edge.metric(&doubts("old_deletion")).await, 1.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modification_in_the_far_future_leaves_later_fills_settled() {
    let edge = Edge::start().await;
    for (n, time) in ["9999-01-01T00:00:00Z", "2001-01-01T00:00:00Z", "2002-01-01T00:00:00Z"].into_iter().enumerate() {
        let mut event = flat(&customer(1));
        event["modifyDate"] = time.into();
        assert_eq!(edge.post_event(&event).await.status(), 202);
        edge.applied("updated", 1.0 + n as f64).await;
    }
    let answer = edge.look_up(&customer(1)).await;
    assert!(answer.cache_status.contains("stored") && !answer.cache_status.contains("unsettled"), "{answer:?}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_names_a_customer_in_a_readable_way_evicts() {
    let edge = Edge::start().await;
    let mut times = flat(&customer(1));
    times["modifyDate"] = "2025-03-04T05:06:07.0891234567Z".into();
    times["occurredAt"] = "9999-12-31T23:59:59.999Z".into();
    let mut unreadable = flat(&customer(2));
    unreadable["modifyDate"] = "soon".into();
    unreadable["eventId"] = "".into();
    let mut contact = eventbridge("", &customer(3));
    contact["detail"]["eventBody"]["mergedTo"] = 7.into();
    let marked = format!("\u{feff}{}", flat(&customer(4)));
    let bodies = [times.to_string(), unreadable.to_string(), contact.to_string(), marked];
    for n in 1..=4 {
        assert_eq!(edge.look_up(&customer(n)).await.status, 200);
    }
    for body in bodies {
        let answer = post(&edge, ROUTE, body.clone()).await;
        assert_eq!(answer.status, 202, "{body}: {}", answer.text);
    }
    crate::support::eventually("all four are applied", || async {
        let kinds = ["updated", "merged"];
        let mut sum = 0.0;
        for kind in kinds {
            let series = format!("profile_edge_consumer_events_total{{kind=\"{kind}\",outcome=\"applied\"}}");
            sum += edge.metric(&series).await;
        }
        (sum >= 4.0).then_some(())
    })
    .await;
    for n in 1..=4 {
        assert!(!edge.look_up(&customer(n)).await.is_hit(), "{n}");
    }
    assert_eq!(edge.metric(&doubts("unreadable_field")).await, 2.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_refused_and_stops_nothing() {
    let edge = Edge::start().await;
    let nested = format!(r#"{{"customerId":"a","x":{}{}}}"#, "[".repeat(400_000), "]".repeat(400_000));
    for body in [nested.clone(), nested.replace("customerId", "detail"), "[".repeat(900_000)] {
        assert_refused(&post(&edge, ROUTE, body).await, 400, "invalid_field");
    }
    let batch = format!("[{nested},{}]", flat(&customer(1)));
    let answer = post(&edge, ROUTE, batch).await.json();
    assert_eq!(
        (&answer["events"][0]["status"], &answer["events"][1]["status"]),
        (&"rejected".into(), &"queued".into())
    );
    edge.stop().await;
}
