//! Many customers in one request: each has its own result, and what is missing costs one request to Genesys.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::pairing::on_every_pairing;
use crate::support::edge::{DEMO_KEY_SHA256, Edge, Pairing, with_sandbox_of};
use crate::support::{customer, eventually};

const FAST: &str = "[sandbox]\nlatency = \"0ms\"\n";
const BULK: &str = "/api/v2/externalcontacts/bulk/contacts";

on_every_pairing!(
    a_hundred_cold_customers_cost_one_request_to_genesys,
    each_customer_of_a_batch_has_its_own_result,
    an_event_during_a_bulk_fetch_voids_the_fill_of_its_customer_only,
);

async fn post(edge: &Edge, body: &Value) -> Response {
    let request = edge.client.post(edge.url("/api/v1/profiles")).header("X-API-Key", "demo-key");
    request.json(body).send().await.unwrap()
}

/// Looks customers up at once; returns their results.
async fn results(edge: &Edge, customers: &[String]) -> Vec<Value> {
    let response = post(edge, &json!({ "tenantId": "10001", "customerIds": customers })).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    let mut answer: Value = response.json().await.unwrap();
    answer["results"].as_array_mut().unwrap().drain(..).collect()
}

fn customers(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(customer).collect()
}

/// Returns the number of requests for profiles, and of bulk requests among them.
async fn calls(edge: &Edge) -> (u64, u64) {
    let calls: Value = edge.sandbox(Method::GET, "/sandbox/calls").send().await.unwrap().json().await.unwrap();
    (calls["total"].as_u64().unwrap(), calls["bulk"].as_u64().unwrap())
}

#[track_caller]
fn are_of(results: &[Value], customers: &[String], cache_status: &str) {
    assert_eq!(results.len(), customers.len());
    for (result, customer) in results.iter().zip(customers) {
        assert_eq!((&result["status"], &result["profile"]["id"]), (&json!(200), &json!(customer)), "{result}");
        assert!(result["cacheStatus"].as_str().unwrap().starts_with(cache_status), "{result}");
        assert!(result["age"].is_u64(), "{result}");
    }
}

async fn a_hundred_cold_customers_cost_one_request_to_genesys(pairing: Pairing) {
    let edge = Edge::start_on(pairing, FAST).await;
    let all = customers(1..=100);
    are_of(&results(&edge, &all).await, &all, "profile-edge; fwd=miss; stored");
    assert_eq!(calls(&edge).await, (1, 1));
    are_of(&results(&edge, &all).await, &all, "profile-edge; hit; ttl=");
    assert_eq!(calls(&edge).await, (1, 1));

    // One that is missing is fetched alone, and shares its entry with single lookups.
    let one_more = customers(2..=101);
    let answer = results(&edge, &one_more).await;
    are_of(&answer[..99], &one_more[..99], "profile-edge; hit");
    are_of(&answer[99..], &one_more[99..], "profile-edge; fwd=miss; stored");
    assert_eq!(calls(&edge).await, (2, 1));
    assert_eq!(edge.look_up(&one_more[99]).await.json(), answer[99]["profile"]);
    edge.stop().await;
}

