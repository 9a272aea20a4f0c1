//! Healthy worlds, and worlds whose running service does not do what its configuration says.

use serde_json::json;

use super::{diagnose, run, sandbox_of, settings};
use crate::support::command::run as run_command;
use crate::support::edge::{Edge, on_rabbit};
use crate::support::process::free_port;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;
use crate::support::{customer, eventually};

const CALLER: (&str, &str) = ("PROFILE_EDGE_CALLER_KEY", "demo-key");

fn at(edge: &Edge) -> [String; 4] {
    let (url, admin) = (format!("http://{}", edge.public), format!("http://{}", edge.admin));
    ["--url".to_owned(), url, "--admin".to_owned(), admin]
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_demo_everything_is_in_order() {
    let edge = Edge::start().await;
    let sandbox = edge.sandbox_address().to_string();
    let environment =
        [("PROFILE_EDGE__SANDBOX__LISTEN", &*sandbox), ("PROFILE_EDGE__HTTP__LIMITS__MAX_CONNECTIONS", "100")];
    let directory = tempfile::tempdir().unwrap();
    let at = at(&edge);
    let found = run(directory.path(), &at.each_ref().map(String::as_str), &environment).await;
    found.is_healthy();
    for check in ["events.source", "service.webhook", "service.lookup", "service.readiness", "genesys.permissions"] {
        assert!(found.names(check), "{check}: {found:#?}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_and_rabbitmq_everything_is_in_order() {
    let genesys = Edge::start().await;
    let (redis, rabbit) = (RedisServer::start(&[]).await, RabbitServer::shared().await);
    let vhost = rabbit.vhost().await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", redis.url());
    let settings = format!("{}{store}{}", settings(&sandbox_of(&genesys)), on_rabbit(&rabbit.url(&vhost)));
    let edge = Edge::start_with(&settings).await;
    // It answers before it consumes.
    let queue = format!("/queues/{vhost}/profile-edge.invalidations.0");
    eventually("a consumer", || async {
        rabbit.api("GET", &queue, None).await?["consumers"].as_u64().filter(|count| *count > 0)
    })
    .await;
    let (at, management) = (at(&edge), rabbit.management());
    let arguments = [&at.each_ref().map(String::as_str)[..], &["--rabbitmq-api", &management]].concat();
    diagnose(&settings, &arguments, &[CALLER]).await.is_healthy();
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_running_service_are_named() {
    let genesys = Edge::start().await;
    let settings = settings(&sandbox_of(&genesys));
    let edge = Edge::start_with(&settings).await;
    let at = at(&edge);
    let at = at.each_ref().map(String::as_str);
    let diagnosed = async |settings: &str, key: &str| diagnose(settings, &at, &[(CALLER.0, key)]).await;

    diagnosed(&settings, CALLER.1).await.is_healthy();
    diagnosed(&settings, "another key").await.blames_only("service.lookup", "failed", "hash-key");
    let rotated = settings.replace("secret-of-the-doctors-webhook", "a-secret-that-was-rotated");
    diagnosed(&rotated, CALLER.1).await.blames_only("service.webhook", "failed", "SIGHUP");
    let limited =
        settings.replace("scheme = \"hub-signature\"", "scheme = \"hub-signature\", networks = [\"10.0.0.0/8\"]");
    diagnosed(&limited.replace("secret-of", "other-secret-of"), CALLER.1).await.blames_only(
        "service.webhook",
        "failed",
        "other networks",
    );
    diagnose(&settings, &at, &[]).await.blames_only("service.lookup", "warning", "PROFILE_EDGE_CALLER_KEY");

    let nobody = format!("http://127.0.0.1:{}", free_port());
    let found = diagnose(&settings, &["--url", &nobody], &[CALLER]).await;
    found.blames_only("service.listener", "failed", "profile-edge run");

    genesys.behave(json!({ "fail_status": 503 })).await;
    let found = diagnosed(&settings, CALLER.1).await;
    let failed: Vec<_> = found.findings.iter().filter(|finding| finding["verdict"] == "failed").collect();
    assert_eq!((failed.len(), &failed[0]["check"]), (1, &json!("genesys.reading")), "{failed:#?}");
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_healthcheck_needs_genesys_too() {
    let genesys = Edge::start().await;
    let edge = Edge::start_with(&settings(&sandbox_of(&genesys))).await;
    assert_eq!(run_command(&edge, &["healthcheck", "--deep"]).await.code, Some(0));
    genesys.behave(json!({ "permissions": [] })).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 502);
    edge.is_without("upstream:10001").await;
    assert_eq!(run_command(&edge, &["healthcheck"]).await.code, Some(0));
    let deep = run_command(&edge, &["healthcheck", "--deep"]).await;
    assert_eq!(deep.code, Some(69));
    assert!(deep.err.contains("upstream:10001") && deep.err.contains("lacks the permission"), "{}", deep.err);
    edge.stop().await;
    genesys.stop().await;
}

/// Two processes on one set of queues, with a memory each as their store.
#[tokio::test(flavor = "multi_thread")]
async fn another_store_on_the_same_queues_is_named() {
    let (genesys, rabbit) = (Edge::start().await, RabbitServer::shared().await);
    let queue = on_rabbit(&rabbit.url(&rabbit.vhost().await));
    let settings = format!("{}{queue}", settings(&sandbox_of(&genesys)));
    let (edge, other) = tokio::join!(Edge::start_with(&settings), Edge::start_with(&settings));
    for edge in [&edge, &other] {
        edge.is_without_for("queue", "use another store").await;
    }
    let at = at(&edge);
    let found = diagnose(&settings, &at.each_ref().map(String::as_str), &[CALLER]).await;
    let readiness = found.findings.iter().find(|finding| finding["check"] == "service.readiness").unwrap();
    assert_eq!(readiness["verdict"], "warning");
    assert!(readiness["detail"].as_str().unwrap().contains("use another store"), "{readiness}");
    for edge in [edge, other, genesys] {
        edge.stop().await;
    }
}
