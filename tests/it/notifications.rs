//! Events over Genesys' WebSockets: what is watched, what is lost, and what is done about it.

use std::net::SocketAddr;

use futures_util::future::join_all;
use profile_edge::config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, Pairing};
use crate::support::process::{Ports, configuration};
use crate::support::{customer, eventually};

const UP: &str = "profile_edge_source_up{tenant=\"10001\"}";
const WATCHED: &str = "profile_edge_source_watched{tenant=\"10001\"}";

/// A Genesys, and a process that gets events from its sockets only.
pub(crate) struct World {
    pub(crate) genesys: Edge,
    pub(crate) edge: Edge,
}

/// The settings of a process whose only source is the notifications of a sandbox.
fn settings(genesys: &Edge, tenant: &str) -> String {
    settings_of(genesys.sandbox_address(), tenant)
}

/// The same, by the address of the sandbox.
pub(crate) fn settings_of(address: SocketAddr, tenant: &str) -> String {
    format!(
        r#"
        [[tenant]]
        id = "10001"
        {tenant}
        source = [{{ kind = "notifications", channels = 2 }}]
        [tenant.upstream]
        api_url = "http://{address}"
        login_url = "http://{address}"
        client_id = "sandbox"
        client_secret = "sandbox"
        requests_per_minute = 100000
        [[caller]]
        name = "desktop"
        key_sha256 = "{DEMO_KEY_SHA256}"
        tenants = ["10001"]
        fields = ["*"]
        "#
    )
}

