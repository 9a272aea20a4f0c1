//! The whole application on RabbitMQ: broker outages, alarms, deleted queues, and foreign messages.

use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::faults::Fault;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::support::edge::{Edge, Pairing, flat, on_rabbit};
use crate::support::process::{Process, configuration};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;
use crate::support::tls::certificates;
use crate::support::{PATIENCE, customer, eventually};

const QUICK: &str = "[sandbox]\nlatency = \"0ms\"\n";
const WORK_QUEUE: &str = "profile-edge.invalidations.0";

async fn on(url: &str) -> Edge {
    Edge::start_with(&format!("{QUICK}{}", on_rabbit(url))).await
}

/// Fills the cache with these customers, so that an applied event causes a miss.
async fn fill_cache(edge: &Edge, customers: &[String]) {
    // Hundreds of cold lookups at once may miss their deadline on a busy machine.
    join_all(customers.iter().map(|customer| {
        let cached = move || async move { (edge.look_up(customer).await.status == 200).then_some(()) };
        eventually("a customer is cached", cached)
    }))
    .await;
}

/// Posts an event for each customer, and returns the customers whose event was accepted. The other answers must ask for
/// a retry.
async fn post_events(edge: &Edge, customers: &[String]) -> Vec<String> {
    let posts = customers.iter().map(|customer| async move {
        let started = Instant::now();
        let answer = edge.post_event(&flat(customer)).await;
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        match answer.status().as_u16() {
            202 => Some(customer.clone()),
            503 => {
                assert!(answer.headers().contains_key("retry-after"));
                None
            }
            other => panic!("{other}: {}", answer.text().await.unwrap()),
        }
    });
    join_all(posts).await.into_iter().flatten().collect()
}

/// Waits until the event of each of these customers is applied.
async fn await_applied(edge: &Edge, customers: &[String]) {
    for customer in customers {
        eventually("every accepted event is applied", || async {
            (!edge.look_up(customer).await.is_hit()).then_some(())
        })
        .await;
    }
}

fn customers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(customer).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerOutage {
    Killed,
    Stopped,
    Alarmed,
    Stalled,
    Broken,
}

