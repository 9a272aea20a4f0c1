//! Customers are fetched before they are looked up, on request and by the events of conversations.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::pairing::on_every_pairing;
use crate::support::edge::{Edge, LookupAnswer, Pairing, looked, with_sandbox_of};
use crate::support::{customer, eventually};

const FETCHED: &str = "profile_edge_prefetches_total{outcome=\"fetched\"}";
const PRESENT: &str = "profile_edge_prefetches_total{outcome=\"present\"}";

on_every_pairing!(
    a_prefetched_customer_is_a_hit_when_it_is_looked_up,
    the_start_of_a_conversation_fetches_its_customer_ahead,
    a_call_of_an_unknown_contact_fetches_its_customer_by_the_number,
    a_number_that_is_prefetched_is_a_hit_when_it_is_looked_up,
);

async fn prefetch(edge: &Edge, customers: impl IntoIterator<Item = u32>) -> Response {
    let customers: Vec<_> = customers.into_iter().map(customer).collect();
    let request = edge.client.post(edge.url("/api/v1/profiles/prefetch")).header("X-API-Key", "demo-key");
    request.json(&json!({ "tenantId": "10001", "customerIds": customers })).send().await.unwrap()
}

async fn a_prefetched_customer_is_a_hit_when_it_is_looked_up(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    edge.look_up(&customer(1)).await;
    let answer = prefetch(&edge, 1..=50).await;
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "status": "queued", "queued": 50 }));
    edge.wait_for_metric(FETCHED, 49.0).await;
    edge.wait_for_metric(PRESENT, 1.0).await;
    assert_eq!(edge.calls().await.0, 2);
    for n in 1..=50 {
        assert!(edge.look_up(&customer(n)).await.is_hit());
    }
    // Only the lookups of callers are counted as such.
    assert_eq!(edge.metric("profile_edge_lookup_requests_total{result=\"miss\"}").await, 1.0);
    edge.stop().await;
}

/// Returns an event of a conversation, as EventBridge sends it.
fn conversation(topic: &str, body: Value) -> Value {
    json!({ "id": "e", "detail-type": "v2.detail.events.conversation.{id}.customer.start", "detail": {
        "topicName": format!("v2.detail.events.conversation.c0ffee00-0000-4000-8000-000000000001.{topic}"),
        "eventBody": body,
    } })
}

/// A number that nobody has in the sandbox.
const NUMBER: &str = "+12025550171";

/// Gives a contact the number at Genesys, without an event.
async fn give_number(edge: &Edge, id: &str) {
    edge.behave(json!({ "events": false })).await;
    let path = format!("/api/v2/externalcontacts/contacts/{id}");
    let patch = json!({ "workPhone": { "e164": NUMBER } });
    assert_eq!(edge.sandbox(Method::PATCH, &path).json(&patch).send().await.unwrap().status(), 200);
}

async fn by_number(edge: &Edge) -> LookupAnswer {
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    looked(request.query(&[("tenantId", "10001"), ("phone", NUMBER)]).send().await.unwrap()).await
}

/// Waits until the prefetch by a number has filled the entry of the number and that of its customer, with this many requests.
async fn number_is_fetched(edge: &Edge, calls: u64) {
    edge.wait_for_metric(FETCHED, 1.0).await;
    eventually("both requests", || async { (edge.calls().await.0 == calls).then_some(()) }).await;
    // The second request may still be under way: a lookup waits for it.
    assert_eq!(by_number(edge).await.status, 200);
    let answer = by_number(edge).await;
    assert!(answer.is_hit(), "{}", answer.cache_status);
    assert_eq!(answer.json()["id"], json!(customer(1)));
    assert!(edge.look_up(&customer(1)).await.is_hit());
    assert_eq!(edge.calls().await.0, calls);
}

async fn a_call_of_an_unknown_contact_fetches_its_customer_by_the_number(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    give_number(&edge, &customer(1)).await;
    let before = edge.calls().await.0;
    let event = conversation("customer.start", json!({ "externalContactId": null, "ani": "tel:+1-202-555-0171" }));
    let answer: Value = edge.post_event(&event).await.json().await.unwrap();
    assert!(answer["reason"].as_str().unwrap().contains("ahead of time"), "{answer}");
    number_is_fetched(&edge, before + 2).await;
    // What is no phone number fetches nothing.
    for ani in [json!("sip:ada@example.com"), json!("anonymous"), json!(7), json!("2025550171")] {
        let event = conversation("customer.start", json!({ "ani": ani }));
        let answer: Value = edge.post_event(&event).await.json().await.unwrap();
        assert!(answer["reason"].as_str().unwrap().contains("no phone number"), "{answer}");
    }
    assert_eq!(edge.calls().await.0, before + 2);
    edge.stop().await;
}