/// Long times: only an event makes a watched profile anew within a test.
pub(crate) const LONG: &str = "ttl = \"1h\"\nttl_jitter = 0.0\nunwatched_ttl = \"1s\"";

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_on(Pairing::Embedded, "[sandbox]\nlatency = \"0ms\"\ncustomers = 5000\n").await
    }

    async fn start_on(pairing: Pairing, sandbox: &str) -> Self {
        let genesys = Edge::start_with(sandbox).await;
        let edge = Edge::start_on(pairing, &settings(&genesys, LONG)).await;
        Self { genesys, edge }
    }

    pub(crate) async fn stop(self) {
        self.edge.stop().await;
        self.genesys.stop().await;
    }

    pub(crate) async fn channels(&self) -> Value {
        let answer = self.genesys.sandbox(Method::GET, "/sandbox/channels").send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// Looks a customer up until it is served as a hit that is watched.
    pub(crate) async fn watched_hit(&self, customer: &str) -> LookupAnswer {
        eventually("a watched hit", || async {
            let answer = self.edge.look_up(customer).await;
            (answer.is_hit() && !answer.cache_status.contains("unwatched")).then_some(answer)
        })
        .await
    }

    /// Waits until the title of a customer is this.
    pub(crate) async fn shows(&self, customer: &str, title: &str) {
        eventually(title, || async { (self.edge.look_up(customer).await.json()["title"] == title).then_some(()) })
            .await;
    }

    /// Waits until readiness names the source with this reason.
    pub(crate) async fn misses(&self, reason: &str) -> String {
        eventually("degraded", || async {
            let found = self.edge.ready().await["reasons"]["source:10001"].as_str().map(str::to_owned);
            found.filter(|found| found.contains(reason))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_arrives_by_socket_and_evicts() {
    let world = World::start_on(Pairing::Redis, "[sandbox]\nlatency = \"0ms\"\n").await;
    let one = customer(1);
    let first = world.edge.look_up(&one).await;
    assert_eq!(first.cache_status, "profile-edge; fwd=miss; stored; detail=unwatched");
    let hit = world.watched_hit(&one).await;
    assert!(hit.cache_status.contains("ttl=3") && hit.cache_status.len() < 40, "{}", hit.cache_status);
    assert_eq!((world.edge.metric(UP).await, world.edge.metric(WATCHED).await), (1.0, 1.0));
    world.genesys.change(&one, json!({ "title": "changed" })).await;
    world.edge.applied("updated", 1.0).await;
    world.shows(&one, "changed").await;
    assert!(!world.watched_hit(&one).await.cache_status.contains("unwatched"));
    let events = "profile_edge_ingest_events_total{shape=\"notification\",outcome=\"queued\"}";
    assert_eq!(world.edge.metric(events).await, 1.0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_arrives_by_socket_and_leads_to_the_new_contact() {
    let world = World::start().await;
    let (one, two) = (customer(1), customer(2));
    world.edge.look_up(&two).await;
    world.watched_hit(&one).await;
    let merge = world.genesys.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged = merge.json(&json!({ "contactIds": [one, two] })).send().await.unwrap();
    let merged: Value = merged.json().await.unwrap();
    eventually("the merged contact", || async {
        (world.edge.look_up(&one).await.json()["id"] == merged["id"]).then_some(())
    })
    .await;
    // The canonical contact is watched from its first fetch on.
    world.watched_hit(&one).await;
    let id = merged["id"].as_str().unwrap();
    world.genesys.change(id, json!({ "title": "of both" })).await;
    world.shows(&one, "of both").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_while_a_socket_is_cut_are_not_served_stale() {
    let genesys = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n").await;
    // The events of ours after a gap announce no time, so profiles are unsettled for this long.
    let settled = "[consumer]\nsettle_window = \"1s\"\n";
    let edge = Edge::start_on(Pairing::Embedded, &(settings(&genesys, LONG) + settled)).await;
    let world = World { genesys, edge };
    for n in 1..=3 {
        world.watched_hit(&customer(n)).await;
    }
    world.genesys.behave(json!({ "sockets": false })).await;
    let reason = world.misses("0 customers are watched").await;
    assert!(reason.contains("since 20"), "{reason}");
    assert_eq!(world.edge.ready().await["status"], "degraded");
    eventually("down", || async { (world.edge.metric(UP).await == 0.0).then_some(()) }).await;
    // Nobody hears of this change.
    world.genesys.change(&customer(1), json!({ "title": "unheard" })).await;
    world.shows(&customer(1), "unheard").await;
    eventually("unwatched", || async {
        world.edge.look_up(&customer(1)).await.cache_status.contains("detail=unwatched").then_some(())
    })
    .await;

    world.genesys.behave(json!({ "sockets": true })).await;
    world.edge.is_ready().await;
    world.genesys.change(&customer(2), json!({ "title": "heard again" })).await;
    world.shows(&customer(2), "heard again").await;
    for n in 1..=3 {
        world.watched_hit(&customer(n)).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_watched_customer_is_invalidated_after_a_lost_socket() {
    let world = World::start().await;
    for n in 1..=5 {
        world.watched_hit(&customer(n)).await;
    }
    let before = world.genesys.calls().await.0;
    // Only events could reveal this change: the sandbox does not send it.
    world.genesys.behave(json!({ "notifications": false })).await;
    world.genesys.change(&customer(5), json!({ "title": "lost" })).await;
    assert_ne!(world.edge.look_up(&customer(5)).await.json()["title"], "lost");
    world.genesys.behave(json!({ "notifications": true, "cut_sockets": true })).await;
    world.edge.applied("updated", 5.0).await;
    for n in 1..=5 {
        world.watched_hit(&customer(n)).await;
    }
    assert_eq!(world.edge.look_up(&customer(5)).await.json()["title"], "lost");
    assert!(world.genesys.calls().await.0 >= before + 5);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_replaced_before_it_expires_without_a_gap() {
    let world = World::start().await;
    world.genesys.behave(json!({ "channel_lifetime": 10 })).await;
    let one = customer(1);
    world.watched_hit(&one).await;
    eventually("a second channel", || async { (world.channels().await["channels"] == 2).then_some(()) }).await;
    // The second one, alone: the first has expired.
    eventually("the first is gone", || async { (world.channels().await["sockets"] == 1).then_some(()) }).await;
    world.genesys.change(&one, json!({ "title": "by another channel" })).await;
    world.shows(&one, "by another channel").await;
    assert_eq!(world.edge.ready().await["degraded"], json!([]));
    // An event of ours would show that changes had been missed.
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    assert_eq!(world.edge.metric(applied).await, 1.0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_closing_moves_to_another_channel() {
    let world = World::start().await;
    let one = customer(1);
    world.watched_hit(&one).await;
    world.genesys.behave(json!({ "announce_closing": true })).await;
    eventually("another channel", || async { (world.channels().await["channels"] == 2).then_some(()) }).await;
    eventually("one socket", || async { (world.channels().await["sockets"] == 1).then_some(()) }).await;
    world.watched_hit(&one).await;
    world.genesys.change(&one, json!({ "title": "after the move" })).await;
    world.shows(&one, "after the move").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_thousand_customers_use_several_channels() {
    let world = World::start().await;
    for hundred in 0..12 {
        let ids: Vec<_> = (1..=100).map(|n| customer(hundred * 100 + n)).collect();
        let request = world.edge.client.post(world.edge.url("/api/v1/profiles")).header("X-API-Key", "demo-key");
        let answer = request.json(&json!({ "tenantId": "10001", "customerIds": ids })).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    world.edge.wait_for_metric(WATCHED, 1_200.0).await;
    let channels = world.channels().await;
    assert_eq!((&channels["channels"], &channels["topics"]), (&json!(2), &json!(1_200)));
    for n in [1, 999, 1_001, 1_200] {
        world.watched_hit(&customer(n)).await;
        world.genesys.change(&customer(n), json!({ "title": "seen" })).await;
        world.shows(&customer(n), "seen").await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subscription_is_reported_and_recovers() {
    let genesys = Edge::start().await;
    let tenant = settings(&genesys, LONG).replace("client_secret", "required_permissions = []\nclient_secret");
    let edge = Edge::start_with(&tenant).await;
    let world = World { genesys, edge };
    world.watched_hit(&customer(1)).await;
    world.genesys.behave(json!({ "permissions": ["conversation:call:view"], "cut_sockets": true })).await;
    world.misses("status 403").await;
    world.genesys.behave(json!({ "permissions": null })).await;
    world.edge.is_ready().await;
    world.watched_hit(&customer(1)).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_beside_notifications_keeps_the_whole_ttl() {
    let genesys = Edge::start().await;
    let webhook = format!("{LONG}\nwebhook = [{{ scheme = \"api-key\", secrets = [\"a-secret-of-a-test\"] }}]");
    let edge = Edge::start_with(&settings(&genesys, &webhook)).await;
    assert_eq!(edge.look_up(&customer(1)).await.cache_status, "profile-edge; fwd=miss; stored");
    edge.wait_for_metric(WATCHED, 1.0).await;
    World { genesys, edge }.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_gap_and_no_person() {
    let genesys = Edge::start().await;
    let directory = tempfile::tempdir().unwrap();
    let ports = Ports::draw();
    configuration(directory.path(), &settings(&genesys, LONG));
    let process = ports.start(directory.path(), &[("PROFILE_EDGE_CONFIG", "edge.toml"), ("RUST_LOG", "trace")]);
    ports.ready(&genesys.client).await;
    let one = customer(1);
    let looked = async || {
        let request = genesys
            .client
            .get(format!("http://127.0.0.1:{}/api/v1/profile", ports.public))
            .header("X-API-Key", "demo-key");
        let request = request.query(&[("tenantId", "10001"), ("customerId", &one)]);
        request.send().await.unwrap().json::<Value>().await.unwrap()
    };
    let before = looked().await;
    eventually("a channel", || async {
        let answer = genesys.sandbox(Method::GET, "/sandbox/channels").send().await.unwrap();
        (answer.json::<Value>().await.unwrap()["topics"] == 1).then_some(())
    })
    .await;
    genesys.change(&one, json!({ "title": "Countess of Canaries" })).await;
    eventually("the change", || async { (looked().await["title"] == "Countess of Canaries").then_some(()) }).await;
    genesys.behave(json!({ "cut_sockets": true })).await;
    process.wait_for_log("changes of contacts may be missed").await;
    process.wait_for_log("changes of contacts are received again").await;
    process.wait_for_log("needs the permission audits:audit:view").await;
    let log = process.log();
    for secret in [before["workEmail"].as_str().unwrap(), &one, "Countess of Canaries", "/channels/"] {
        assert!(!log.contains(secret), "the log has {secret}");
    }
    genesys.stop().await;
}

#[test]
fn mistakes_in_a_source_are_explained() {
    let error = |source: &str, rest: &str| {
        let upstream = "upstream = { region = \"us_east_1\", client_id = \"id\", client_secret = \"secret\" }";
        let text = format!("[[tenant]]\nid = \"t\"\n{upstream}\nsource = [{source}]\n{rest}");
        config::from_toml(&text).unwrap_err().to_string()
    };
    assert!(error("{ kind = \"notifications\", channels = 20 }", "").contains("from 1 to 19"));
    assert!(error("{ kind = \"notification\" }", "").contains("notifications"));
    assert!(error("{ kind = \"notifications\", chanels = 2 }", "").contains("channels"));
    let twice = "{ kind = \"notifications\" }, { kind = \"notifications\" }";
    assert!(error(twice, "").contains("there is one already"));
    assert!(error("{ kind = \"notifications\" }", "unwatched_ttl = \"0s\"").contains("longer than zero"));
}

/// What nobody watches is fetched again every second, which takes more than the budget.
#[tokio::test(flavor = "multi_thread")]
async fn customers_are_watched_although_lookups_spend_the_whole_budget() {
    let genesys = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n").await;
    let settings = settings(&genesys, LONG).replace("requests_per_minute = 100000", "requests_per_minute = 60");
    let edge = Edge::start_with(&settings).await;
    let look_up = async |n| edge.look_up(&customer(n)).await.status;
    let lookups = async {
        loop {
            join_all((1..=40).map(look_up)).await;
        }
    };
    tokio::select! {
        () = lookups => {}
        () = edge.wait_for_metric(WATCHED, 10.0) => {}
    }
    assert!(edge.metric("profile_edge_upstream_requests_total{outcome=\"budget_spent\"}").await > 0.0);
    edge.stop().await;
    genesys.stop().await;
}
