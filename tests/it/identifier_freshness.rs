//! Lookups by an identifier beside demands for a fresh answer, clears, batches, prefetches and sealing.

use ::redis::AsyncCommands;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::pairing::on_every_pairing;
use crate::support::command::run;
use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, Pairing, looked};
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// Nothing but what a test does ends what is cached.
const LASTING: &str =
    "[sandbox]\nlatency = \"0ms\"\n[lookup]\nidentifier_ttl = \"1h\"\nnegative_ttl = \"1h\"\nttl = \"1h\"\n";

/// Numbers that nobody has in the sandbox.
const NUMBER: &str = "+12025550171";
const OTHER_NUMBER: &str = "+12025550172";

/// The external source of the sandbox's contacts.
const CRM: &str = "5a4d0000-0000-4000-8000-0000000000e1";

on_every_pairing!(
    no_cache_by_a_number_fetches_anew_and_replaces_both_entries,
    no_cache_that_waits_for_another_lookup_by_the_number_is_fresh,
    a_hard_clear_ends_what_is_stored_of_numbers,
    a_soft_clear_refreshes_what_is_stored_of_numbers,
    a_batch_may_name_its_customers_by_identifiers,
);

async fn by_phone(edge: &Edge, phone: &str, cache_control: &str) -> LookupAnswer {
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    let request = request.query(&[("tenantId", "10001"), ("phone", phone)]).header("Cache-Control", cache_control);
    looked(request.send().await.unwrap()).await
}

/// Changes a contact at Genesys, which sends no event.
async fn patch(edge: &Edge, n: u32, change: Value) {
    let path = format!("/api/v2/externalcontacts/contacts/{}", customer(n));
    assert_eq!(edge.sandbox(Method::PATCH, &path).json(&change).send().await.unwrap().status(), 200);
}

/// Starts without events; customer 1 has the number, and is cached by it.
async fn with_a_cached_number(pairing: Pairing) -> Edge {
    let edge = Edge::start_on(pairing, LASTING).await;
    edge.behave(json!({ "events": false })).await;
    patch(&edge, 1, json!({ "workPhone": { "e164": NUMBER } })).await;
    assert_eq!(by_phone(&edge, NUMBER, "").await.json()["id"], json!(customer(1)));
    eventually("a hit", || async { by_phone(&edge, NUMBER, "").await.is_hit().then_some(()) }).await;
    edge
}

/// The other lookup asks who has the number, and leaves the customer's entry as it was.
async fn no_cache_that_waits_for_another_lookup_by_the_number_is_fresh(pairing: Pairing) {
    let edge = Edge::start_on(pairing, LASTING).await;
    edge.behave(json!({ "events": false })).await;
    patch(&edge, 1, json!({ "workPhone": { "e164": NUMBER } })).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    patch(&edge, 1, json!({ "firstName": "Augusta" })).await;
    edge.behave(json!({ "latency": "400ms" })).await;
    let before = edge.calls().await.0;
    let demanded = async {
        eventually("the other one asks", || async { (edge.calls().await.0 > before).then_some(()) }).await;
        by_phone(&edge, NUMBER, "no-cache").await
    };
    let (other, fresh) = tokio::join!(by_phone(&edge, NUMBER, ""), demanded);
    assert_eq!((other.status, fresh.status), (200, 200), "{} {}", other.text, fresh.text);
    assert_eq!(fresh.json()["firstName"], "Augusta", "{}", fresh.cache_status);
    edge.stop().await;
}

async fn no_cache_by_a_number_fetches_anew_and_replaces_both_entries(pairing: Pairing) {
    let edge = with_a_cached_number(pairing).await;
    patch(&edge, 1, json!({ "firstName": "Augusta" })).await;
    let kept = by_phone(&edge, NUMBER, "max-age=60").await;
    assert!(kept.is_hit() && kept.json()["firstName"] != "Augusta", "{}", kept.cache_status);
    let before = edge.calls().await.0;
    let fresh = by_phone(&edge, NUMBER, "no-cache").await;
    assert_eq!((fresh.status, fresh.cache_status.as_str()), (200, "profile-edge; fwd=request; stored"));
    assert_eq!(fresh.json()["firstName"], "Augusta");
    assert_eq!(edge.calls().await.0, before + 1, "one request fills both entries");
    for hit in [by_phone(&edge, NUMBER, "").await, edge.look_up(&customer(1)).await] {
        assert!(hit.is_hit() && hit.json()["firstName"] == "Augusta", "{}", hit.cache_status);
    }
    assert_eq!(by_phone(&edge, NUMBER, "max-age=0").await.cache_status, "profile-edge; fwd=request; stored");
    // A number that nobody has is asked for anew as well.
    assert_eq!(by_phone(&edge, OTHER_NUMBER, "").await.status, 404);
    patch(&edge, 2, json!({ "workPhone": { "e164": OTHER_NUMBER } })).await;
    assert_eq!(by_phone(&edge, OTHER_NUMBER, "max-age=60").await.status, 404);
    let found = by_phone(&edge, OTHER_NUMBER, "no-cache").await;
    assert_eq!((found.status, found.cache_status.as_str()), (200, "profile-edge; fwd=request; stored"));
    edge.stop().await;
}