async fn a_number_that_is_prefetched_is_a_hit_when_it_is_looked_up(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    give_number(&edge, &customer(1)).await;
    let before = edge.calls().await.0;
    let request = edge.client.post(edge.url("/api/v1/profiles/prefetch")).header("X-API-Key", "demo-key");
    let body = json!({ "tenantId": "10001", "lookups": [{ "phone": NUMBER }] });
    assert_eq!(request.json(&body).send().await.unwrap().status(), 202);
    number_is_fetched(&edge, before + 2).await;
    edge.stop().await;
}

async fn the_start_of_a_conversation_fetches_its_customer_ahead(pairing: Pairing) {
    let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
    for (n, event) in [
        (
            1,
            conversation(
                "customer.start",
                json!({ "eventTime": 1_750_000_000_000_u64, "externalContactId": customer(1) }),
            ),
        ),
        (
            2,
            conversation(
                "acd.start",
                json!({ "conversationExternalContactIds": [customer(2)], "ani": "tel:+13175550125" }),
            ),
        ),
        (3, conversation("customer.start", json!({ "externalContactId": customer(3) }))["detail"].clone()),
    ] {
        let answer = edge.post_event(&event).await;
        assert_eq!(answer.status(), 202);
        assert_eq!(answer.json::<Value>().await.unwrap()["status"], "ignored");
        edge.wait_for_metric(FETCHED, f64::from(n)).await;
        assert!(edge.look_up(&customer(n)).await.is_hit());
    }
    // In an array with a change, each for itself.
    let change = json!({ "tenantId": "10001", "customerId": customer(1), "modifyDate": "2020-01-01T00:00:00.000Z" });
    let both = json!([change, conversation("customer.start", json!({ "externalContactId": customer(4) }))]);
    let answer: Value = edge.post_event(&both).await.json().await.unwrap();
    assert_eq!((&answer["events"][0]["status"], &answer["events"][1]["status"]), (&json!("queued"), &json!("ignored")));
    edge.applied("updated", 1.0).await;
    edge.wait_for_metric(FETCHED, 4.0).await;
    // No customer, one that cannot be read, and other topics of conversations: nothing is fetched, nothing is refused.
    for event in [
        conversation("customer.start", json!({})),
        conversation("customer.start", json!({ "externalContactId": "a/b" })),
        conversation("customer.start", json!(7)),
        conversation("customer.end", json!({ "externalContactId": customer(9) })),
    ] {
        let answer = edge.post_event(&event).await;
        assert_eq!(
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["status"].clone()),
            (202, json!("ignored"))
        );
    }
    assert_eq!(edge.calls().await.0, 4);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prewarming_is_off_unless_the_tenant_enables_it() {
    let edge = Edge::start().await;
    let settings = with_sandbox_of(edge.sandbox_address());
    let webhook = "[[tenant.webhook]]\nscheme = \"api-key\"\nsecrets = [\"demo-secret\"]\n[[caller]]";
    let other =
        Edge::start_with(&format!("sandbox.enabled = false\n{}", settings.replacen("[[caller]]", webhook, 1))).await;
    let event = json!({ "topicName": "v2.detail.events.conversation.c.customer.start",
        "eventBody": { "externalContactId": customer(1) } });
    let answer: Value = other.post_event(&event).await.json().await.unwrap();
    assert_eq!(answer["status"], "ignored");
    assert!(answer["reason"].as_str().unwrap().contains("prewarm is not enabled"), "{answer}");
    assert!(!other.look_up(&customer(1)).await.is_hit());
    other.stop().await;
    // Where no caller may look up by phone, a number fetches nothing.
    let settings =
        settings.replacen("[[caller]]", webhook, 1).replacen("upstream = {", "prewarm = true\nupstream = {", 1);
    let other = Edge::start_with(&format!("sandbox.enabled = false\n{settings}")).await;
    let before = edge.calls().await.0;
    let answer: Value =
        other.post_event(&conversation("acd.start", json!({ "ani": NUMBER }))).await.json().await.unwrap();
    assert!(answer["reason"].as_str().unwrap().contains("no caller may by phone"), "{answer}");
    let event = conversation("acd.start", json!({ "externalContactId": customer(2), "ani": NUMBER }));
    other.post_event(&event).await;
    other.wait_for_metric(FETCHED, 1.0).await;
    assert!(other.look_up(&customer(2)).await.is_hit());
    assert_eq!(edge.calls().await.0, before + 1);
    other.stop().await;
    edge.stop().await;
}

