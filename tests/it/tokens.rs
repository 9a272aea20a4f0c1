//! Tokens with fewer rights than their caller, and the Genesys tokens of agents, at every door.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::clock::SystemClock;
use profile_edge::sandbox::{Sandbox, SandboxOptions};
use profile_edge::shutdown::{Controller, Shutdown};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, looked};
use crate::support::{PATIENCE, customer, eventually};

const BULK: &str = "/api/v2/externalcontacts/bulk/contacts";

/// A process and its Genesys, which can be stopped.
struct Desk {
    edge: Edge,
    genesys: SocketAddr,
    genesys_tasks: Controller,
}

impl Desk {
    /// Starts a process with two tenants, and `more` options of the first.
    async fn start(more: &str) -> Self {
        let (genesys_tasks, shutdown) = Shutdown::new();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let options = SandboxOptions { listen, customers: 10, latency: Duration::ZERO, webhook: None };
        let genesys = Sandbox::start(options, SystemClock::shared(), shutdown).await.unwrap().addr;
        let upstream = format!(
            "{{ api_url = \"http://{genesys}\", login_url = \"http://{genesys}\", client_id = \"sandbox\", \
             client_secret = \"sandbox\", requests_per_minute = 40 }}"
        );
        let edge = Edge::start_with(&format!(
            "[[tenant]]\nid = \"10001\"\nupstream = {upstream}\n\
             webhook = [{{ scheme = \"api-key\", secrets = [\"demo-secret\"] }}]\n{more}\n\
             [[tenant]]\nid = \"20002\"\nupstream = {upstream}\n\
             [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\", \"20002\"]\nfields = [\"*\"]\n"
        ))
        .await;
        Self { edge, genesys, genesys_tasks }
    }

    async fn stop(self) {
        self.edge.stop().await;
        assert!(self.genesys_tasks.drain(PATIENCE).await);
    }

    /// Asks for a token of the caller.
    async fn token(&self, more: &[(&str, &str)]) -> LookupAnswer {
        let form = [("grant_type", "client_credentials"), ("client_id", "desktop"), ("client_secret", "demo-key")];
        let form: Vec<_> = form.iter().chain(more).collect();
        looked(self.edge.client.post(self.edge.url("/oauth/token")).form(&form).send().await.unwrap()).await
    }

    /// Returns a token of this client of Genesys.
    async fn genesys_token(&self, client: &str) -> String {
        let request = self.edge.client.post(format!("http://{}/oauth/token", self.genesys));
        let request = request.basic_auth(client, Some(client)).form(&[("grant_type", "client_credentials")]);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn behave(&self, behaviour: Value) {
        let request = self.edge.client.post(format!("http://{}/sandbox/behaviour", self.genesys));
        assert_eq!(request.json(&behaviour).send().await.unwrap().status(), 200);
    }

    fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.edge.client.request(method, self.edge.url(path)).bearer_auth(token)
    }

    async fn look_up(&self, tenant: &str, token: &str) -> LookupAnswer {
        let request = self.request(Method::GET, "/api/v1/profile", token);
        let query = [("tenantId", tenant), ("customerId", &customer(1))];
        looked(request.query(&query).send().await.unwrap()).await
    }

    /// Returns the status of each door that is asked for a customer of this tenant.
    async fn doors(&self, tenant: &str, token: &str) -> [u16; 6] {
        let one = customer(1);
        let batch = json!({ "tenantId": tenant, "customerIds": [one] });
        let post =
            |path: &str, body: &Value| self.request(Method::POST, path, token).header("X-Tenant-Id", tenant).json(body);
        let get = |path: &str| self.request(Method::GET, path, token).header("X-Tenant-Id", tenant);
        let requests = [
            get(&format!("/api/v1/profile?tenantId={tenant}&customerId={one}")),
            post("/api/v1/profiles", &batch),
            post("/api/v1/profiles/prefetch", &batch),
            get(&format!("/api/v1/changes?tenantId={tenant}")),
            get(&format!("/api/v2/externalcontacts/contacts/{one}")),
            post(BULK, &json!({ "entities": [{ "id": one }] })),
        ];
        let mut statuses = [0; 6];
        for (status, request) in statuses.iter_mut().zip(requests) {
            *status = request.send().await.unwrap().status().as_u16();
        }
        statuses
    }