async fn each_customer_of_a_batch_has_its_own_result(pairing: Pairing) {
    let edge = Edge::start_on(pairing, FAST).await;
    let (deleted, unknown) = (customer(3), "00000000-0000-4000-8000-ffffffffffff".to_owned());
    edge.look_up(&deleted).await;
    edge.delete(&deleted).await;
    edge.applied("deleted", 1.0).await;
    let merge = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merge = merge.json(&json!({ "contactIds": customers([4, 5]) })).send().await.unwrap();
    let canonical = merge.json::<Value>().await.unwrap()["id"].clone();
    edge.applied("merged", 3.0).await;

    let asked = [customer(1), deleted, unknown, customer(4), customer(5), "not-at-genesys".to_owned(), customer(1)];
    let answer = results(&edge, &asked).await;
    let seen: Vec<_> = answer.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(seen, [200, 410, 404, 200, 200, 404, 200], "{answer:?}");
    assert_eq!((&answer[0]["profile"], &answer[0]["profile"]["id"]), (&answer[6]["profile"], &json!(customer(1))));
    assert_eq!((&answer[1]["code"], &answer[2]["code"]), (&json!("deleted"), &json!("not_found")));
    assert_eq!(answer[1]["cacheStatus"], "profile-edge; hit; detail=tombstone");
    assert_eq!(answer[2]["cacheStatus"], "profile-edge; fwd=miss; stored; detail=negative");
    for merged in &answer[3..5] {
        assert_eq!(merged["profile"]["id"], canonical, "{merged}");
    }
    for (id, result) in asked.iter().zip(&answer) {
        let single = edge.look_up(id).await;
        assert_eq!(json!(single.status), result["status"]);
        assert_eq!(single.headers["x-profile-key"].to_str().unwrap(), result["profileKey"], "{result}");
        if single.status == 200 {
            assert_eq!(single.json(), result["profile"]);
        }
    }
    edge.stop().await;
}

