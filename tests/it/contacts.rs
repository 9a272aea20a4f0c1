//! The contact route answers SDKs exactly as Genesys does.

use profile_edge::faults::Fault;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::customer;
use crate::support::edge::{Edge, LookupAnswer, looked};

const CONTACTS: &str = "/api/v2/externalcontacts/contacts";

async fn contact(edge: &Edge, id: &str, adapt: impl FnOnce(RequestBuilder) -> RequestBuilder) -> LookupAnswer {
    let request = edge.client.get(edge.url(&format!("{CONTACTS}/{id}"))).bearer_auth("demo-key");
    // SDKs send this header also without a body.
    looked(adapt(request.header("Content-Type", "application/json")).send().await.unwrap()).await
}

async fn plain(edge: &Edge, id: &str) -> LookupAnswer {
    contact(edge, id, |request| request).await
}

#[track_caller]
fn refused(answer: &LookupAnswer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &Value::from(code)), "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(!answer.headers.contains_key("retry-after"));
    let body = answer.json();
    assert_eq!(body["status"], status);
    assert_eq!(body["contextId"], answer.headers["inin-correlation-id"].to_str().unwrap());
    assert_eq!(body["messageParams"], json!({}));
    assert_eq!((&body["details"], &body["errors"]), (&json!([]), &json!([])));
    assert!(!body["message"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contact_route_returns_the_genesys_body_byte_for_byte() {
    let edge = Edge::start().await;
    let one = customer(1);
    let original = edge.sandbox(Method::GET, &format!("{CONTACTS}/{one}")).send().await.unwrap().text().await.unwrap();
    for status in ["profile-edge; fwd=miss; stored", "profile-edge; hit"] {
        let answer = contact(&edge, &one, |request| {
            request.header("If-None-Match", "*").header("Range", "bytes=0-9").header("ININ-Correlation-Id", "c-1")
        });
        let answer = answer.await;
        assert_eq!((answer.status, answer.text.as_str()), (200, original.as_str()));
        assert!(answer.cache_status.starts_with(status), "{}", answer.cache_status);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["inin-correlation-id"], "c-1");
        assert!(!answer.headers.contains_key("etag"));
    }
    let upper = plain(&edge, &one.to_uppercase()).await;
    assert_eq!((upper.status, upper.text.as_str()), (200, original.as_str()));
    // Both routes share one cache entry.
    assert!(edge.look_up(&one).await.is_hit());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contact_route_reports_failures_in_the_genesys_format() {
    let edge = Edge::start().await;
    let one = customer(1);
    refused(&plain(&edge, "00000000-0000-4000-8000-00000000ffff").await, 404, "not.found");
    for id in ["nonsense", "a%20b/c", "%ff", "00000000000040008000000000000001", "..%2f.."] {
        refused(&plain(&edge, id).await, 400, "bad.request");
    }
    refused(&plain(&edge, &format!("{one}/notes")).await, 404, "not.found");
    refused(&contact(&edge, &one, |request| request.query(&[("expand", "a.b")])).await, 400, "bad.request");
    let nowhere = edge.client.get(edge.url("/api/v2/users/me")).bearer_auth("demo-key").send().await.unwrap();
    refused(&looked(nowhere).await, 404, "not.found");
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let request = edge.client.request(method.clone(), edge.url(&format!("{CONTACTS}/{one}")));
        let answer = looked(request.bearer_auth("demo-key").send().await.unwrap()).await;
        refused(&answer, 405, "method.not.allowed");
        assert_eq!(answer.headers["allow"], "GET");
    }
    let head = edge.client.head(edge.url(&format!("{CONTACTS}/{one}"))).bearer_auth("demo-key").send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["allow"]), (405, &"GET".parse().unwrap()));
    let nobody = edge.client.get(edge.url(&format!("{CONTACTS}/{one}"))).send().await.unwrap();
    refused(&looked(nobody).await, 401, "authentication.required");
    let stranger = edge.client.get(edge.url(&format!("{CONTACTS}/{one}"))).bearer_auth("wrong").send().await.unwrap();
    refused(&looked(stranger).await, 401, "bad.credentials");
    let elsewhere = contact(&edge, &one, |request| request.header("X-Tenant-Id", "10002")).await;
    refused(&elsewhere, 403, "not.authorized");
    assert_eq!(edge.calls().await.0, 1, "only the unknown customer may be fetched");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_contact_is_404_also_with_expand() {
    let edge = Edge::start().await;
    let three = customer(3);
    assert_eq!(plain(&edge, &three).await.status, 200);
    edge.delete(&three).await;
    edge.applied("deleted", 1.0).await;
    let before = edge.calls().await.0;
    let gone = plain(&edge, &three).await;
    refused(&gone, 404, "not.found");
    assert_eq!(gone.cache_status, "profile-edge; hit; detail=tombstone");
    let expanded = contact(&edge, &three, |request| request.query(&[("expand", "identifiers")])).await;
    refused(&expanded, 404, "not.found");
    assert_eq!(expanded.cache_status, "profile-edge; hit; detail=tombstone");
    assert_eq!(edge.calls().await.0, before);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expanded_contacts_are_fetched_each_time_and_never_cached() {
    let edge = Edge::start().await;
    let two = customer(2);
    for (calls, query) in ["expand=identifiers,division", "expand=identifiers%2Cdivision"].into_iter().enumerate() {
        let request = edge.client.get(edge.url(&format!("{CONTACTS}/{two}?{query}"))).bearer_auth("demo-key");
        let answer = looked(request.send().await.unwrap()).await;
        assert_eq!((answer.status, answer.cache_status.as_str()), (200, "profile-edge; fwd=bypass"));
        assert_eq!(edge.calls().await.0, calls as u64 + 1);
    }
    assert_eq!(plain(&edge, &two).await.cache_status, "profile-edge; fwd=miss; stored");
    edge.behave(json!({ "fail_ratio": 1.0 })).await;
    assert!(plain(&edge, &two).await.is_hit());
    let failed = contact(&edge, &two, |request| request.query(&[("expand", "identifiers")])).await;
    refused(&failed, 503, "service.unavailable");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_genesys_rate_limit_sends_retry_after() {
    let edge = Edge::start().await;
    edge.behave(json!({ "fail_ratio": 1.0, "fail_status": 500 })).await;
    refused(&plain(&edge, &customer(1)).await, 503, "service.unavailable");
    edge.behave(json!({ "fail_ratio": 0.0, "malformed": true })).await;
    refused(&plain(&edge, &customer(1)).await, 502, "bad.gateway");
    edge.behave(json!({ "malformed": false, "fail_ratio": 1.0, "fail_status": 429, "retry_after": 42 })).await;
    let limited = plain(&edge, &customer(1)).await;
    assert_eq!((limited.status, &limited.headers["retry-after"]), (429, &"42".parse().unwrap()));
    let body = limited.json();
    assert_eq!(body["code"], "too.many.requests.retry.after");
    assert_eq!(body["message"], "Rate limit exceeded the maximum. Retry the request in [42] seconds");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shed_request_is_refused_without_making_an_sdk_retry() {
    let edge = Edge::start_with("http.max_in_flight = 1\n[sandbox]\nlatency = \"0ms\"\n").await;
    edge.faults.arm(Fault::PauseBeforeFill);
    let one = customer(1);
    let (first, ()) = tokio::join!(plain(&edge, &one), async {
        edge.faults.reached(Fault::PauseBeforeFill, 1).await;
        refused(&plain(&edge, &customer(2)).await, 503, "service.unavailable");
        edge.faults.disarm(Fault::PauseBeforeFill);
    });
    assert_eq!(first.status, 200, "{}", first.text);
    edge.stop().await;
}
