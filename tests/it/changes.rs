//! The change feed: Server-Sent Events of applied invalidations, in each lookup process, and requests of browsers.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};

use crate::support::edge::{Edge, Pairing, flat, with_sandbox_of};
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::proxy::Proxy;
use crate::support::servers::redis::{Deployment, RedisServer, Setup};
use crate::support::{PATIENCE, customer, eventually};

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
struct StreamEvent {
    id: String,
    name: String,
    data: Value,
}

/// An open stream.
struct Changes {
    response: Response,
    unread: String,
}

impl Changes {
    /// Opens a stream, and waits until the service has begun it.
    async fn open(edge: &Edge, query: &str, last: Option<&str>) -> (Self, StreamEvent) {
        let mut request =
            edge.client.get(edge.url(&format!("/api/v1/changes?{query}"))).header("X-API-Key", "demo-key");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self { response, unread: String::new() };
        let first = stream.next().await.unwrap();
        (stream, first)
    }

    /// Returns the next event, or the id that the stream begins with; `None` at its end.
    async fn next(&mut self) -> Option<StreamEvent> {
        timeout(PATIENCE, self.read_next()).await.expect("an event arrives")
    }

    async fn read_next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some((event, rest)) = self.unread.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.unread = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                if let Some(id) = field("id:") {
                    let (id, name) = (id.to_owned(), field("event:").unwrap_or_default().to_owned());
                    let data = field("data:").map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
                    return Some(StreamEvent { id, name, data });
                }
                continue;
            }
            let chunk = self.response.chunk().await.ok()??;
            self.unread.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Returns the next change: its handle and kind.
    async fn change(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        assert_eq!(event.name, "change", "{event:?}");
        let text = |name: &str| event.data[name].as_str().unwrap().to_owned();
        (text("profileKey"), text("kind"))
    }
}