    /// Returns how many verifications ended so.
    async fn verified(&self, outcome: &str) -> f64 {
        self.edge.metric(&format!("profile_edge_agent_verifications_total{{outcome=\"{outcome}\"}}")).await
    }
}

fn names(profile: &Value) -> BTreeSet<&str> {
    profile.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Waits for the end of a stream.
async fn end_of(mut stream: Response) {
    let rest = async { while let Ok(Some(_)) = stream.chunk().await {} };
    timeout(PATIENCE, rest).await.expect("the stream ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scoped_token_has_a_part_of_the_rights_at_every_door() {
    let desk = Desk::start("").await;
    let granted = desk.token(&[("scope", "tenant:10001 fields:id,firstName"), ("expires_in", "600")]).await.json();
    assert_eq!((&granted["scope"], &granted["expires_in"]), (&json!("tenant:10001 fields:id,firstName"), &json!(600)));
    let token = granted["access_token"].as_str().unwrap();
    assert_eq!(desk.doors("10001", token).await, [200, 200, 202, 200, 403, 403]);
    assert_eq!(desk.doors("20002", token).await, [403; 6]);
    let found = desk.look_up("10001", token).await;
    assert_eq!(names(&found.json()), BTreeSet::from(["firstName", "id"]));
    let narrower = desk.request(Method::GET, "/api/v1/profile", token);
    let query = |fields| [("tenantId", "10001".to_owned()), ("customerId", customer(1)), ("fields", fields)];
    let narrower = looked(narrower.query(&query("id".to_owned())).send().await.unwrap()).await;
    assert_eq!(names(&narrower.json()), BTreeSet::from(["id"]));
    let wider = desk.request(Method::GET, "/api/v1/profile", token);
    assert_eq!(wider.query(&query("id,lastName".to_owned())).send().await.unwrap().status(), 403);
    let batch = json!({ "tenantId": "10001", "customerIds": [customer(1)] });
    let batch: Value =
        desk.request(Method::POST, "/api/v1/profiles", token).json(&batch).send().await.unwrap().json().await.unwrap();
    assert_eq!(names(&batch["results"][0]["profile"]), BTreeSet::from(["firstName", "id"]));

    // With all fields of one tenant, an SDK needs to name no tenant.
    let granted = desk.token(&[("scope", "tenant:10001")]).await.json();
    let token = granted["access_token"].as_str().unwrap();
    let path = format!("/api/v2/externalcontacts/contacts/{}", customer(1));
    assert_eq!(desk.request(Method::GET, &path, token).send().await.unwrap().status(), 200);
    assert_eq!(desk.doors("20002", token).await, [403; 6]);
    let records = desk.edge.audit_records();
    desk.stop().await;
    let records = records();
    let of = |scope: &str, decision: &str| {
        records.iter().filter(|record| record["scope"] == scope && record["decision"] == decision).count()
    };
    assert!(records.iter().all(|record| record["scope"].is_null() || record["caller"] == "desktop"));
    assert!(of("tenant:10001 fields:2", "allowed") >= 4);
    assert_eq!((of("tenant:10001 fields:2", "denied"), of("tenant:10001", "denied")), (9, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_or_malformed_scope_gets_no_token() {
    let desk = Desk::start("").await;
    for (more, error) in [
        (("scope", "tenant:99"), "invalid_scope"),
        (("scope", "read"), "invalid_scope"),
        (("scope", "tenant:10001 tenant:20002"), "invalid_scope"),
        (("expires_in", "0"), "invalid_request"),
        (("expires_in", "soon"), "invalid_request"),
    ] {
        let refused = desk.token(&[more]).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &json!(error)), "{more:?}");
    }
    let longest = desk.token(&[("expires_in", "999999999"), ("scope", "")]).await.json();
    assert_eq!((&longest["expires_in"], &longest["scope"]), (&json!(86_400), &Value::Null));
    let records = desk.edge.audit_records();
    desk.stop().await;
    let denied: Vec<Value> = records().into_iter().filter(|record| record["type"] == "token").collect();
    assert_eq!(denied.len(), 1, "{denied:?}");
    assert_eq!((&denied[0]["caller"], &denied[0]["reason"]), (&json!("desktop"), &json!("scope")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_changes_ends_with_its_token() {
    let desk = Desk::start("").await;
    let granted = desk.token(&[("expires_in", "2")]).await.json();
    let token = granted["access_token"].as_str().unwrap();
    let stream = desk.request(Method::GET, "/api/v1/changes?tenantId=10001", token).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    end_of(stream).await;
    eventually("the end of the token", || async { (desk.look_up("10001", token).await.status == 401).then_some(()) })
        .await;
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_streams_of_changes_are_recorded() {
    let desk = Desk::start("").await;
    let ask = |tenant: &str, key: &str| {
        desk.edge.client.get(desk.edge.url(&format!("/api/v1/changes?tenantId={tenant}"))).header("X-API-Key", key)
    };
    assert_eq!(ask("99", "demo-key").send().await.unwrap().status(), 403);
    assert_eq!(ask("10001", "wrong").send().await.unwrap().status(), 401);
    let records = desk.edge.audit_records();
    desk.stop().await;
    let reasons: BTreeSet<String> =
        records().iter().filter_map(|record| Some(record["reason"].as_str()?.to_owned())).collect();
    assert_eq!(reasons, BTreeSet::from(["tenant", "unauthorized"].map(str::to_owned)));
}

const AGENTS: &str = "[tenant.agents]\nallow = true\nfields = [\"id\", \"firstName\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_looks_up_with_its_own_genesys_token() {
    let desk = Desk::start(AGENTS).await;
    let token = desk.genesys_token("agent").await;
    let found = join_all((0..50).map(|_| desk.look_up("10001", &token))).await;
    assert!(found.iter().all(|found| found.status == 200), "{found:?}");
    assert_eq!(names(&found[0].json()), BTreeSet::from(["firstName", "id"]));
    assert!((desk.verified("valid").await - 1.0).abs() < f64::EPSILON, "requests share a verification, and its result");
    assert_eq!(desk.doors("10001", &token).await, [200, 200, 202, 200, 403, 403]);
    // The other tenant does not allow it, so nobody asks its Genesys.
    assert_eq!(desk.doors("20002", &token).await, [401; 6]);
    // Without a name it is the only tenant that allows it; a body that names another one is refused.
    let body = |tenant: &str| json!({ "tenantId": tenant, "customerId": customer(1) });
    for (tenant, status) in [("10001", 200), ("20002", 403)] {
        let request = desk.request(Method::POST, "/api/v1/profile", &token).json(&body(tenant));
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    let key = desk.edge.client.get(desk.edge.url("/api/v1/profile")).header("X-API-Key", &token);
    let key = key.query(&[("tenantId", "10001"), ("customerId", &customer(1))]);
    assert_eq!(key.send().await.unwrap().status(), 401, "only as a bearer token");
    let (records, log) = (desk.edge.audit_records(), token.clone());
    desk.stop().await;
    let records = records();
    let allowed: Vec<&Value> = records.iter().filter(|record| record["decision"] == "allowed").collect();
    let agents: BTreeSet<&str> = allowed.iter().map(|record| record["agent"].as_str().unwrap()).collect();
    assert!(allowed.iter().all(|record| record["caller"] == "agents"));
    assert_eq!(agents.len(), 1);
    assert!(!records.iter().any(|record| record.to_string().contains(&log)));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_other_organisations_and_wrong_ones_are_refused() {
    let desk = Desk::start(AGENTS).await;
    for token in [desk.genesys_token("partner").await, "not-a-token".to_owned()] {
        for _ in 0..3 {
            assert_eq!(desk.look_up("10001", &token).await.status, 401);
        }
    }
    assert!((desk.verified("refused").await - 2.0).abs() < f64::EPSILON, "a refused token is not asked about again");
    assert_eq!(desk.look_up("10001", "no token !").await.status, 401);
    assert_eq!(desk.look_up("10001", &"x".repeat(5000)).await.status, 401);
    assert!((desk.verified("refused").await - 2.0).abs() < f64::EPSILON, "no text that cannot be a token is sent");
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_over_the_rate_names_no_other_agent() {
    let desk = Desk::start(&format!("{AGENTS}requests_per_second = 1\n")).await;
    let tokens = [desk.genesys_token("agent").await, desk.genesys_token("agent").await];
    let mut refused = 0;
    for _ in 0..20 {
        for answer in join_all(tokens.iter().cycle().take(20).map(|token| desk.look_up("10001", token))).await {
            refused += u64::from(answer.status == 429);
        }
    }
    let records = desk.edge.audit_records();
    desk.stop().await;
    let records: Vec<Value> = records().into_iter().filter(|record| record["reason"] == "rate").collect();
    assert_eq!(records.iter().map(|record| record["count"].as_u64().unwrap_or(1)).sum::<u64>(), refused);
    // Each of the rounds had both agents.
    let is_of_one = |record: &&Value| record["count"].as_u64().is_none_or(|count| count < 10);
    assert!(records.iter().filter(|record| !is_of_one(record)).count() > 0, "{records:?}");
    for record in &records {
        assert!(is_of_one(&record) || record.get("agent").is_none(), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_of_an_agent_is_refused_after_recheck() {
    let desk = Desk::start(&format!("{AGENTS}recheck = \"2s\"\n")).await;
    let token = desk.genesys_token("agent").await;
    let stream = desk.request(Method::GET, "/api/v1/changes?tenantId=10001", &token).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    desk.behave(json!({ "revoke_tokens": true })).await;
    end_of(stream).await;
    eventually("a refusal", || async { (desk.look_up("10001", &token).await.status == 401).then_some(()) }).await;
    // Whoever logs in again is served.
    assert_eq!(desk.look_up("10001", &desk.genesys_token("agent").await).await.status, 200);
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_genesys_is_down_agents_get_503_and_callers_are_served() {
    let desk = Desk::start(&format!("{AGENTS}recheck = \"1s\"\n")).await;
    let token = desk.genesys_token("agent").await;
    assert_eq!(desk.look_up("10001", &token).await.status, 200);
    let Desk { edge, genesys, genesys_tasks } = desk;
    assert!(genesys_tasks.drain(PATIENCE).await);
    let desk = Desk { edge, genesys, genesys_tasks: Shutdown::new().0 };
    let refused = eventually("an unverified token", || async {
        let answer = desk.look_up("10001", &token).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"));
    for n in 0..20 {
        assert_eq!(desk.look_up("10001", &format!("never-seen-{n}")).await.status, 503);
    }
    assert!(desk.verified("limited").await >= 1.0, "the breaker of verifications opens");
    assert!(desk.edge.look_up(&customer(1)).await.is_hit(), "a caller's key needs no verification");
    let records = desk.edge.audit_records();
    desk.stop().await;
    assert!(records().iter().any(|record| record["reason"] == "unverified"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_tokens_leaves_budget_to_agents_and_callers() {
    let desk = Desk::start(&format!("{AGENTS}recheck = \"1s\"\n")).await;
    let token = desk.genesys_token("agent").await;
    assert_eq!(desk.look_up("10001", &token).await.status, 200);
    let (desk_ref, wrong) = (&desk, |n: u32| format!("wrong-token-{n}"));
    let flood = join_all((0..300).map(|n| async move { desk_ref.look_up("10001", &wrong(n)).await.status })).await;
    assert!(flood.iter().all(|status| [401, 503].contains(status)), "{flood:?}");
    // A quarter of 40 requests per minute, and what is added meanwhile.
    let asked = desk.verified("refused").await;
    assert!((1.0..=13.0).contains(&asked), "{asked} wrong tokens were asked about");
    // The agent must be verified again, and a customer must be fetched.
    let again = eventually("another verification", || async {
        let answer = desk.look_up("10001", &token).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        (desk.verified("valid").await >= 2.0).then_some(answer)
    })
    .await;
    assert_eq!(again.status, 200);
    assert_eq!(desk.edge.look_up(&customer(5)).await.status, 200);
    desk.stop().await;
}
