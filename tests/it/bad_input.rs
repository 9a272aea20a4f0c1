//! Bad input at the lookup door: each a 4xx that names what is wrong, and nothing of what was sent.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, chunked, looked};
use crate::support::{PATIENCE, customer};

async fn post(edge: &Edge, body: impl Into<reqwest::Body>) -> LookupAnswer {
    let request = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    looked(request.header("Content-Type", "application/json").body(body).send().await.unwrap()).await
}

async fn query(edge: &Edge, query: &str) -> LookupAnswer {
    let request = edge.client.get(edge.url(&format!("/api/v1/profile?{query}"))).header("X-API-Key", "demo-key");
    looked(request.send().await.unwrap()).await
}

#[track_caller]
fn refused(answer: &LookupAnswer, status: u16, field: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["field"], field, "{}", answer.text);
}

/// Sends bytes, ends the sending side, and returns all that is answered.
async fn half_closed(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_valid_host() {
    let edge = Edge::start().await;
    let status = async |address, version: &str, hosts: &str| {
        let answer = half_closed(address, &format!("GET /livez {version}\r\n{hosts}Connection: close\r\n\r\n")).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for (version, hosts, expected) in [
        ("HTTP/1.1", "Host: edge.example:8080\r\n", "200"),
        ("HTTP/1.1", "Host: [::1]:8080\r\n", "200"),
        ("HTTP/1.1", "Host:\r\n", "200"),
        ("HTTP/1.0", "", "200"),
        ("HTTP/1.1", "", "400"),
        ("HTTP/1.1", "Host: a\r\nHost: a\r\n", "400"),
        ("HTTP/1.1", "Host: a\r\nHost: b\r\n", "400"),
        ("HTTP/1.0", "Host: a\r\nHost: b\r\n", "400"),
        ("HTTP/1.1", "Host: a b\r\n", "400"),
        ("HTTP/1.1", "Host: a/b\r\n", "400"),
    ] {
        assert_eq!(status(edge.admin, version, hosts).await, expected, "admin {version} {hosts:?}");
        let public = if expected == "200" { "404" } else { "400" };
        assert_eq!(status(edge.public, version, hosts).await, public, "public {version} {hosts:?}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_side_after_the_request_is_answered() {
    let edge = Edge::start_with("sandbox.latency = \"150ms\"\n").await;
    let head = "Host: x\r\nX-API-Key: demo-key\r\nConnection: close\r\n";
    // A miss: the answer comes long after the end of the client's side.
    let path = format!("/api/v1/profile?tenantId=10001&customerId={}", customer(1));
    let answer = half_closed(edge.public, &format!("GET {path} HTTP/1.1\r\n{head}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fwd=miss"), "{answer}");
    let body = json!({ "tenantId": "10001", "customerId": customer(2) }).to_string();
    let length = body.len();
    let post = format!("POST /api/v1/profile HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n{body}");
    let answer = half_closed(edge.public, &post).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fwd=miss"), "{answer}");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_name_the_field() {
    let edge = Edge::start().await;
    let one = customer(1);
    refused(&query(&edge, "").await, 400, "tenantId");
    refused(&query(&edge, "tenantId=10001").await, 400, "customerId");
    refused(&post(&edge, json!({ "tenantId": "10001", "customerId": 7 }).to_string()).await, 400, "customerId");
    refused(&post(&edge, json!({ "tenantId": ["10001"], "customerId": one }).to_string()).await, 400, "tenantId");
    let twice = format!("{{\"tenantId\":\"10001\",\"customerId\":\"{one}\",\"customerId\":\"x\"}}");
    refused(&post(&edge, twice).await, 400, "customerId");
    for array in [json!([one, "10001", null]), json!([])] {
        refused(&post(&edge, array.to_string()).await, 400, "body");
    }
    for body in [&b"{"[..], b"[]", b"nonsense", b"\"text\"", b"{\"tenantId\":\"\xff\"}"] {
        let answer = post(&edge, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_not_ids_name_the_field() {
    let edge = Edge::start().await;
    let long = "x".repeat(10_240);
    for id in ["a/b", "a\\b", "a\nb", "..", ".", "a?b", "a#b", "a%b", "", long.as_str()] {
        let body = json!({ "tenantId": "10001", "customerId": id });
        refused(&post(&edge, body.to_string()).await, 400, "customerId");
    }
    for id in ["a%2Fb", "a%0Ab", "%2e%2e", "a%25b"] {
        refused(&query(&edge, &format!("tenantId=10001&customerId={id}")).await, 400, "customerId");
    }
    refused(&query(&edge, "tenantId=10001&customerId=%ff").await, 400, "customerId");
    refused(&query(&edge, "tenantId=a%20b&customerId=x").await, 400, "tenantId");
    refused(&query(&edge, "tenantId=10001&customerId=x&customerId=y").await, 400, "customerId");
    refused(&query(&edge, "tenantId=10001&customerId=x&fields=a..b").await, 400, "fields");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn query_and_body_must_agree() {
    let edge = Edge::start().await;
    let body = json!({ "tenantId": "10001", "customerId": customer(2) });
    let ask = |query: String| {
        let request = edge.client.request(Method::GET, edge.url(&format!("/api/v1/profile?{query}")));
        request.header("X-API-Key", "demo-key").json(&body).send()
    };
    let disagree = looked(ask(format!("customerId={}", customer(1))).await.unwrap()).await;
    refused(&disagree, 400, "customerId");
    let agree = looked(ask(format!("customerId={}", customer(2))).await.unwrap()).await;
    assert_eq!(agree.status, 200);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_no_body_and_one_without_a_type_is_json() {
    let edge = Edge::start().await;
    let one = customer(1);
    let typed = edge.look_up_with(&one, |request| request.header("Content-Type", "application/json")).await;
    assert_eq!(typed.status, 200);
    let typed = edge.look_up_with(&one, |request| request.header("Content-Type", "text/plain")).await;
    assert_eq!(typed.status, 200);
    let body = json!({ "tenantId": "10001", "customerId": one }).to_string();
    let request = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    assert_eq!(request.body(body.clone()).send().await.unwrap().status(), 200);
    let request = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    let xml = request.header("Content-Type", "application/xml").body(body).send().await.unwrap();
    assert_eq!(xml.status(), 415);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_so_before_anything_is_looked_up() {
    let edge = Edge::start().await;
    let one = customer(1);
    let nobody = edge.client.get(edge.url("/api/v1/profile?customerId=..&tenantId=..")).send().await.unwrap();
    assert_eq!(nobody.status(), 401);
    assert!(nobody.headers().contains_key("www-authenticate"));
    let wrong = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-kez").send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    refused(&query(&edge, &format!("tenantId=10002&customerId={one}")).await, 403, "tenantId");
    assert_eq!(edge.calls().await, (0, 0));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_sees_only_the_fields_it_was_granted() {
    let settings = format!(
        r#"
        [[caller]]
        name = "narrow"
        key_sha256 = "{DEMO_KEY_SHA256}"
        tenants = ["10001"]
        fields = ["id", "workPhone.e164"]
        "#
    );
    let edge = Edge::start_with(&settings).await;
    let answer = edge.look_up(&customer(1)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let seen = answer.json();
    assert_eq!(seen.as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "workPhone"]);
    assert_eq!(seen["workPhone"].as_object().unwrap().keys().collect::<Vec<_>>(), ["e164"]);
    let within = edge.look_up_with(&customer(1), |request| request.query(&[("fields", "id")])).await;
    assert_eq!(within.json(), json!({ "id": customer(1) }));
    let beyond = edge.look_up_with(&customer(1), |request| request.query(&[("fields", "firstName")])).await;
    refused(&beyond, 403, "fields");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_two_mebibytes_is_too_large_with_and_without_a_length() {
    let edge = Edge::start().await;
    let large = vec![b' '; 2 << 20];
    let answer = post(&edge, large.clone()).await;
    assert_eq!((answer.status, &answer.json()["code"]), (413, &Value::from("body_too_large")));
    assert_eq!(post(&edge, chunked(&large)).await.status, 413);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_and_methods_are_problems_too() {
    let edge = Edge::start().await;
    let nowhere = looked(edge.client.get(edge.url("/nowhere")).send().await.unwrap()).await;
    assert_eq!((nowhere.status, &nowhere.json()["code"]), (404, &Value::from("no_such_route")));
    let method = looked(edge.client.delete(edge.url("/api/v1/profile")).send().await.unwrap()).await;
    assert_eq!((method.status, &method.json()["code"]), (405, &Value::from("method_not_allowed")));
    assert!(method.headers.contains_key("allow"));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_taken_or_made_and_correlation_ids_passed_through() {
    let edge = Edge::start().await;
    let given = edge
        .look_up_with(&customer(1), |request| {
            request.header("X-Request-Id", "req-1").header("ININ-Correlation-Id", "c-1")
        })
        .await;
    assert_eq!(given.headers["x-request-id"], "req-1");
    assert_eq!(given.headers["inin-correlation-id"], "c-1");
    // It is shown in the log and in the audit trail, so it cannot be free text or a phone number.
    let long = "a".repeat(129);
    for refused in ["a b<c>", "15550199871", "555-019-9871", "ada@example.com", &long] {
        let made = edge.look_up_with(&customer(1), |request| request.header("X-Request-Id", refused)).await;
        let id = made.headers["x-request-id"].to_str().unwrap();
        assert!(id != refused && uuid::Uuid::try_parse(id).is_ok(), "{refused}: {id}");
    }
    edge.stop().await;
}
