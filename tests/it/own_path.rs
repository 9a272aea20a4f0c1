//! A tenant whose profiles have another path than those of Genesys, as a gateway before Genesys may have: its bodies differ.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use profile_edge::shutdown::{Controller, Shutdown};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::pairing::on_every_pairing;
use crate::support::edge::{Edge, LookupAnswer, Pairing, looked, with_sandbox_of};
use crate::support::{PATIENCE, customer, eventually};

/// Numbers that nobody has in the sandbox.
const NUMBER: &str = "+12025550171";

on_every_pairing!(a_lookup_by_a_number_has_the_body_of_the_tenants_own_path,);

/// Passes requests on to the sandbox, and has profiles of its own at `/own/{id}`.
#[derive(Clone)]
struct Gateway {
    sandbox: SocketAddr,
    client: reqwest::Client,
}

impl Gateway {
    async fn start(edge: &Edge) -> (SocketAddr, Controller) {
        let gateway = Self { sandbox: edge.sandbox_address(), client: edge.client.clone() };
        let routes = Router::new().route("/own/{id}", get(own)).fallback(pass_on).with_state(gateway);
        let (controller, shutdown) = Shutdown::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            axum::serve(listener, routes).with_graceful_shutdown(async move { stop.requested().await }).await.unwrap();
        });
        (address, controller)
    }

    async fn send(&self, method: Method, path: &str, headers: &HeaderMap, body: Bytes) -> (StatusCode, Bytes) {
        let mut request = self.client.request(method, format!("http://{}{path}", self.sandbox)).body(body);
        for name in ["authorization", "content-type"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap())
    }
}

async fn own(State(gateway): State<Gateway>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let path = format!("/api/v2/externalcontacts/contacts/{id}");
    let (status, body) = gateway.send(Method::GET, &path, &headers, Bytes::new()).await;
    if status != StatusCode::OK {
        return (status, body).into_response();
    }
    let whole: Value = serde_json::from_slice(&body).unwrap();
    let own = json!({ "own": true, "firstName": whole["firstName"], "modifyDate": whole["modifyDate"] });
    (status, own.to_string()).into_response()
}

async fn pass_on(State(gateway): State<Gateway>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().as_str();
    let (status, body) = gateway.send(parts.method.clone(), path, &parts.headers, body).await;
    (status, [("content-type", "application/json")], body).into_response()
}

async fn by_number(edge: &Edge) -> LookupAnswer {
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    looked(request.query(&[("tenantId", "10001"), ("phone", NUMBER)]).send().await.unwrap()).await
}

async fn a_lookup_by_a_number_has_the_body_of_the_tenants_own_path(pairing: Pairing) {
    let sandbox = Edge::start().await;
    sandbox.behave(json!({ "events": false })).await;
    let path = format!("/api/v2/externalcontacts/contacts/{}", customer(1));
    let number = json!({ "workPhone": { "e164": NUMBER } });
    assert_eq!(sandbox.sandbox(Method::PATCH, &path).json(&number).send().await.unwrap().status(), 200);
    let (gateway, controller) = Gateway::start(&sandbox).await;
    let settings = with_sandbox_of(gateway)
        .replacen("upstream = {", "upstream = { profile_path = \"/own/{customer_id}\",", 1)
        .replacen("fields = [\"*\"]", "fields = [\"*\"]\nlookup_by = [\"customerId\", \"phone\"]", 1);
    let key = "keys.secret = \"cHJvZmlsZS1lZGdlIGRlbW8ga2V5OiBldmVyeWJvZHkga25vd3MgaXQ=\"\n";
    let edge = Edge::start_on(pairing, &format!("sandbox.enabled = false\n{key}{settings}")).await;
    let is_own = |answer: &LookupAnswer| {
        assert_eq!((answer.status, &answer.json()["own"]), (200, &json!(true)), "{}", answer.text);
    };
    // Without an entry, with that of the customer, and with both.
    is_own(&by_number(&edge).await);
    is_own(&edge.look_up(&customer(1)).await);
    is_own(&by_number(&edge).await);
    let hit = eventually("a hit", || async { Some(by_number(&edge).await).filter(LookupAnswer::is_hit) }).await;
    is_own(&hit);
    is_own(&edge.look_up(&customer(1)).await);
    edge.stop().await;
    assert!(controller.drain(PATIENCE).await);
    sandbox.stop().await;
}