/// Lets the broker fail while events arrive. Senders are asked to retry within seconds, lookups continue, every
/// accepted event is applied, and no event becomes a dead letter.
async fn survives(outages: &[BrokerOutage]) {
    let mut server = RabbitServer::start("").await;
    let proxy = Proxy::to(server.port).await;
    let edge = on(&format!("amqp://guest:guest@{}/%2f", proxy.address)).await;
    for outage in outages {
        let all = customers(1..61);
        fill_cache(&edge, &all).await;
        let mut taken = post_events(&edge, &all[..20]).await;
        assert_eq!(taken.len(), 20, "{outage:?}");
        match outage {
            BrokerOutage::Killed => server.kill().await,
            BrokerOutage::Stopped => server.pause().await,
            BrokerOutage::Alarmed => server.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await,
            BrokerOutage::Stalled => proxy.set(Link::Stalled),
            BrokerOutage::Broken => proxy.set(Link::Broken),
        }
        // A broker reports an alarm only to publishing connections.
        taken.extend(post_events(&edge, &all[20..40]).await);
        edge.is_without("queue").await;
        let started = Instant::now();
        assert_eq!(post_events(&edge, &all[20..21]).await, [""; 0], "{outage:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{outage:?}");
        assert_eq!(edge.look_up(&customer(70)).await.status, 200, "{outage:?}");
        for (path, order) in [
            ("replay", json!({ "since": "1h" })),
            ("dead-letters/redrive", json!({ "all": true })),
            ("dead-letters/purge", json!({ "all": true })),
        ] {
            let command = edge.client.post(format!("http://{}/admin/{path}", edge.admin)).json(&order);
            let answer = timeout(PATIENCE, command.send()).await.expect("the command is answered").unwrap();
            assert_eq!(answer.status(), 503, "{path} while {outage:?}");
        }
        match outage {
            BrokerOutage::Killed => server.restart().await,
            BrokerOutage::Stopped => server.unpause().await,
            BrokerOutage::Alarmed => server.ctl(&["set_vm_memory_high_watermark", "0.4"]).await,
            BrokerOutage::Stalled | BrokerOutage::Broken => proxy.set(Link::Whole),
        }
        edge.is_ready().await;
        let after = post_events(&edge, &all[40..]).await;
        assert_eq!(after.len(), 20, "{outage:?}");
        taken.extend(after);
        await_applied(&edge, &taken).await;
        assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_or_killed_broker_costs_retries_and_loses_no_event() {
    survives(&[BrokerOutage::Stopped, BrokerOutage::Killed]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_alarm_or_a_bad_link_costs_retries_and_loses_no_event() {
    survives(&[BrokerOutage::Alarmed, BrokerOutage::Stalled, BrokerOutage::Broken]).await;
}

/// The broker has the queue of the journal, but not its stream, and so confirms nothing. A broker that was killed seconds after
/// the stream had been created was in that state (RabbitMQ 4.3).
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_whose_stream_is_lost_is_named_until_its_queue_is_deleted() {
    let server = RabbitServer::start("").await;
    let edge = on(&server.url("%2f")).await;
    let lose = "ra:process_command({rabbit_stream_coordinator, node()}, {delete_stream, maps:get(name, amqqueue:get_type_state(Q)), #{}})";
    let streams = "Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_stream_queue";
    server.ctl(&["eval", &format!("[{lose} || {streams}].")]).await;
    let one = customers(1..2);
    assert_eq!(post_events(&edge, &one).await, [""; 0]);
    edge.is_without_for("queue", "profile-edge.journal").await;
    // It is connected again and again, and never ready.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        assert_ne!(edge.ready().await["degraded"], json!([]));
    }
    // An older broker deletes no queue whose stream it has lost.
    if server.api("DELETE", "/queues/%2f/profile-edge.journal", None).await.is_some() {
        edge.is_ready().await;
        assert_eq!(post_events(&edge, &one).await, one);
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_work_queue_is_restored_from_the_journal() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let edge = on(&server.url(&vhost)).await;
    let all = customers(1..301);
    fill_cache(&edge, &all).await;
    edge.faults.arm(Fault::PauseBeforeApply);
    assert_eq!(post_events(&edge, &all[..200]).await.len(), 200);
    edge.faults.reached(Fault::PauseBeforeApply, 64).await;
    server.api("DELETE", &format!("/queues/{vhost}/{WORK_QUEUE}"), None).await.expect("the queue is deleted");
    // The journal alone confirms these events, or the recreated queue does.
    assert_eq!(post_events(&edge, &all[200..]).await.len(), 100);
    edge.faults.disarm(Fault::PauseBeforeApply);
    await_applied(&edge, &all).await;
    edge.wait_for_metric("profile_edge_replayed_events_total", 100.0).await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

/// While the store is down nobody consumes, so the broker can cancel no consumer.
#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_deleted_while_the_consumer_is_paused_is_restored() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let mut redis = RedisServer::start(&[]).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", redis.url());
    let edge = Edge::start_with(&format!("{QUICK}{store}{}", on_rabbit(&server.url(&vhost)))).await;
    let all = customers(1..41);
    fill_cache(&edge, &all).await;
    redis.kill().await;
    assert_eq!(post_events(&edge, &all[..20]).await.len(), 20);
    eventually("nobody consumes", || async {
        let queue = server.api("GET", &format!("/queues/{vhost}/{WORK_QUEUE}"), None).await?;
        (queue["consumers"].as_u64() == Some(0)).then_some(())
    })
    .await;
    server.api("DELETE", &format!("/queues/{vhost}/{WORK_QUEUE}"), None).await.expect("the queue is deleted");
    assert_eq!(post_events(&edge, &all[20..]).await.len(), 20);
    redis.restart().await;
    await_applied(&edge, &all).await;
    edge.is_ready().await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_work_queue_lost_between_runs_is_restored_from_the_journal() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let settings = format!("{}{}", Pairing::Redis.settings().await, on_rabbit(&server.url(&vhost)));
    let first = Edge::start_with(&format!("roles = [\"ingest\"]\n{QUICK}{settings}")).await;
    let all = customers(1..41);
    assert_eq!(post_events(&first, &all).await.len(), 40);
    first.stop().await;
    server.api("DELETE", &format!("/queues/{vhost}/{WORK_QUEUE}"), None).await.expect("the queue is deleted");

    let second = Edge::start_with(&format!("{QUICK}{settings}")).await;
    second.wait_for_metric("profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}", 40.0).await;
    assert_eq!(second.metric("profile_edge_replayed_events_total").await, 40.0);
    second.stop().await;
}

/// A broker closes the channel of a delivery that is not acknowledged in time, and redelivers the event. While the
/// store is down, the consumer holds no delivery.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_timeouts_redeliver_and_store_outages_hold_no_delivery() {
    let held = Duration::from_secs(3);
    let server = RabbitServer::start(&format!("consumer_timeout = {}\n", held.as_millis())).await;
    // By default the broker checks once a minute.
    server.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let mut redis = RedisServer::start(&[]).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", redis.url());
    let edge = Edge::start_with(&format!("{QUICK}{store}{}", on_rabbit(&server.url("%2f")))).await;
    let all = customers(1..31);
    fill_cache(&edge, &all).await;
    edge.faults.arm(Fault::PauseBeforeApply);
    assert_eq!(post_events(&edge, &all[..1]).await.len(), 1);
    edge.faults.reached(Fault::PauseBeforeApply, 2).await;
    edge.faults.disarm(Fault::PauseBeforeApply);
    await_applied(&edge, &all[..1]).await;

    redis.kill().await;
    assert_eq!(post_events(&edge, &all[1..]).await.len(), 29);
    let channels = async || -> Option<Vec<(String, u64)>> {
        let channels = server.api("GET", "/channels", None).await?;
        let channels = channels.as_array()?.iter().filter(|channel| channel["consumer_count"].as_u64() > Some(0));
        channels
            .map(|channel| Some((channel["name"].to_string(), channel["messages_unacknowledged"].as_u64()?)))
            .collect()
    };
    let began = Instant::now();
    while began.elapsed() < 2 * held {
        // The broker's statistics are up to five seconds old.
        eventually("no delivery is held", || async {
            channels().await.filter(|channels| channels.iter().all(|(_, held)| *held == 0))
        })
        .await;
    }
    redis.restart().await;
    await_applied(&edge, &all[1..]).await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_are_dead_lettered_with_a_reason() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let edge = on(&server.url(&vhost)).await;
    let all = customers(1..21);
    fill_cache(&edge, &all).await;
    let planted = "Ada Lovelace, ada@example.com";
    let foreign = [
        (planted.as_bytes().to_vec(), "undecodable"),
        (format!("{{\"v\":2,\"id\":\"{planted}\"}}").into_bytes(), "unknown-version"),
        (br#"{"v":1,"id":"e-1","tenant":"10001"}"#.to_vec(), "undecodable"),
        (vec![b'x'; 1 << 20], "undecodable"),
    ];
    for (bytes, _) in &foreign {
        server.publish(&vhost, "profile-edge.events", "shard.0", bytes).await;
    }
    assert_eq!(post_events(&edge, &all).await.len(), 20);
    await_applied(&edge, &all).await;
    edge.wait_for_metric("profile_edge_dead_letters", 4.0).await;

    let admin = format!("http://{}", edge.admin);
    let directory = tempfile::tempdir().unwrap();
    let listed = profile_edge(&directory, &["dead-letters", "list", "--json", "--admin", &admin]);
    let letters: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut listed_letters: Vec<_> =
        letters.iter().map(|letter| (letter["length"].as_u64(), letter["reason"].as_str())).collect();
    let mut expected: Vec<_> = foreign.iter().map(|(bytes, why)| (Some(bytes.len() as u64), Some(*why))).collect();
    listed_letters.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed_letters, expected);
    let id = letters[0]["id"].as_str().unwrap();
    let shown = profile_edge(&directory, &["dead-letters", "show", id, "--admin", &admin]);
    assert!(shown.contains(id) && shown.contains(letters[0]["sha256"].as_str().unwrap()), "{shown}");
    assert!(!format!("{listed}{shown}").contains("Ada"));
    // Listing removes no dead letter.
    assert_eq!(profile_edge(&directory, &["dead-letters", "list", "--admin", &admin]).lines().count(), 4);
    edge.stop().await;
}

/// Runs a command of the binary and returns its output.
fn profile_edge(directory: &TempDir, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    let done = command.args(arguments).current_dir(directory.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// A user without the permission `configure` works with what another user declared, under names of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_may_declare_nothing_uses_what_exists() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let mut url = url::Url::parse(&server.url(&vhost)).unwrap();
    let settings = |url: &url::Url| format!("{QUICK}{}name = \"shop\"\n", on_rabbit(url.as_str()));
    // The first start declares everything.
    Edge::start_with(&settings(&url)).await.stop().await;
    let user = json!({ "password": "limited", "tags": "" });
    server.api("PUT", "/users/limited", Some(user)).await.expect("the user is created");
    let permissions = json!({ "configure": "", "write": ".*", "read": ".*" });
    let path = format!("/permissions/{vhost}/limited");
    server.api("PUT", &path, Some(permissions)).await.expect("the permissions are set");
    url.set_username("limited").unwrap();
    url.set_password(Some("limited")).unwrap();
    let edge = Edge::start_with(&settings(&url)).await;
    assert_eq!(post_events(&edge, &customers(1..5)).await.len(), 4);
    edge.applied("updated", 4.0).await;
    edge.is_ready().await;
    let work = format!("/queues/{vhost}/shop.invalidations.0");
    assert!(server.api("GET", &work, None).await.is_some());
    edge.stop().await;
}

/// A broker that rejects every message on one connection may accept messages on another. So the connection is replaced,
/// and rejected events are accepted when they are posted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_gets_only_nacks_is_replaced() {
    let server = RabbitServer::start("").await;
    // Without a consumer, one event fills a queue of length 0.
    let roles = "roles = [\"ingest\"]\n";
    let edge = Edge::start_with(&format!("{roles}{QUICK}{}", on_rabbit(&server.url("%2f")))).await;
    let connection = async || {
        let connections = server.api("GET", "/connections", None).await?;
        let [one] = connections.as_array()?.as_slice() else { return None };
        one["name"].as_str().map(str::to_owned)
    };
    let before = eventually("the connection is listed", connection).await;
    let policy = json!({ "pattern": WORK_QUEUE, "apply-to": "queues", "priority": 1,
                         "definition": { "max-length": 0, "overflow": "reject-publish" } });
    server.api("PUT", "/policies/%2f/full", Some(policy)).await.expect("the policy is set");
    let customers = customers(1..5);
    eventually("every event is refused", || async { post_events(&edge, &customers).await.is_empty().then_some(()) })
        .await;
    eventually("the connection is replaced", || async { connection().await.filter(|now| *now != before) }).await;
    server.api("DELETE", "/policies/%2f/full", None).await.expect("the policy is removed");
    eventually("every event is accepted", || async {
        (post_events(&edge, &customers).await == customers).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_declared_differently_fails_the_start_and_names_the_difference() {
    let server = RabbitServer::shared().await;
    let vhost = server.vhost().await;
    let classic = json!({ "durable": true, "arguments": { "x-queue-type": "classic" } });
    server.api("PUT", &format!("/queues/{vhost}/{WORK_QUEUE}"), Some(classic)).await.expect("the queue is declared");
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nsandbox.listen = \"127.0.0.1:0\"\n{}",
        on_rabbit(&server.url(&vhost))
    );
    let file = configuration(directory.path(), &settings);
    let mut refused = Process::start(directory.path(), &["run", "--config", &file.display().to_string()], &[]);
    assert_eq!(refused.ended().await, Some(64), "{}", refused.log());
    let log = refused.log();
    for part in ["x-queue-type", WORK_QUEUE, "classic", "quorum"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("guest:guest"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amqps_link_needs_the_right_authority_and_certificate() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(ours.path());
    certificates(other.path());
    let server = RabbitServer::start_with_tls(&ours).await;
    let file = |directory: &TempDir, name: &str| directory.path().join(name).display().to_string();
    let link = |authority: &TempDir| {
        let url = format!("amqps://guest:guest@127.0.0.1:{}/%2f", server.tls_port.unwrap());
        let client = [("cert", "client.pem"), ("key", "client.key")];
        let client = client.map(|(option, name)| format!("{option} = {:?}\n", file(&ours, name))).concat();
        format!("{}[queue.amqp.tls]\nca = {:?}\n{client}", on_rabbit(&url), file(authority, "ca.pem"))
    };
    let edge = Edge::start_with(&format!("{QUICK}{}", link(&ours))).await;
    let all = customers(1..6);
    fill_cache(&edge, &all).await;
    assert_eq!(post_events(&edge, &all).await.len(), 5);
    await_applied(&edge, &all).await;

    // The files are read for each connection, because certificates are renewed.
    let (authority, kept) = (ours.path().join("ca.pem"), ours.path().join("kept.pem"));
    std::fs::copy(&authority, &kept).unwrap();
    std::fs::copy(other.path().join("ca.pem"), &authority).unwrap();
    server.ctl(&["close_all_connections", "test"]).await;
    edge.is_without("queue").await;
    std::fs::copy(&kept, &authority).unwrap();
    edge.is_ready().await;
    edge.stop().await;

    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        "startup_timeout = \"2s\"\nhttp.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
         sandbox.listen = \"127.0.0.1:0\"\n{}",
        link(&other)
    );
    let file = configuration(directory.path(), &settings);
    let mut refused = Process::start(directory.path(), &["run", "--config", &file.display().to_string()], &[]);
    assert_eq!(refused.ended().await, Some(69), "{}", refused.log());
    assert!(refused.log().contains("certificate"), "{}", refused.log());
}