async fn a_hard_clear_ends_what_is_stored_of_numbers(pairing: Pairing) {
    let edge = with_a_cached_number(pairing).await;
    assert_eq!(by_phone(&edge, OTHER_NUMBER, "").await.status, 404);
    patch(&edge, 1, json!({ "firstName": "Augusta" })).await;
    patch(&edge, 2, json!({ "workPhone": { "e164": OTHER_NUMBER } })).await;
    assert_eq!(by_phone(&edge, OTHER_NUMBER, "").await.status, 404);
    assert_eq!(run(&edge, &["clear", "--tenant", "10001", "--hard"]).await.code, Some(0));
    let missed = eventually("the clear is known", || async {
        Some(by_phone(&edge, NUMBER, "").await).filter(|answer| !answer.is_hit())
    })
    .await;
    assert_eq!((missed.status, &missed.json()["firstName"]), (200, &json!("Augusta")), "{}", missed.cache_status);
    let found = by_phone(&edge, OTHER_NUMBER, "").await;
    assert_eq!((found.status, &found.json()["id"]), (200, &json!(customer(2))), "{}", found.cache_status);
    for number in [NUMBER, OTHER_NUMBER] {
        eventually("a hit", || async { by_phone(&edge, number, "").await.is_hit().then_some(()) }).await;
    }
    edge.stop().await;
}

async fn a_soft_clear_refreshes_what_is_stored_of_numbers(pairing: Pairing) {
    let edge = with_a_cached_number(pairing).await;
    assert_eq!(by_phone(&edge, OTHER_NUMBER, "").await.status, 404);
    patch(&edge, 1, json!({ "firstName": "Augusta" })).await;
    patch(&edge, 2, json!({ "workPhone": { "e164": OTHER_NUMBER } })).await;
    assert_eq!(run(&edge, &["clear", "--tenant", "10001"]).await.code, Some(0));
    eventually("the profile is refreshed", || async {
        let answer = by_phone(&edge, NUMBER, "").await;
        assert!(answer.is_hit(), "{}", answer.cache_status);
        (answer.json()["firstName"] == "Augusta").then_some(())
    })
    .await;
    eventually("the number has an owner", || async {
        (by_phone(&edge, OTHER_NUMBER, "").await.status == 200).then_some(())
    })
    .await;
    edge.stop().await;
}

async fn post(edge: &Edge, path: &str, lookups: &Value) -> Response {
    let request = edge.client.post(edge.url(path)).header("X-API-Key", "demo-key");
    request.json(&json!({ "tenantId": "10001", "lookups": lookups })).send().await.unwrap()
}

async fn a_batch_may_name_its_customers_by_identifiers(pairing: Pairing) {
    let edge = with_a_cached_number(pairing).await;
    let three = edge.look_up(&customer(3)).await.json();
    let lookups = json!([
        { "customerId": customer(4) },
        { "phone": "(202) 555-0171" },
        { "email": three["workEmail"] },
        { "externalId": three["externalIds"][0]["value"], "externalSource": CRM },
        { "phone": "+12025550199" },
    ]);
    for is_second in [false, true] {
        let answer: Value = post(&edge, "/api/v1/profiles", &lookups).await.json().await.unwrap();
        let results = answer["results"].as_array().unwrap();
        let found: Vec<_> = results.iter().map(|result| (&result["status"], &result["profile"]["id"])).collect();
        let [one, three, four] = [1, 3, 4].map(|n| json!(customer(n)));
        let expected = [four, one, three.clone(), three].map(|id| (json!(200), id));
        assert_eq!(found[..4], expected.each_ref().map(|(status, id)| (status, id)), "{answer}");
        assert_eq!((found[4].0, &results[4]["code"]), (&json!(404), &json!("not_found")), "{answer}");
        assert_eq!(
            results[1]["profileKey"],
            edge.look_up(&customer(1)).await.headers["x-profile-key"].to_str().unwrap()
        );
        if is_second {
            let is_hit = |result: &Value| result["cacheStatus"].as_str().unwrap().starts_with("profile-edge; hit");
            assert!(results.iter().all(is_hit), "{answer}");
        }
    }
    for (lookup, field) in [
        (json!({ "phone": "sip:ada@example.com" }), "lookups[1].phone"),
        (json!({ "phone": NUMBER, "email": "a@example.com" }), "lookups[1].email"),
        (json!({ "externalId": "1" }), "lookups[1].externalSource"),
        (json!({}), "lookups[1].customerId"),
    ] {
        let refused = post(&edge, "/api/v1/profiles", &json!([{ "phone": NUMBER }, lookup])).await;
        let (status, problem) = (refused.status(), refused.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &problem["field"]), (400, &json!(field)), "{problem}");
    }
    let queued = post(&edge, "/api/v1/profiles/prefetch", &json!([{ "email": edge_email(&edge, 5).await }])).await;
    assert_eq!(queued.status(), 202);
    edge.wait_for_metric("profile_edge_prefetches_total{outcome=\"fetched\"}", 1.0).await;
    eventually("a hit", || async { edge.look_up(&customer(5)).await.is_hit().then_some(()) }).await;
    edge.stop().await;
}