async fn an_event_during_a_bulk_fetch_voids_the_fill_of_its_customer_only(pairing: Pairing) {
    let edge = Edge::start_on(pairing, FAST).await;
    edge.behave(json!({ "latency": "700ms" })).await;
    let all = customers(1..=20);
    let changed = async {
        eventually("the request is at Genesys", || async { (calls(&edge).await == (1, 1)).then_some(()) }).await;
        // Its event arrives long before the answers of the sandbox.
        let seven = customer(7);
        tokio::join!(edge.change(&seven, json!({ "firstName": "Augusta" })), edge.applied("updated", 1.0));
    };
    let (answer, ()) = tokio::join!(results(&edge, &all), changed);
    for (result, id) in answer.iter().zip(&all) {
        assert_eq!(result["status"], 200);
        let is_unsettled = result["cacheStatus"] == "profile-edge; fwd=miss; detail=unsettled";
        assert_eq!(is_unsettled, *id == customer(7), "{result}");
    }
    edge.behave(json!({ "latency": "0ms" })).await;
    let again = results(&edge, &all).await;
    for (result, id) in again.iter().zip(&all) {
        assert_eq!(result["cacheStatus"].as_str().unwrap().starts_with("profile-edge; hit"), *id != customer(7));
    }
    assert_eq!(again[6]["profile"]["firstName"], "Augusta");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_two_processes_fetch_each_customer_once() {
    let shared = Pairing::Redis.settings().await;
    // The limits are wide, since the test is not about the load of this machine.
    let wide = "lookup.deadline = \"20s\"\n";
    let one = Edge::start_with(&format!("{wide}{FAST}{shared}")).await;
    let other =
        Edge::start_with(&format!("{wide}sandbox.enabled = false\n{shared}{}", with_sandbox_of(one.sandbox_address())))
            .await;
    one.behave(json!({ "latency": "300ms" })).await;
    let batches = (0..20).map(|n| {
        let edge = if n % 2 == 0 { &one } else { &other };
        // They overlap: each has half of the customers of the next.
        let all = customers(10 * n + 1..=10 * n + 20);
        async move { are_of(&results(edge, &all).await, &all, "profile-edge; ") }
    });
    join_all(batches).await;
    let calls: Value = one.sandbox(Method::GET, "/sandbox/calls").send().await.unwrap().json().await.unwrap();
    let contacts = calls["contacts"].as_object().unwrap();
    assert_eq!(contacts.len(), 210);
    assert!(contacts.values().all(|count| *count == 1), "{contacts:?}");
    assert!(calls["total"].as_u64().unwrap() <= 20, "{calls}");
    for edge in [other, one] {
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_genesys_fails_only_the_customers_that_are_missing() {
    let edge = Edge::start_with(
        "lookup.deadline = \"400ms\"\nlookup.soft_timeout = \"100ms\"\n[sandbox]\nlatency = \"0ms\"\n",
    )
    .await;
    let known = customers(1..=3);
    results(&edge, &known).await;
    edge.behave(json!({ "latency": "5s" })).await;
    let started = tokio::time::Instant::now();
    let answer = results(&edge, &customers(1..=5)).await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    are_of(&answer[..3], &known, "profile-edge; hit");
    for missing in &answer[3..] {
        assert_eq!((&missing["status"], &missing["code"]), (&json!(503), &json!("deadline")), "{missing}");
        assert_eq!((&missing["retryAfter"], missing.get("profile")), (&json!(1), None));
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_bulk_answer_is_replaced_by_single_fetches() {
    let edge = Edge::start().await;
    edge.behave(json!({ "malformed": true })).await;
    for result in results(&edge, &customers(1..=3)).await {
        assert_eq!((&result["status"], &result["code"]), (&json!(502), &json!("upstream_unusable")), "{result}");
    }
    assert_eq!(calls(&edge).await, (4, 1));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_batch_is_refused_with_the_name_of_its_field() {
    let edge = Edge::start().await;
    let too_many = vec![customer(1); 101];
    for (body, field) in [
        (json!({ "tenantId": "10001", "customerIds": [] }), "customerIds"),
        (json!({ "tenantId": "10001", "customerIds": too_many }), "customerIds"),
        (json!({ "tenantId": "10001", "lookups": [] }), "lookups"),
        (json!({ "tenantId": "10001" }), "customerIds"),
        (json!({ "tenantId": "10001", "customerIds": ["a"], "lookups": [{ "customerId": "a" }] }), "lookups"),
        (json!({ "tenantId": "10001", "customerIds": ["a", 7] }), "customerIds[1]"),
        (json!({ "tenantId": "10001", "lookups": [{}] }), "lookups[0].customerId"),
        (json!({ "tenantId": "10001", "customerIds": ["a"], "fields": [] }), "fields"),
        (json!({ "tenantId": "10001", "customerIds": ["a"], "fields": ["id,firstName"] }), "fields"),
        (json!({ "tenantId": "10001", "customerIds": ["a"], "fields": ["id", 7] }), "fields[1]"),
        (json!({ "tenantId": "10001", "customerIds": null }), "customerIds"),
        (json!({ "tenantId": "a b", "customerIds": ["a"] }), "tenantId"),
        (json!({ "customerIds": ["a"] }), "tenantId"),
        (json!({ "tenantId": "10001", "customerIds": ["a"], "fields": ".." }), "fields"),
    ] {
        for path in ["/api/v1/profiles", "/api/v1/profiles/prefetch"] {
            let request = edge.client.post(edge.url(path)).header("X-API-Key", "demo-key").json(&body);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 400, "{body}");
            let problem: Value = response.json().await.unwrap();
            assert_eq!((&problem["code"], &problem["field"]), (&json!("invalid_field"), &json!(field)), "{body}");
        }
    }
    for (query, field) in [("fields=id", "fields"), ("a=b&tenantId=10001", "tenantId")] {
        let request = edge.client.post(edge.url(&format!("/api/v1/profiles?{query}"))).header("X-API-Key", "demo-key");
        let response = request.json(&json!({ "tenantId": "10001", "customerIds": ["a"] })).send().await.unwrap();
        let (status, problem) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &problem["field"]), (400, &json!(field)), "{problem}");
    }
    for fields in [json!("id,firstName"), json!(["id", "firstName"])] {
        let body = json!({ "tenantId": "10001", "customerIds": [customer(1)], "fields": fields });
        let answer: Value = post(&edge, &body).await.json().await.unwrap();
        assert_eq!(answer["results"][0]["profile"].as_object().unwrap().len(), 2, "{answer}");
        let one = json!({ "tenantId": "10001", "customerId": customer(1), "fields": fields });
        let single = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key").json(&one);
        assert_eq!(single.send().await.unwrap().json::<Value>().await.unwrap(), answer["results"][0]["profile"]);
    }
    let by_lookups = json!({ "tenantId": "10001", "lookups": [{ "customerId": customer(1) }], "fields": "id" });
    let answer: Value = post(&edge, &by_lookups).await.json().await.unwrap();
    assert_eq!(answer["results"][0]["profile"], json!({ "id": customer(1) }));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_value_in_a_batch_fails_alone() {
    let edge = Edge::start_with(FAST).await;
    let asked = ["a/b".to_owned(), customer(1), String::new(), customer(2), "x".repeat(257)];
    let answer = results(&edge, &asked).await;
    let seen: Vec<_> = answer.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(seen, [400, 200, 400, 200, 400], "{answer:?}");
    for (id, result) in asked.iter().zip(&answer).filter(|(_, result)| result["status"] == 400) {
        let single = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
        let single = single.query(&[("tenantId", "10001"), ("customerId", id)]).send().await.unwrap();
        let problem: Value = single.json().await.unwrap();
        for member in ["status", "code", "detail", "field"] {
            assert_eq!(result[member], problem[member], "{result}");
        }
    }
    let lookups = json!([{ "phone": "sip:ada@example.com" }, { "customerId": customer(1) }, { "email": "no" }]);
    let answer: Value = post(&edge, &json!({ "tenantId": "10001", "lookups": lookups })).await.json().await.unwrap();
    let fields: Vec<_> = answer["results"].as_array().unwrap().iter().map(|result| result["field"].clone()).collect();
    assert_eq!(fields, [json!("phone"), Value::Null, json!("email")], "{answer}");
    let none = results(&edge, &["a/b".to_owned()]).await;
    assert_eq!((none.len(), &none[0]["status"]), (1, &json!(400)));
    let prefetch = edge.client.post(edge.url("/api/v1/profiles/prefetch")).header("X-API-Key", "demo-key");
    let prefetch = prefetch.json(&json!({ "tenantId": "10001", "customerIds": asked })).send().await.unwrap();
    let (status, problem) = (prefetch.status(), prefetch.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &problem["field"]), (400, &json!("customerIds[0]")), "{problem}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_customer_counts_against_the_rate_and_leaves_a_record() {
    let edge = Edge::start().await;
    let narrow = Edge::start_with(&format!(
        "sandbox.enabled = false\naudit.lookups = \"all\"\n{}requests_per_second = 30\n",
        with_sandbox_of(edge.sandbox_address()).replace("fields = [\"*\"]", "fields = [\"id\", \"firstName\"]")
    ))
    .await;
    let answer = results(&narrow, &customers(1..=20)).await;
    assert!(answer.iter().all(|result| result["profile"].as_object().unwrap().len() == 2), "{answer:?}");
    let refused = post(&narrow, &json!({ "tenantId": "10001", "customerIds": customers(1..=20) })).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (429, true));
    // A batch that is larger than the rate can never be answered.
    let too_large = post(&narrow, &json!({ "tenantId": "10001", "customerIds": customers(1..=31) })).await;
    assert_eq!((too_large.status().as_u16(), too_large.headers().contains_key("retry-after")), (429, false));
    let detail = too_large.json::<Value>().await.unwrap()["detail"].clone();
    assert!(detail.as_str().unwrap().contains("at most 30 at once"), "{detail}");
    let denied = async |body: Value| {
        eventually("the rate allows it", || async {
            let response = post(&narrow, &body).await;
            (response.status() != 429).then_some(response)
        })
        .await
    };
    let fields = denied(json!({ "tenantId": "10001", "customerIds": customers(1..=2), "fields": "workEmail" })).await;
    assert_eq!(
        (fields.status().as_u16(), fields.json::<Value>().await.unwrap()["field"].clone()),
        (403, json!("fields"))
    );
    let tenant = denied(json!({ "tenantId": "other", "customerIds": customers(1..=3) })).await;
    assert_eq!(
        (tenant.status().as_u16(), tenant.json::<Value>().await.unwrap()["field"].clone()),
        (403, json!("tenantId"))
    );
    let records = narrow.audit_records();
    narrow.stop().await;
    let records: Vec<Value> = records();
    let count = |decision: &str, detail: (&str, &str)| {
        let is_such = |record: &&Value| {
            record["type"] == "lookup" && record["decision"] == decision && record[detail.0] == detail.1
        };
        records.iter().filter(is_such).count()
    };
    assert_eq!(count("allowed", ("result", "miss")), 20, "{records:?}");
    assert_eq!((count("denied", ("reason", "fields")), count("denied", ("reason", "tenant"))), (2, 3), "{records:?}");
    // Refusals over the rate share a record, with their number.
    let over_rate = records.iter().filter(|record| record["reason"] == "rate");
    let refused: u64 = over_rate.map(|record| record["count"].as_u64().unwrap_or(1)).sum();
    assert!(refused >= 2, "{records:?}");
    let keys: std::collections::HashSet<_> =
        records.iter().filter(|record| record["result"] == "miss").map(|record| record["key"].to_string()).collect();
    assert_eq!(keys.len(), 20);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bulk_route_answers_as_genesys_does() {
    let edge = Edge::start().await;
    let (one, unknown) = (customer(1), "00000000-0000-4000-8000-ffffffffffff");
    let body = json!({ "entities": [{ "id": one }, { "id": unknown }, { "id": customer(2) }] });
    let ask = async |url: String, key: &str| edge.client.post(url).bearer_auth(key).json(&body).send().await.unwrap();
    let ours: Value = ask(edge.url(BULK), "demo-key").await.json().await.unwrap();
    let theirs = format!("http://{}{BULK}", edge.sandbox_address());
    let theirs: Value = ask(theirs, "sandbox-editor").await.json().await.unwrap();
    let by_id = |answer: &Value, id: &str| {
        answer["results"].as_array().unwrap().iter().find(|result| result["id"] == id).cloned().unwrap()
    };
    for id in [&one, unknown, &customer(2)] {
        let (ours, theirs) = (by_id(&ours, id), by_id(&theirs, id));
        assert_eq!(
            (&ours["status"], &ours["success"], &ours["entity"]),
            (&theirs["status"], &theirs["success"], &theirs["entity"])
        );
        assert_eq!(
            (&ours["error"]["code"], &ours["error"]["status"]),
            (&theirs["error"]["code"], &theirs["error"]["status"])
        );
    }
    assert_eq!((&ours["errorCount"], &ours["errorIndexes"]), (&json!(1), &json!([1])));
    assert!(edge.look_up(&one).await.is_hit());
    for (body, status, code) in [
        (json!({ "entities": [] }), 400, "bad.request"),
        (json!({ "entities": [{ "id": "nonsense" }] }), 400, "bad.request"),
        (json!({ "ids": [] }), 400, "bad.request"),
    ] {
        let response = edge.client.post(edge.url(BULK)).bearer_auth("demo-key").json(&body).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.json::<Value>().await.unwrap()["code"]),
            (status, &json!(code))
        );
    }
    assert_eq!(edge.client.get(edge.url(BULK)).bearer_auth("demo-key").send().await.unwrap().status(), 405);
    let narrow = with_sandbox_of(edge.sandbox_address()).replace("fields = [\"*\"]", "fields = [\"id\"]");
    assert!(narrow.contains(DEMO_KEY_SHA256));
    let narrow = Edge::start_with(&format!("sandbox.enabled = false\n{narrow}")).await;
    let refused = ask(narrow.url(BULK), "demo-key").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.json::<Value>().await.unwrap()["code"]),
        (403, &json!("not.authorized"))
    );
    narrow.stop().await;
    edge.stop().await;
}
