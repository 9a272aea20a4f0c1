//! The whole application on Redis: which commands it sends, and how it survives outages of Redis.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::future::join_all;
use profile_edge::faults::Fault;
use serde_json::json;

use crate::support::command::run;
use crate::support::edge::{Edge, flat, looked, with_sandbox_of};
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::proxy::{Link, Proxy};
use crate::support::servers::redis::{Deployment, RedisServer, Setup};
use crate::support::tls::{certificate_of_an_authority, certificates};
use crate::support::{customer, eventually};

const UPDATED: &str = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";

fn settings(deployment: &Deployment) -> String {
    format!("[sandbox]\nlatency = \"0ms\"\n[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings)
}

/// Records every command that a server runs until `done` completes: whether a script ran it, and its name.
async fn commands_during(deployment: &Deployment, done: impl Future<Output = ()>) -> Vec<(bool, String)> {
    let client = redis::Client::open(deployment.servers[0].url()).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    done.await;
    let mut marker = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("ECHO").arg("end of the recording").exec_async(&mut marker).await.unwrap();
    let mut commands = Vec::new();
    while let Some(line) = lines.next().await {
        if line.contains("end of the recording") {
            break;
        }
        if line.contains(":probe-") || line.contains("\"cust:cleared\"") {
            // Readiness is probed about once a second, and the generations are read twice.
            continue;
        }
        let name = line.split('"').nth(1).unwrap_or_default().to_ascii_uppercase();
        commands.push((line.contains(" lua] "), name));
    }
    commands
}

/// Counts the commands that are sent to a server until `done` completes, by name.
pub(crate) async fn count_commands(deployment: &Deployment, done: impl Future<Output = ()>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for (scripted, name) in commands_during(deployment, done).await {
        // Commands about connections and the server are left out.
        if !scripted && !matches!(name.as_str(), "PING" | "CLIENT" | "HELLO" | "INFO") {
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    counts
}

fn counts(pairs: &[(&str, u32)]) -> BTreeMap<String, u32> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_misses_and_events_use_the_fewest_redis_commands() {
    let deployment = Deployment::start(Setup::Single).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    edge.look_up(&customer(1)).await;
    edge.look_up(&customer(2)).await;
    // The first event loads the script.
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 202);
    edge.applied("updated", 1.0).await;

    let hits = count_commands(&deployment, async {
        for _ in 0..10 {
            assert!(edge.look_up(&customer(1)).await.is_hit());
        }
    });
    assert_eq!(hits.await, counts(&[("GET", 10)]));
    // One read, the lease, and the fill.
    let miss = count_commands(&deployment, async { assert_eq!(edge.look_up(&customer(9)).await.status, 200) });
    assert_eq!(miss.await, counts(&[("GET", 1), ("EVALSHA", 2)]));
    let merged = json!({ "tenantId": "10001", "customerId": customer(1), "eventType": "customer.merged",
                         "mergedIds": [customer(2), customer(3)] });
    let event = count_commands(&deployment, async {
        assert_eq!(edge.post_event(&merged).await.status(), 202);
        edge.applied("merged", 1.0).await;
    });
    assert_eq!(event.await, counts(&[("EVALSHA", 3)]));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_only_documented_keys_and_all_expire() {
    let deployment = Deployment::start(Setup::Single).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    for n in 1..5 {
        edge.look_up(&customer(n)).await;
    }
    edge.delete(&customer(1)).await;
    edge.change(&customer(2), json!({ "firstName": "Grace" })).await;
    edge.applied("deleted", 1.0).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(run(&edge, &["clear", "--tenant", "10001"]).await.code, Some(0));
    let mut connection = deployment.servers[0].connect().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    assert!(keys.len() >= 7, "{keys:?}");
    let digest = |text: &str| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let of = |text: &str, prefix| text.strip_prefix(prefix).is_some_and(digest);
    let record = |text: &str| of(text, "cust:profile:10001:") || of(text, "cust:ident:10001:");
    for key in &keys {
        let within = |prefix| key.strip_prefix(prefix).and_then(|rest| rest.split_once('}'));
        let documented = record(key)
            || key == "cust:cleared"
            || within("fence:{").is_some_and(|(of, rest)| record(of) && rest.is_empty())
            || within("lock:{").is_some_and(|(of, rest)| record(of) && rest.is_empty())
            || within("seen:{").is_some_and(|(of, rest)| record(of) && rest.strip_prefix(':').is_some_and(digest));
        assert!(documented, "{key}");
        let left: i64 = redis::cmd("PTTL").arg(key).query_async(&mut connection).await.unwrap();
        assert!(left > 0, "{key} never expires");
    }
    edge.stop().await;
}

/// Runs all kinds of requests at once; no command may visit keys other than its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_redis_command_visits_all_keys() {
    let deployment = Deployment::start(Setup::Single).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    let mixed = commands_during(&deployment, async {
        let ids: Vec<String> = (1..=40).map(customer).collect();
        join_all(ids.iter().chain(&ids).map(|id| edge.look_up(id))).await;
        join_all(ids[..20].iter().map(|id| edge.change(id, json!({ "firstName": "Grace" })))).await;
        join_all(ids[20..30].iter().map(|id| edge.delete(id))).await;
        let merge = edge.sandbox(reqwest::Method::POST, "/api/v2/externalcontacts/contacts/merge");
        let merged = merge.json(&json!({ "contactIds": [ids[30], ids[31]] })).send().await.unwrap();
        assert!(merged.status().is_success());
        edge.applied("updated", 20.0).await;
        edge.applied("deleted", 10.0).await;
        edge.applied("merged", 1.0).await;
        join_all(ids.iter().map(|id| edge.look_up(id))).await;
    })
    .await;
    for (scripted, name) in &mixed {
        assert!(!matches!(name.as_str(), "KEYS" | "SCAN") && !name.starts_with("FLUSH"), "{name}, {scripted}");
    }
    let heard = |what: (bool, &str)| mixed.iter().filter(|(scripted, name)| (*scripted, name.as_str()) == what).count();
    assert!(heard((false, "GET")) >= 120 && heard((false, "EVALSHA")) >= 70 && heard((true, "DEL")) >= 30, "{mixed:?}");
    edge.stop().await;
}

/// 5,000 lookups ask two processes for one cold customer at once. The leader's fill is paused until many of them wait.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_fetch_a_cold_customer_once() {
    const LOOKUPS: usize = 5_000;
    const WAITING: f64 = 1_000.0;
    let deployment = Deployment::start(Setup::Single).await;
    // Long timeouts, so that a busy machine causes no failure.
    let settings = settings(&deployment).replace("[store]", "[store]\ntimeout = \"10s\"");
    let settings = format!("{settings}[lookup]\ndeadline = \"60s\"\nlease_ttl = \"60s\"\n");
    let first = Edge::start_with(&settings).await;
    let second = with_sandbox_of(first.sandbox_address());
    let second = Edge::start_with(&format!("{settings}{second}")).await;
    let (one, both) = (customer(1), [&first, &second]);
    for edge in both {
        edge.faults.arm(Fault::PauseBeforeFill);
    }
    // An HTTP/2 connection takes 200 concurrent requests (the server's limit) and one file descriptor at each end.
    let clients: Vec<reqwest::Client> =
        (0..LOOKUPS / 200).map(|_| reqwest::Client::builder().http2_prior_knowledge().build().unwrap()).collect();
    let asked =
        join_all(
            (0..LOOKUPS).map(|n| {
                let client = &clients[n % clients.len()];
                let url = both[n % clients.len() % 2].url("/api/v1/profile");
                let query = [("tenantId", "10001"), ("customerId", one.as_str())];
                async move {
                    looked(client.get(url).header("X-API-Key", "demo-key").query(&query).send().await.unwrap()).await
                }
            }),
        );
    let many_wait = async {
        for edge in both {
            edge.wait_for_metric("profile_edge_lookup_in_flight", WAITING / 2.0).await;
        }
        for edge in both {
            edge.faults.disarm(Fault::PauseBeforeFill);
        }
    };
    let (answers, ()) = tokio::join!(asked, many_wait);
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (200, &answers[0].text), "{}", answer.cache_status);
    }
    let fetched = answers.iter().filter(|answer| answer.cache_status.contains("stored")).count();
    assert_eq!((fetched, first.calls().await.0), (1, 1));
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_redis_link_recovers_at_once() {
    let mut deployment = Deployment::start(Setup::Single).await;
    let proxy = Proxy::to(deployment.servers[0].port).await;
    deployment.settings = format!("url = \"redis://{}\"\n", proxy.address);
    let edge = Edge::start_with(&settings(&deployment)).await;
    edge.look_up(&customer(1)).await;
    proxy.set(Link::Broken);
    assert!(matches!(edge.look_up(&customer(1)).await.status, 200 | 503));
    proxy.set(Link::Whole);
    eventually("hits", || async { edge.look_up(&customer(1)).await.is_hit().then_some(()) }).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_for_the_configured_replicas() {
    let mut deployment = Deployment::start(Setup::Sentinel).await;
    deployment.settings = format!("url = \"{}\"\nmin_replicas = 1\n", deployment.servers[0].url());
    // On a busy machine a replica may confirm late. The event would then be retried and counted as a duplicate.
    let patient = settings(&deployment).replace("[store]", "[store]\ntimeout = \"5s\"");
    let edge = Edge::start_with(&patient).await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    edge.wait_for_metric(UPDATED, 1.0).await;

    deployment.servers[1].kill().await;
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 202);
    let retried = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"retried\"}";
    edge.wait_for_metric(retried, 1.0).await;
    assert_eq!(edge.metric(UPDATED).await, 1.0);
    deployment.servers[1].restart().await;
    // The first attempt has applied it; the retry confirms it.
    let duplicate = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"duplicate\"}";
    edge.wait_for_metric(duplicate, 1.0).await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rediss_link_needs_the_right_authority() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(ours.path());
    certificates(other.path());
    let file = |directory: &tempfile::TempDir, name: &str| directory.path().join(name).display().to_string();
    let (cert, key, ca) = (file(&ours, "server.pem"), file(&ours, "server.key"), file(&ours, "ca.pem"));
    let port = free_port();
    let tls = ["--tls-port", &port.to_string(), "--tls-cert-file", &cert, "--tls-key-file", &key];
    let tls = [&tls[..], &["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"]].concat();
    let server = RedisServer::start(&tls).await;
    let link = |authority: &tempfile::TempDir| {
        let client = [("cert", "client.pem"), ("key", "client.key")];
        let client = client.map(|(option, name)| format!("{option} = {:?}\n", file(&ours, name))).concat();
        let ca = file(authority, "ca.pem");
        let settings = format!("url = \"rediss://127.0.0.1:{port}\"\n[store.redis.tls]\nca = {ca:?}\n{client}");
        format!("[sandbox]\nlatency = \"0ms\"\n[store]\nkind = \"redis\"\n[store.redis]\n{settings}")
    };
    let edge = Edge::start_with(&link(&ours)).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert!(edge.look_up(&customer(1)).await.is_hit());
    edge.stop().await;

    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        "startup_timeout = \"1s\"\nhttp.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n{}",
        link(&other)
    );
    let settings = settings.replace("[sandbox]\n", "[sandbox]\nlisten = \"127.0.0.1:0\"\n");
    let file = configuration(directory.path(), &settings);
    let mut refused = Process::start(directory.path(), &["run", "--config", &file.display().to_string()], &[]);
    assert_eq!(refused.ended().await, Some(69), "{}", refused.log());
    assert!(refused.log().contains("certificate"), "{}", refused.log());
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_certificate_of_an_authority_gets_advice() {
    let directory = tempfile::tempdir().unwrap();
    certificate_of_an_authority(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (cert, key, port) = (file("own.pem"), file("own.key"), free_port());
    let tls = ["--tls-port", &port.to_string(), "--tls-cert-file", &cert, "--tls-key-file", &key];
    let tls = [&tls[..], &["--tls-ca-cert-file", &cert, "--tls-auth-clients", "no"]].concat();
    let _server = RedisServer::start(&tls).await;
    let settings = format!(
        "startup_timeout = \"1s\"\nhttp.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
         sandbox.listen = \"127.0.0.1:0\"\n[store]\nkind = \"redis\"\n[store.redis]\n\
         url = \"rediss://127.0.0.1:{port}\"\n[store.redis.tls]\nca = {cert:?}\n"
    );
    let file = configuration(directory.path(), &settings);
    let mut refused = Process::start(directory.path(), &["run", "--config", &file.display().to_string()], &[]);
    assert_eq!(refused.ended().await, Some(69), "{}", refused.log());
    assert!(refused.log().contains("give it a certificate of its own"), "{}", refused.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_failover_is_followed() {
    let mut deployment = Deployment::start(Setup::Sentinel).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    deployment.servers[0].kill().await;
    eventually("hits from the new master", || async {
        let answer = edge.look_up(&customer(2)).await;
        assert!(matches!(answer.status, 200 | 503), "{}", answer.text);
        answer.is_hit().then_some(())
    })
    .await;
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 202);
    edge.wait_for_metric(UPDATED, 1.0).await;
    assert!(!edge.look_up(&customer(2)).await.is_hit());
    edge.stop().await;
}

/// Removes a master of a cluster while events and lookups arrive; its replica must take over.
async fn loses_its_master(lose: impl AsyncFnOnce(&mut RedisServer)) {
    let mut deployment = Deployment::cluster(1).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    let ids: Vec<String> = (1..=60).map(customer).collect();
    for id in &ids {
        assert_eq!(edge.look_up(id).await.status, 200);
    }
    lose(&mut deployment.servers[0]).await;
    for id in &ids {
        assert_eq!(edge.post_event(&flat(id)).await.status(), 202);
    }
    eventually("every event is applied", || async {
        // An event whose answer was lost with its connection is redelivered and counted as a duplicate.
        let duplicates = edge.metric(&UPDATED.replace("applied", "duplicate")).await;
        (edge.metric(UPDATED).await + duplicates >= 60.0).then_some(())
    })
    .await;
    for id in &ids {
        eventually("every customer is a hit", || async {
            let answer = edge.look_up(id).await;
            assert!(matches!(answer.status, 200 | 503), "{}", answer.text);
            answer.is_hit().then_some(())
        })
        .await;
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_cluster_master_is_survived() {
    loses_its_master(async |master| master.kill().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_cluster_master_is_replaced_by_its_replica() {
    loses_its_master(async |master| master.pause().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_key_of_another_type_is_a_miss_and_blocks_no_event() {
    let deployment = Deployment::start(Setup::Single).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    let client = redis::Client::open(deployment.servers[0].url()).unwrap();
    let mut server = client.get_multiplexed_async_connection().await.unwrap();
    edge.look_up(&customer(1)).await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("cust:profile:*").query_async(&mut server).await.unwrap();
    let [key] = &keys[..] else { panic!("{keys:?}") };
    let spoil = async || {
        let mut server = client.get_multiplexed_async_connection().await.unwrap();
        for name in [key.clone(), format!("fence:{{{key}}}"), format!("lock:{{{key}}}")] {
            let mut spoiling = redis::pipe();
            spoiling.del(&name).ignore().hset(&name, "field", "value").ignore();
            spoiling.exec_async(&mut server).await.unwrap();
        }
    };

    spoil().await;
    let looked = edge.look_up(&customer(1)).await;
    assert!(looked.cache_status.contains("fwd=miss; stored"), "{}", looked.cache_status);
    assert!(edge.look_up(&customer(1)).await.is_hit());
    spoil().await;
    edge.change(&customer(1), json!({ "firstName": "Spoilt" })).await;
    edge.wait_for_metric(UPDATED, 1.0).await;
    assert_eq!(edge.metric("profile_edge_store_up").await, 1.0);
    assert_eq!(edge.look_up(&customer(1)).await.json()["firstName"], "Spoilt");
    assert!(edge.look_up(&customer(1)).await.is_hit());
    spoil().await;
    edge.delete(&customer(1)).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 410);
    edge.stop().await;
}

/// What is wrong with one part of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartialTrouble {
    /// A master takes no data.
    Full,
    /// A master is silent, and has no replica.
    Silent,
    /// The move of one slot to another master does not end.
    Moving,
}

/// A part of a cluster fails and recovers. Events and lookups of the other parts continue meanwhile, and no event is lost.
async fn is_partly_down(trouble: PartialTrouble) {
    const CUSTOMERS: u32 = 400;
    let deployment = Deployment::start(Setup::Cluster).await;
    let command = async |words: &[&str]| deployment.command::<redis::Value>(0, words).await;
    let entries = async || -> Vec<String> { deployment.command(0, &["KEYS", "cust:profile:*"]).await };
    deployment.serve_without_full_coverage().await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    let ids: Vec<String> = (1..=CUSTOMERS).map(customer).collect();
    for id in &ids {
        eventually("a hit", || async { edge.look_up(id).await.is_hit().then_some(()) }).await;
    }
    let at_first = entries().await;
    let lost = match trouble {
        PartialTrouble::Full => {
            command(&["CONFIG", "SET", "maxmemory", "1"]).await;
            at_first.len()
        }
        PartialTrouble::Silent => {
            deployment.servers[0].pause().await;
            at_first.len()
        }
        PartialTrouble::Moving => deployment.begin_to_move_a_slot().await.len(),
    };
    for id in &ids {
        assert_eq!(edge.post_event(&flat(id)).await.status(), 202);
    }
    let all = f64::from(CUSTOMERS);
    // What is unanswered may have taken effect; its redelivery is a duplicate.
    let duplicates = UPDATED.replace("applied", "duplicate");
    let done = async || edge.metric(UPDATED).await + edge.metric(&duplicates).await;
    let healthy = all - u32::try_from(lost).map(f64::from).unwrap();
    eventually("the events of the other parts are applied", || async { (done().await >= healthy).then_some(()) }).await;
    match trouble {
        PartialTrouble::Full => {
            edge.is_without("store").await;
            eventually("a full master deletes", || async { entries().await.is_empty().then_some(()) }).await;
            command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        }
        PartialTrouble::Silent => {
            edge.is_without("store").await;
            deployment.servers[0].unpause().await;
        }
        PartialTrouble::Moving => {
            assert!(done().await < all);
            deployment.end_to_move_the_slot().await;
        }
    }
    eventually("every event is applied", || async { (done().await >= all).then_some(()) }).await;
    edge.is_ready().await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_master_holds_up_only_its_own_events() {
    is_partly_down(PartialTrouble::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_cluster_master_holds_up_only_its_own_events() {
    is_partly_down(PartialTrouble::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_move_does_not_end_holds_up_only_its_own_events() {
    is_partly_down(PartialTrouble::Moving).await;
}

/// A user that may run no script fails every event alike: an outage, with the reason of the server, and no poison.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_permission_is_an_outage_and_no_event_is_poison() {
    let deployment = Deployment::start(Setup::Single).await;
    let edge = Edge::start_with(&settings(&deployment)).await;
    let mut server = deployment.servers[0].connect().await.unwrap();
    let permit = async |server: &mut redis::aio::MultiplexedConnection, rules: &[&str]| {
        redis::cmd("ACL").arg("SETUSER").arg("default").arg(rules).exec_async(server).await.unwrap();
    };
    permit(&mut server, &["-evalsha", "-eval"]).await;
    for n in 1..=30 {
        assert_eq!(edge.post_event(&flat(&customer(n))).await.status(), 202);
    }
    edge.is_without("store").await;
    assert_eq!(edge.metric("profile_edge_store_up").await, 0.0);
    permit(&mut server, &["+@all"]).await;
    edge.wait_for_metric(UPDATED, 30.0).await;
    edge.is_ready().await;
    assert_eq!(edge.metric("profile_edge_dead_letters").await, 0.0);
    edge.stop().await;
}

/// Redis delays what comes on a connection after a delayed write.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_delays_writes_hits_are_hits_and_misses_go_past_it() {
    const WARM: u32 = 16;
    let server = RedisServer::start(&[]).await;
    let settings = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = {:?}\n", server.url());
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{settings}")).await;
    for n in 1..=WARM {
        assert!(edge.look_up(&customer(n)).await.cache_status.contains("stored"));
    }
    let mut admin = server.connect().await.unwrap();
    redis::cmd("CLIENT").arg(&["PAUSE", "600000", "WRITE"]).exec_async(&mut admin).await.unwrap();
    for round in 1..=6 {
        let cold = WARM + 8 * round;
        let asked = (1..=WARM).chain(cold..cold + 8);
        let answers = join_all(asked.map(async |n| (n, edge.look_up(&customer(n)).await)));
        for (n, answer) in answers.await {
            let expected = if n <= WARM { "profile-edge; hit" } else { "fwd=bypass" };
            let cache_status = &answer.cache_status;
            assert!(cache_status.contains(expected), "{n} in round {round}: {} {cache_status}", answer.status);
            assert_eq!(answer.status, 200);
        }
    }
    redis::cmd("CLIENT").arg("UNPAUSE").exec_async(&mut admin).await.unwrap();
    eventually("a miss is stored", || async {
        edge.look_up(&customer(WARM + 1)).await;
        edge.look_up(&customer(WARM + 1)).await.is_hit().then_some(())
    })
    .await;
    edge.stop().await;
}