/// Returns the address of a contact, as Genesys has it.
async fn edge_email(edge: &Edge, n: u32) -> Value {
    let path = format!("/api/v2/externalcontacts/contacts/{}", customer(n));
    let contact: Value = edge.sandbox(Method::GET, &path).send().await.unwrap().json().await.unwrap();
    contact["workEmail"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_needs_the_right_to_each_way_of_looking_up() {
    let settings = |lookup_by: &str| {
        format!(
            "keys.secret = \"cHJvZmlsZS1lZGdlIGRlbW8ga2V5OiBldmVyeWJvZHkga25vd3MgaXQ=\"\n\
             [[tenant]]\nid = \"10001\"\nupstream = {{ api_url = \"http://127.0.0.1:1\", \
             login_url = \"http://127.0.0.1:1\", client_id = \"a\", client_secret = \"b\" }}\n\
             [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n\
             lookup_by = [\"{lookup_by}\"]\n"
        )
    };
    let both = json!([{ "customerId": customer(1) }, { "phone": NUMBER }]);
    for (lookup_by, field) in [("customerId", "phone"), ("phone", "customerId")] {
        let edge = Edge::start_with(&settings(lookup_by)).await;
        for path in ["/api/v1/profiles", "/api/v1/profiles/prefetch"] {
            let refused = post(&edge, path, &both).await;
            let (status, problem) = (refused.status(), refused.json::<Value>().await.unwrap());
            assert_eq!((status.as_u16(), &problem["field"]), (403, &json!(field)), "{problem}");
        }
        let bulk = edge.client.post(edge.url("/api/v2/externalcontacts/bulk/contacts")).header("X-API-Key", "demo-key");
        let bulk = bulk.json(&json!({ "entities": [{ "id": customer(1) }] })).send().await.unwrap();
        assert_eq!(bulk.status() == 403, lookup_by == "phone", "{}", bulk.status());
        let records = edge.audit_records();
        edge.stop().await;
        let denied: Vec<Value> = records().into_iter().filter(|record| record["reason"] == "lookup_by").collect();
        let by_phone = denied.iter().filter(|record| record["by"] == "phone").count();
        assert_eq!((denied.len(), by_phone), if lookup_by == "phone" { (5, 2) } else { (4, 2) }, "{denied:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_pointer_is_used_at_its_own_number_only() {
    let deployment = Deployment::start(Setup::Single).await;
    let mut redis = deployment.servers[0].connect().await.unwrap();
    let sealing = "[store.sealing]\nactive = \"k1\"\n[store.sealing.keys]\nk1 = \"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"\n";
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}{sealing}", deployment.settings);
    let edge = Edge::start_with(&format!("{LASTING}{store}")).await;
    edge.behave(json!({ "events": false })).await;
    let mut keys = Vec::new();
    for (n, number) in [(1, NUMBER), (2, OTHER_NUMBER)] {
        patch(&edge, n, json!({ "workPhone": { "e164": number } })).await;
        assert_eq!(by_phone(&edge, number, "").await.json()["id"], json!(customer(n)));
        eventually("a hit", || async { by_phone(&edge, number, "").await.is_hit().then_some(()) }).await;
        let all: Vec<String> = redis.keys("cust:ident:*").await.unwrap();
        keys.extend(all.into_iter().find(|key| !keys.contains(key)));
    }
    let pointer: Vec<u8> = redis.get(&keys[0]).await.unwrap();
    let () = redis.pset_ex(&keys[1], pointer, 600_000).await.unwrap();
    let answer = by_phone(&edge, OTHER_NUMBER, "").await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(customer(2))), "{}", answer.cache_status);
    assert!(!answer.is_hit(), "{}", answer.cache_status);
    assert!(by_phone(&edge, NUMBER, "").await.is_hit());
    assert!(edge.metric("profile_edge_seal_failures_total").await >= 1.0);
    edge.stop().await;
}
