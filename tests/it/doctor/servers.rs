//! Worlds whose Redis or RabbitMQ is broken.

use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::json;

use super::{Diagnosis, diagnose, sandbox_of, settings};
use crate::support::edge::{Edge, on_rabbit};
use crate::support::eventually;
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

const ALONE: &[&str] = &["--without-service"];

fn on_redis(url: &str, more: &str) -> String {
    format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{url}\"\n{more}")
}

async fn with_redis(genesys: &Edge, server: &RedisServer, more: &str) -> Diagnosis {
    diagnose(&format!("{}{}", settings(&sandbox_of(genesys)), on_redis(&server.url(), more)), ALONE, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_redis_are_named() {
    let genesys = Edge::start().await;
    let settings = settings(&sandbox_of(&genesys));
    let nobody = format!("{settings}{}", on_redis(&format!("redis://127.0.0.1:{}", free_port()), ""));
    diagnose(&nobody, ALONE, &[]).await.blames_only("redis.connection", "failed", "that the server runs");

    let healthy = RedisServer::start(&[]).await;
    with_redis(&genesys, &healthy, "").await.is_healthy();
    let locked = format!("{settings}{}", on_redis(&healthy.url().replace("//", "//:wrong@"), ""));
    diagnose(&locked, ALONE, &[]).await.blames_only("redis.connection", "failed", "password");
    let found = with_redis(&genesys, &healthy, "min_replicas = 1\n").await;
    found.blames_only("redis.replicas", "failed", "no event is acknowledged");

    let follows = format!("127.0.0.1 {}", healthy.port);
    for (arguments, check, verdict, advice) in [
        (vec!["--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"], "redis.eviction", "warning", "volatile-ttl"),
        (vec!["--maxmemory", "100kb"], "redis.eviction", "failed", "nothing can be stored"),
        (vec!["--appendonly", "no"], "redis.persistence", "warning", "appendonly yes"),
        (vec!["--replicaof", follows.as_str()], "redis.role", "failed", "primary"),
    ] {
        let broken = RedisServer::start(&arguments).await;
        with_redis(&genesys, &broken, "").await.blames_only(check, verdict, advice);
    }
    genesys.stop().await;
}

/// A service on a virtual host of its own that has created its queues and was stopped, and its settings.
async fn created(genesys: &Edge, server: &RabbitServer, redis: &RedisServer) -> (String, String) {
    let vhost = server.vhost().await;
    let servers = format!("{}{}", on_redis(&redis.url(), ""), on_rabbit(&server.url(&vhost)));
    let settings = format!("{}{servers}", settings(&sandbox_of(genesys)));
    Edge::start_with(&settings).await.stop().await;
    (vhost, settings)
}

/// Waits until the doctor blames this and nothing else: the management API shows changes some seconds later.
async fn blamed_only(settings: &str, arguments: &[&str], check: &str) -> Diagnosis {
    eventually(check, || async {
        let found = diagnose(settings, arguments, &[]).await;
        let mut wrong = found.findings.iter().filter(|finding| finding["verdict"] != "ok").peekable();
        let is_blamed = wrong.peek().is_some() && wrong.all(|finding| finding["check"] == check);
        is_blamed.then_some(found)
    })
    .await
}

/// Starts the service, which warns about the policy by itself.
async fn told_at_the_start(settings: &str, management: &str) {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n{settings}management_url = \"{management}\"\n"
    );
    let file = configuration(directory.path(), &settings).display().to_string();
    let mut service = Process::start(directory.path(), &["run", "--config", &file], &[]);
    service.wait_for_log("the policy short sets message-ttl").await;
    let log = service.log();
    let warning = log.lines().find(|line| line.contains("message-ttl")).unwrap();
    assert!(warning.contains("profile-edge.invalidations.0") && warning.contains("exclude our queues"), "{warning}");
    assert!(!log.contains("guest:guest"), "{log}");
    service.signal("TERM");
    assert_eq!(service.ended().await, Some(0), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_our_queues_are_named() {
    let genesys = Edge::start().await;
    let (server, redis) = (RabbitServer::shared().await, RedisServer::start(&[]).await);
    let management = server.management();
    let alone = ["--without-service", "--rabbitmq-api", management.as_str()];
    let (vhost, settings) = created(&genesys, server, &redis).await;
    diagnose(&settings, &alone, &[]).await.is_healthy();
    let refused = settings.replace("guest:guest", "guest:wrong");
    diagnose(&refused, &alone, &[]).await.blames_only("rabbitmq.connection", "failed", "refuses the user");

    let rules = json!({ "pattern": "^profile-edge", "definition": { "message-ttl": 60_000 }, "apply-to": "queues" });
    server.api("PUT", &format!("/policies/{vhost}/short"), Some(rules)).await.unwrap();
    blamed_only(&settings, &alone, "rabbitmq.policies").await;
    told_at_the_start(&settings, &management).await;
    server.api("DELETE", &format!("/policies/{vhost}/short"), None).await.unwrap();

    // A consumer of another program.
    let connection = Connection::connect(&server.url(&vhost), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = "profile-edge.invalidations.0";
    let consumer = channel
        .basic_consume(queue.into(), "thief".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    blamed_only(&settings, &alone, "rabbitmq.consumers").await.blames_only(
        "rabbitmq.consumers",
        "failed",
        "a queue of its own",
    );
    drop(consumer);
    connection.close(200, "done".into()).await.unwrap();

    server.api("DELETE", &format!("/queues/{vhost}/{queue}"), None).await.unwrap();
    let found = blamed_only(&settings, &alone, "rabbitmq.queues").await;
    found.blames_only("rabbitmq.queues", "failed", "restores its events");

    let (vhost, settings) = created(&genesys, server, &redis).await;
    let dead_letters = format!("/queues/{vhost}/profile-edge.dead-letters");
    server.api("DELETE", &dead_letters, None).await.unwrap();
    server.api("PUT", &dead_letters, Some(json!({ "durable": true }))).await.unwrap();
    let found = blamed_only(&settings, &alone, "rabbitmq.queues").await;
    found.blames_only("rabbitmq.queues", "failed", "quorum queues");
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_an_alarm_or_without_management_is_named() {
    let genesys = Edge::start().await;
    let (server, redis) = (RabbitServer::start("").await, RedisServer::start(&[]).await);
    let (_, settings) = created(&genesys, &server, &redis).await;
    let management = server.management();
    let silent = format!("http://127.0.0.1:{}", free_port());
    let found = diagnose(&settings, &["--without-service", "--rabbitmq-api", &silent], &[]).await;
    found.blames_only("rabbitmq.policies", "warning", "--rabbitmq-api");
    server.ctl(&["set_vm_memory_high_watermark", "0.0001"]).await;
    let alone = ["--without-service", "--rabbitmq-api", management.as_str()];
    eventually("the alarm is named", || async {
        let found = diagnose(&settings, &alone, &[]).await;
        let is_named = found.findings.iter().any(|one| one["check"] == "rabbitmq.alarm" && one["verdict"] == "failed");
        is_named.then(|| found.blames_only("rabbitmq.alarm", "failed", "free memory"))
    })
    .await;
    genesys.stop().await;
}
