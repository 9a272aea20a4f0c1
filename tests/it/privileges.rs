//! Privileges: a token with too few or too many fetches nothing, and only its tenant is affected.

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::support::edge::{DEMO_KEY_SHA256, Edge, looked};
use crate::support::{customer, eventually};

/// Two tenants on the sandbox of another process: one with the client that may write, one with the viewer.
fn two_tenants(sandbox: std::net::SocketAddr) -> String {
    let tenant = |id: &str, client: &str| {
        format!(
            "[[tenant]]\nid = \"{id}\"\nupstream = {{ api_url = \"http://{sandbox}\", login_url = \"http://{sandbox}\", \
             client_id = \"{client}\", client_secret = \"{client}\" }}\n"
        )
    };
    let caller = format!(
        "[[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\", \"10002\"]\nfields = [\"*\"]\n"
    );
    format!("{}{}{caller}", tenant("10001", "editor"), tenant("10002", "sandbox"))
}

async fn refused_for(edge: &Edge, tenant: &str, what: &str) -> Value {
    let ready = eventually("readiness says why", || async {
        let ready = edge.ready().await;
        ready["reasons"].is_object().then_some(ready)
    })
    .await;
    let name = format!("upstream:{tenant}");
    assert_eq!(ready["status"], "degraded");
    assert!(ready["degraded"].as_array().unwrap().contains(&Value::from(name.as_str())), "{ready}");
    assert!(ready["reasons"][name].as_str().unwrap().contains(what), "{ready}");
    ready
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_permission_blocks_fetches_of_its_tenant_only() {
    let genesys = Edge::start().await;
    let edge = Edge::start_with(&two_tenants(genesys.sandbox_address())).await;
    for n in 1..=5 {
        let answer = edge.look_up(&customer(n)).await;
        assert_eq!((answer.status, &answer.json()["code"]), (502, &Value::from("privileges")), "{}", answer.text);
        assert!(!answer.text.contains("externalContacts"), "why is for operators: {}", answer.text);
    }
    assert_eq!(genesys.calls().await.0, 0, "no profile call was made");

    let ready = refused_for(&edge, "10001", "forbidden permission externalContacts:contact:edit").await;
    assert_eq!(ready["degraded"], json!(["upstream:10001"]));
    let other = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    let other = other.query(&[("tenantId", "10002"), ("customerId", &customer(1))]);
    assert_eq!(looked(other.send().await.unwrap()).await.status, 200);
    assert_eq!(genesys.calls().await.0, 1);
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_view_permission_blocks_fetches() {
    let edge = Edge::start().await;
    for (permissions, why) in [
        (json!([]), "lacks the permission externalContacts:contact:view"),
        (
            json!(["externalContacts:contact:view", "externalContacts:contact:delete"]),
            "externalContacts:contact:delete",
        ),
        (json!(["externalContacts:*:*"]), "externalContacts:contact:add"),
    ] {
        let edge = Edge::start().await;
        edge.behave(json!({ "permissions": permissions })).await;
        let answer = edge.look_up(&customer(1)).await;
        assert_eq!((answer.status, &answer.json()["code"]), (502, &Value::from("privileges")), "{permissions}");
        refused_for(&edge, "10001", why).await;
        assert_eq!(edge.calls().await.0, 0);
        edge.stop().await;
    }
    edge.behave(json!({ "permissions": [] })).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 502);
    edge.behave(json!({ "permissions": null })).await;
    eventually("lookups are served again", || async { (edge.look_up(&customer(1)).await.status == 200).then_some(()) })
        .await;
    assert_eq!(edge.calls().await, (1, 1), "one profile call, and no token but the first");
    eventually("readiness no longer says anything", || async {
        (edge.ready().await["status"] == "ready").then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_without_rules_are_not_checked() {
    let genesys = Edge::start().await;
    let unasked = two_tenants(genesys.sandbox_address()).replacen(
        "client_id",
        "required_permissions = [], forbidden_permissions = [], client_id",
        1,
    );
    let edge = Edge::start_with(&unasked).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    edge.stop().await;
    genesys.stop().await;
}

/// Two callers of one tenant whose budget is 300 requests a minute.
fn two_callers(sandbox: std::net::SocketAddr) -> String {
    let caller = |name: &str, key: &str| {
        let digest = hex::encode(sha2::Sha256::digest(key));
        format!("[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{digest}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n")
    };
    format!(
        "[[tenant]]\nid = \"10001\"\nupstream = {{ api_url = \"http://{sandbox}\", login_url = \"http://{sandbox}\", \
         client_id = \"sandbox\", client_secret = \"sandbox\", requests_per_minute = 300 }}\n{}{}",
        caller("scanner", "key-of-the-scanner"),
        caller("desktop", "key-of-the-desktop")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_random_ids_takes_no_budget_from_others() {
    let genesys = Edge::start().await;
    let edge = Edge::start_with(&two_callers(genesys.sandbox_address())).await;
    let look_up = async |key: &str, id: &str| {
        let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", key);
        looked(request.query(&[("tenantId", "10001"), ("customerId", id)]).send().await.unwrap()).await
    };
    let mut refused = None;
    for n in 0..330 {
        let answer = look_up("key-of-the-scanner", &format!("random-{n}")).await;
        if answer.status == 503 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("the scanner is limited");
    assert_eq!(refused.json()["code"], "budget_spent");
    assert!(refused.headers.contains_key("retry-after"));
    for n in 1..=100 {
        let answer = look_up("key-of-the-desktop", &customer(n)).await;
        assert_eq!(answer.status, 200, "lookup {n}: {}", answer.text);
    }
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_a_tenant_whose_genesys_gives_no_answers() {
    let genesys = Edge::start().await;
    let desktop = hex::encode(sha2::Sha256::digest("key-of-the-desktop"));
    let viewer = two_callers(genesys.sandbox_address()).replace(&desktop, DEMO_KEY_SHA256);
    let with_client =
        |secret: &str| viewer.replace("client_secret = \"sandbox\"", &format!("client_secret = \"{secret}\""));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (settings, why) in [
        (with_client("wrong"), "refused access with status 40"),
        (two_callers(nobody), "Connection refused"),
        (viewer.replace("http://127.0.0.1", "http://nonexistent.invalid"), "dns"),
    ] {
        let settings = format!("security.require_tls = false\n{settings}");
        let edge = Edge::start_with(&settings).await;
        let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "key-of-the-scanner");
        let request = request.query(&[("tenantId", "10001"), ("customerId", &customer(1))]);
        assert!(looked(request.send().await.unwrap()).await.status >= 500);
        refused_for(&edge, "10001", why).await;
        edge.stop().await;
    }

    let edge = Edge::start_with(&viewer).await;
    edge.look_up(&customer(1)).await;
    edge.is_ready().await;
    genesys.behave(json!({ "fail_ratio": 1.0, "fail_status": 500 })).await;
    for n in 2..=8 {
        edge.look_up(&customer(n)).await;
    }
    refused_for(&edge, "10001", "genesys failed with status 500").await;
    genesys.behave(json!({ "fail_ratio": 0.0 })).await;
    eventually("lookups are served again", || async { (edge.look_up(&customer(9)).await.status == 200).then_some(()) })
        .await;
    edge.is_ready().await;
    edge.stop().await;
    genesys.stop().await;
}