async fn handle(edge: &Edge, customer: &str) -> String {
    edge.look_up(customer).await.headers["x-profile-key"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_event_is_heard_under_the_handle_of_the_lookup() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n").await;
    let (one, two) = (customer(1), customer(2));
    let handles = [handle(&edge, &one).await, handle(&edge, &two).await];
    assert_ne!(handles[0], handles[1]);
    assert_eq!(handle(&edge, &one).await, handles[0], "a hit and a miss have the same handle");
    let (mut all, _) = Changes::open(&edge, "tenantId=10001", None).await;
    let (mut only, _) = Changes::open(&edge, &format!("tenantId=10001&profileKeys={}", handles[1]), None).await;
    assert_eq!(edge.post_event(&flat(&one)).await.status(), 202);
    assert_eq!(all.change().await, (handles[0].clone(), "updated".to_owned()));
    let mut deleted = flat(&two);
    deleted["eventType"] = json!("customer.deleted");
    assert_eq!(edge.post_event(&deleted).await.status(), 202);
    let expected = (handles[1].clone(), "deleted".to_owned());
    assert_eq!(all.change().await, expected);
    assert_eq!(only.change().await, expected, "the other change is not heard here");
    assert_eq!(edge.look_up(&two).await.status, 410);
    assert_eq!(handle(&edge, &two).await, handles[1], "a tombstone has the same handle");
    assert!((edge.metric("profile_edge_change_streams").await - 2.0).abs() < f64::EPSILON);
    drop((all, only));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_names_identifiers_is_one_change() {
    for pairing in [Pairing::Embedded, Pairing::Redis] {
        let edge = Edge::start_on(pairing, "[sandbox]\nlatency = \"0ms\"\n").await;
        let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
        for one in [customer(1), customer(2)] {
            // The event has the whole contact, with its numbers and addresses.
            edge.change(&one, json!({ "firstName": "Augusta" })).await;
            assert_eq!(stream.change().await, (handle(&edge, &one).await, "updated".to_owned()));
        }
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_heard_in_each_process_whichever_applied_it() {
    for pairing in [Pairing::Redis, Pairing::RedisAndRabbit] {
        let shared = pairing.settings().await;
        let first = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{shared}")).await;
        let lookup = "roles = [\"lookup\"]\n[sandbox]\nlatency = \"0ms\"\n";
        let second = Edge::start_with(&format!("{lookup}{shared}")).await;
        let one = customer(1);
        let handles = [handle(&first, &one).await, handle(&second, &one).await];
        let (mut here, _) = Changes::open(&first, "tenantId=10001", None).await;
        let (mut there, _) = Changes::open(&second, "tenantId=10001", None).await;
        assert_eq!(first.post_event(&flat(&one)).await.status(), 202);
        // Without http.token_secret each process has its own handles.
        assert_eq!(here.change().await.0, handles[0]);
        assert_eq!(there.change().await.0, handles[1]);
        drop((here, there));
        first.stop().await;
        second.stop().await;
    }
}

/// A consumer applies events, and is killed before it acknowledges them; another one gets them again, and more.
#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_heard_once_although_a_consumer_is_killed() {
    const EACH: u32 = 200;
    let shared = Pairing::RedisAndRabbit.settings().await;
    let front =
        Edge::start_with(&format!("roles = [\"ingest\", \"lookup\"]\n[sandbox]\nlatency = \"0ms\"\n{shared}")).await;
    let (directory, admin) = (tempfile::tempdir().unwrap(), free_port());
    let own = format!(
        "roles = [\"consumer\"]\nhttp.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:{admin}\"\n\
         consumer.concurrency = 512\nsandbox.enabled = false\n{shared}{}",
        with_sandbox_of(front.sandbox_address())
    );
    let file = configuration(directory.path(), &own).display().to_string();
    let mut handles = Vec::new();
    for n in 1..=2 * EACH {
        handles.push(handle(&front, &customer(n)).await);
    }
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(Changes::open(&front, "tenantId=10001", None).await.0);
    }
    let hear = async |streams: &mut Vec<Changes>, handles: &[String]| {
        let expected: BTreeSet<&str> = handles.iter().map(String::as_str).collect();
        for stream in streams {
            let mut heard = BTreeSet::new();
            for _ in handles {
                assert!(heard.insert(stream.change().await.0), "a change is heard once");
            }
            assert_eq!(heard.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
        }
    };
    let (before, after) = handles.split_at(EACH as usize);
    let held = [("PROFILE_EDGE_FAULTS", "PauseBeforeAck")];
    let mut consumer = Process::start(directory.path(), &["run", "--config", &file], &held);
    for n in 1..=EACH {
        assert_eq!(front.post_event(&flat(&customer(n))).await.status(), 202);
    }
    hear(&mut streams, before).await;
    consumer.signal("KILL");
    consumer.ended().await;
    let mut next = Process::start(directory.path(), &["run", "--config", &file], &[]);
    for n in EACH + 1..=2 * EACH {
        assert_eq!(front.post_event(&flat(&customer(n))).await.status(), 202);
    }
    // The redelivered events come first, and are not heard again.
    hear(&mut streams, after).await;
    next.signal("TERM");
    assert_eq!(next.ended().await, Some(0), "{}", next.log());
    drop(streams);
    front.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_after_the_last_event_or_says_reset() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n").await;
    let (mut stream, start) = Changes::open(&edge, "tenantId=10001", None).await;
    assert_eq!((start.name.as_str(), &start.data), ("", &Value::Null));
    for n in 1..=3 {
        assert_eq!(edge.post_event(&flat(&customer(n))).await.status(), 202);
    }
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(stream.next().await.unwrap());
    }
    drop(stream);
    let (mut resumed, first) = Changes::open(&edge, "tenantId=10001", Some(&events[0].id)).await;
    assert_eq!((first.name.as_str(), &first.id), ("", &events[0].id));
    assert_eq!(resumed.next().await.as_ref(), Some(&events[1]));
    assert_eq!(resumed.next().await.as_ref(), Some(&events[2]));
    for unknown in ["00000000000000000-1", "nonsense", "0000000000000001-1"] {
        let (_, first) = Changes::open(&edge, "tenantId=10001", Some(unknown)).await;
        assert_eq!((first.name.as_str(), first.data), ("reset", json!({ "reason": "resume" })), "{unknown}");
    }
    drop(resumed);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_events_do_not_show_how_many_there_were() {
    let edge = Edge::start_with("[sandbox]\nlatency = \"0ms\"\n").await;
    let (mut stream, start) = Changes::open(&edge, "tenantId=10001", None).await;
    let mut ids = vec![start.id];
    for n in 1..=4 {
        assert_eq!(edge.post_event(&flat(&customer(n))).await.status(), 202);
        ids.push(stream.next().await.unwrap().id);
    }
    let numbers: Vec<u128> = ids.iter().map(|id| u128::from_str_radix(&id.replace('-', ""), 16).unwrap()).collect();
    for pair in numbers.windows(2) {
        assert!(pair[0].abs_diff(pair[1]) > 1 << 64, "{ids:?}");
    }
    drop(stream);
    edge.stop().await;
}

/// What a process without streams would hear costs Redis and the process a message for each event.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_heard_from_the_first_stream_on() {
    let server = RedisServer::start(&[]).await;
    let settings = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", server.url());
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{settings}")).await;
    let admin = server.connect().await.unwrap();
    let subscribers = async || {
        let mut count = redis::cmd("PUBSUB");
        count.arg("NUMSUB").arg("cust:changes:0");
        let (_, count): (String, i64) = count.query_async(&mut admin.clone()).await.unwrap();
        count
    };
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    edge.applied("updated", 1.0).await;
    assert_eq!(subscribers().await, 0);
    let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    assert_eq!(subscribers().await, 1);
    assert_eq!(edge.post_event(&flat(&customer(2))).await.status(), 202);
    assert_eq!(stream.change().await.0, handle(&edge, &customer(2)).await);
    drop(stream);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_to_redis_resets_the_streams() {
    let server = RedisServer::start(&[]).await;
    let settings = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{}\"\n", server.url());
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{settings}")).await;
    let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    let mut admin = server.connect().await.unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec_async(&mut admin).await.unwrap();
    // One when it breaks, one when it is whole again.
    for _ in 0..2 {
        let event = stream.next().await.unwrap();
        assert_eq!((event.name.as_str(), event.data), ("reset", json!({ "reason": "gap" })));
    }
    let one = handle(&edge, &customer(1)).await;
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    assert_eq!(stream.change().await.0, one);
    drop(stream);
    edge.stop().await;
}

/// Changes a customer until the stream hears it; returns how often the stream was reset before.
async fn resets_before_a_change(edge: &Edge, stream: &mut Changes) -> usize {
    let changing = async {
        let mut due = interval(Duration::from_millis(50));
        loop {
            due.tick().await;
            edge.post_event(&flat(&customer(1))).await;
        }
    };
    let hearing = async {
        let mut resets = 0;
        loop {
            match stream.next().await.unwrap().name.as_str() {
                "reset" => resets += 1,
                _ => return resets,
            }
        }
    };
    tokio::select! {
        resets = hearing => resets,
        () = changing => 0,
    }
}

/// The name is `localhost`. The old server lives on, and nothing happens there any more.
#[tokio::test(flavor = "multi_thread")]
async fn streams_follow_a_redis_name_that_moves() {
    let (old, new) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let proxy = Proxy::to(old.port).await;
    let url = format!("redis://localhost:{}", proxy.address.port());
    let settings = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{url}\"\nmax_connection_age = \"1s\"\n");
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{settings}")).await;
    let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    let connected = proxy.accepted();
    eventually("connections are replaced", || async { (proxy.accepted() > connected + 20).then_some(()) }).await;
    assert_eq!(resets_before_a_change(&edge, &mut stream).await, 0, "the name leads to the same server");
    proxy.move_to(new.port);
    let event = loop {
        let event = stream.next().await.unwrap();
        if event.name != "change" {
            break event;
        }
    };
    assert_eq!((event.name.as_str(), event.data), ("reset", json!({ "reason": "gap" })));
    resets_before_a_change(&edge, &mut stream).await;
    drop(stream);
    edge.stop().await;
}

/// The sentinels agreed on another master, and the old one lives on. The first sentinel accepts connections and is silent.
#[tokio::test(flavor = "multi_thread")]
async fn streams_follow_the_sentinels_although_one_of_them_is_silent() {
    let deployment = Deployment::start(Setup::Sentinel).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = format!("urls = [\"redis://{}\", ", silent.local_addr().unwrap());
    let settings = deployment.settings.replace("urls = [", &first);
    let settings = format!("[store]\nkind = \"redis\"\n[store.redis]\n{settings}");
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{settings}")).await;
    let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    assert_eq!(resets_before_a_change(&edge, &mut stream).await, 0);
    deployment.promote_unnoticed().await;
    while stream.next().await.unwrap().name != "reset" {}
    resets_before_a_change(&edge, &mut stream).await;
    drop(stream);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_the_streams() {
    let edge = Edge::start().await;
    let (mut stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    let (end, ()) = tokio::join!(stream.next(), edge.stop());
    assert_eq!(end, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_streams_are_checked() {
    let edge = Edge::start_with("[http]\nmax_change_streams = 1\n").await;
    let ask = async |query: &str, key: &str| {
        let request = edge.client.get(edge.url(&format!("/api/v1/changes{query}"))).header("X-API-Key", key);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap())
    };
    assert_eq!(ask("?tenantId=10001", "wrong").await.0, 401);
    assert_eq!(ask("?tenantId=99", "demo-key").await.0, 403);
    for (query, field) in
        [("", "tenantId"), ("?tenantId=a%20b", "tenantId"), ("?tenantId=10001&profileKeys=", "profileKeys")]
    {
        let (status, problem) = ask(query, "demo-key").await;
        assert_eq!((status, problem["field"].as_str()), (400, Some(field)), "{query}");
    }
    let (stream, _) = Changes::open(&edge, "tenantId=10001", None).await;
    let (status, problem) = ask("?tenantId=10001", "demo-key").await;
    assert_eq!((status, &problem["code"]), (503, &json!("shed")));
    drop(stream);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_changes_leave_half_of_the_connections_to_others() {
    let edge = Edge::start_with("[http.limits]\nmax_connections = 16\n").await;
    let mut streams = Vec::new();
    // Half of the half: the rest is for other callers.
    for _ in 0..4 {
        streams.push(Changes::open(&edge, "tenantId=10001", None).await);
    }
    let fifth = edge.client.get(edge.url("/api/v1/changes?tenantId=10001")).header("X-API-Key", "demo-key");
    assert_eq!(fifth.send().await.unwrap().status(), 503);
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    drop(streams);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_page_of_the_sandbox_loads_nothing_and_may_call() {
    let edge = Edge::start().await;
    let origin = format!("http://{}", edge.sandbox_address());
    let page = edge.client.get(format!("{origin}/")).send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let text = page.text().await.unwrap();
    assert!(text.contains(&format!("value=\"http://{}\"", edge.public)), "the service is where the sandbox posts to");
    assert!(!text.contains(" src=") && !text.contains("<link") && !text.contains("@import"));
    let url = edge.url(&format!("/api/v1/profile?tenantId=10001&customerId={}", customer(1)));
    let request = edge.client.get(url).header("X-API-Key", "demo-key").header("Origin", &origin);
    assert_eq!(request.send().await.unwrap().headers()["access-control-allow-origin"], origin.as_str());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_allowed_origins_may_call_and_others_may_not() {
    let page = "https://desktop.example.com";
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n[http]\ncors_origins = [\"{page}\"]\n")).await;
    let url = edge.url(&format!("/api/v1/profile?tenantId=10001&customerId={}", customer(1)));
    let preflight = async |origin: &str| {
        let request = edge.client.request(Method::OPTIONS, &url).header("Origin", origin);
        let request = request.header("Access-Control-Request-Method", "GET");
        request.header("Access-Control-Request-Headers", "x-api-key").send().await.unwrap()
    };
    let allowed = preflight(page).await;
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()["access-control-allow-origin"], page);
    for header in ["x-api-key", "inin-correlation-id", "traceparent"] {
        let allowed = allowed.headers()["access-control-allow-headers"].to_str().unwrap();
        assert!(allowed.split(", ").any(|allowed| allowed == header), "{allowed}");
    }
    let foreign = preflight("https://desktop.example.com.evil.example").await;
    assert_eq!(foreign.status(), 403);
    assert!(!foreign.headers().contains_key("access-control-allow-origin"));
    for (origin, is_allowed) in [(page, true), ("https://evil.example", false)] {
        let request = edge.client.get(&url).header("X-API-Key", "demo-key").header("Origin", origin);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().contains_key("access-control-allow-origin"), is_allowed, "{origin}");
        assert_eq!(answer.headers()["vary"], "origin");
    }
    // Not of a page: nothing is added.
    assert!(!edge.look_up(&customer(1)).await.headers.contains_key("vary"));
    edge.stop().await;
}