/// With a budget of 40 a minute, prefetching may spend only what is above the reserve of lookups.
#[tokio::test(flavor = "multi_thread")]
async fn prefetching_leaves_budget_to_lookups() {
    let edge = Edge::start().await;
    let settings = with_sandbox_of(edge.sandbox_address())
        .replacen("client_secret = \"sandbox\"", "client_secret = \"sandbox\", requests_per_minute = 40", 1)
        // Another path than Genesys' own: each customer is a request.
        .replacen(
            "upstream = {",
            "upstream = { profile_path = \"/api/v2/externalcontacts/contacts/{customer_id}?x=1\",",
            1,
        );
    let narrow = Edge::start_with(&format!("sandbox.enabled = false\n{settings}")).await;
    assert_eq!(prefetch(&narrow, 1..=100).await.status(), 202);
    narrow.wait_for_metric(FETCHED, 20.0).await;
    for n in 101..=105 {
        assert_eq!(narrow.look_up(&customer(n)).await.status, 200);
    }
    assert!(narrow.metric(FETCHED).await <= 40.0);
    // Those that wait for budget do not hold up the drain.
    narrow.stop().await;
    edge.stop().await;
}

/// A service with a budget of 40 a minute, of which each customer costs one, and two callers; the key of the second is `other-key`.
async fn narrow(sandbox: &Edge) -> Edge {
    let other = hex::encode(Sha256::digest("other-key"));
    let caller = "lookup_by = [\"customerId\", \"phone\"]\n";
    let settings = with_sandbox_of(sandbox.sandbox_address())
        .replacen("client_secret = \"sandbox\"", "client_secret = \"sandbox\", requests_per_minute = 40", 1)
        .replacen(
            "upstream = {",
            "prewarm = true\nupstream = { profile_path = \"/api/v2/externalcontacts/contacts/{customer_id}?x=1\",",
            1,
        )
        .replacen("[[caller]]", "[[tenant.webhook]]\nscheme = \"api-key\"\nsecrets = [\"demo-secret\"]\n[[caller]]", 1);
    Edge::start_with(&format!(
        "sandbox.enabled = false\nkeys.secret = \"cHJvZmlsZS1lZGdlIGRlbW8ga2V5OiBldmVyeWJvZHkga25vd3MgaXQ=\"\n\
         {settings}{caller}[[caller]]\nname = \"other\"\nkey_sha256 = \"{other}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n{caller}"
    ))
    .await
}

/// Asks for lookups to be fetched ahead; returns how many are queued.
async fn ahead(edge: &Edge, key: &str, lookups: &[Value]) -> u64 {
    let request = edge.client.post(edge.url("/api/v1/profiles/prefetch")).header("X-API-Key", key);
    let answer = request.json(&json!({ "tenantId": "10001", "lookups": lookups })).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    answer.json::<Value>().await.unwrap()["queued"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetches_of_random_numbers_are_bounded_for_each_caller() {
    let sandbox = Edge::start().await;
    let edge = narrow(&sandbox).await;
    let numbers: Vec<_> = (0..100).map(|n| json!({ "phone": format!("+120255501{n:02}") })).collect();
    assert_eq!(ahead(&edge, "demo-key", &numbers).await, 100);
    let absent = "profile_edge_upstream_requests_total{outcome=\"absent\"}";
    edge.wait_for_metric(absent, 10.0).await;
    // Another caller is not held up by it.
    assert_eq!(ahead(&edge, "other-key", &[json!({ "customerId": customer(1) })]).await, 1);
    eventually("the other's customer", || async {
        (edge.metric("profile_edge_upstream_requests_total{outcome=\"found\"}").await >= 1.0).then_some(())
    })
    .await;
    // A quarter of the budget, and what a few seconds add to it.
    assert!(edge.metric(absent).await <= 15.0, "{}", edge.metric(absent).await);
    edge.stop().await;
    sandbox.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetches_of_a_caller_do_not_displace_those_of_conversations() {
    let sandbox = Edge::start().await;
    let edge = narrow(&sandbox).await;
    let mut queued = 0;
    for batch in 0..120 {
        let lookups: Vec<_> = (0..100).map(|n| json!({ "customerId": customer(1_000 + 100 * batch + n) })).collect();
        queued += ahead(&edge, "demo-key", &lookups).await;
    }
    // It never has the whole queue, and conversations have one of their own.
    assert!((100..10_000).contains(&queued), "{queued}");
    assert_eq!(ahead(&edge, "other-key", &[json!({ "customerId": customer(2) })]).await, 1);
    edge.wait_for_metric(FETCHED, 20.0).await;
    let event = conversation("customer.start", json!({ "externalContactId": customer(1) }));
    assert_eq!(edge.post_event(&event).await.status(), 202);
    let contacts = async || {
        let calls: Value = sandbox.sandbox(Method::GET, "/sandbox/calls").send().await.unwrap().json().await.unwrap();
        calls["contacts"].clone()
    };
    eventually("the customer of the conversation", || async { contacts().await.get(customer(1)).map(drop) }).await;
    edge.stop().await;
    sandbox.stop().await;
}
