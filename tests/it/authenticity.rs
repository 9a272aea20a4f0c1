//! Events that others publish to RabbitMQ are refused where a MAC is required, also during a change of its key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use profile_edge::domain::KeyHasher;
use serde_json::json;

use crate::support::customer;
use crate::support::edge::{Edge, on_rabbit, with_sandbox_of};
use crate::support::servers::rabbit::RabbitServer;

const DEAD: &str = "profile_edge_dead_letters";

/// The MAC settings of `[queue.amqp]`: this key, the previous ones, and whether one is required.
fn mac(key: u8, previous: &[u8], required: bool) -> String {
    let text = |byte: &u8| format!("\"{}\"", STANDARD.encode([*byte; 32]));
    let previous: Vec<String> = previous.iter().map(text).collect();
    format!("mac_key = {}\nmac_previous = [{}]\nmac_required = {required}\n", text(&key), previous.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_somebody_else_published_deletes_nobody() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let rabbit = on_rabbit(&server.url(&vhost));
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{rabbit}{}", mac(1, &[], true))).await;
    let (one, two) = (customer(1), customer(2));
    assert_eq!(edge.look_up(&one).await.status, 200);
    let identity = KeyHasher::Sha256.identify(&"10001".parse().unwrap(), &one.parse().unwrap());
    let event = json!({
        "v": 1, "id": "e-1", "tenant": "10001", "keys": [identity.digest().to_string()], "kind": "deleted",
        "at": 4_102_444_800_000_i64, "at_precision": "ms", "received_at": 0, "shape": "flat",
    });
    let mut marked = event.clone();
    marked["mac"] = "0".repeat(64).into();
    for forged in [&event, &marked] {
        server.publish(&vhost, "profile-edge.events", "shard.0", forged.to_string().as_bytes()).await;
    }
    edge.wait_for_metric(DEAD, 2.0).await;
    assert!(edge.look_up(&one).await.is_hit());
    let letters = edge.client.get(format!("http://{}/admin/dead-letters", edge.admin)).send().await.unwrap();
    let letters = letters.text().await.unwrap();
    assert_eq!(letters.matches("unauthentic").count(), 2, "{letters}");
    // Nor does a dead letter become an event of ours.
    server.publish(&vhost, "amq.default", "profile-edge.dead-letters", event.to_string().as_bytes()).await;
    edge.wait_for_metric(DEAD, 3.0).await;
    assert!(edge.look_up(&one).await.is_hit());

    edge.look_up(&two).await;
    edge.delete(&two).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&two).await.status, 410);
    edge.stop().await;
}

/// One publishes and another consumes, at each step of a rollout and of a rotation.
#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_mac_rotation_loses_no_event() {
    let steps = [
        (String::new(), mac(1, &[], false)),
        (mac(1, &[], false), String::new()),
        (mac(1, &[], false), mac(1, &[], true)),
        (mac(1, &[], true), mac(1, &[2], true)),
        (mac(1, &[2], true), mac(2, &[1], true)),
        (mac(2, &[1], true), mac(1, &[2], true)),
        (mac(2, &[], true), mac(2, &[1], true)),
    ];
    for (number, (publishing, consuming)) in steps.iter().enumerate() {
        let server = RabbitServer::shared().await;
        let vhost = server.vhost().await;
        let rabbit = on_rabbit(&server.url(&vhost));
        let publisher = format!("roles = [\"ingest\"]\n[sandbox]\nlatency = \"0ms\"\n{rabbit}{publishing}");
        let publisher = Edge::start_with(&publisher).await;
        let sandbox = with_sandbox_of(publisher.sandbox_address());
        let consumer = Edge::start_with(&format!("roles = [\"consumer\"]\n{rabbit}{consuming}{sandbox}")).await;
        publisher.change(&customer(1), json!({ "firstName": "Augusta" })).await;
        consumer.applied("updated", 1.0).await;
        assert_eq!(consumer.metric(DEAD).await, 0.0, "step {number}");
        publisher.stop().await;
        consumer.stop().await;
    }
}
