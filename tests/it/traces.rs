//! Traces, as a collector gets them from the real binary: their content, their way through the queue, and that failures
//! of the collector do not affect requests.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::collector::{Collector, CollectorBehaviour};
use crate::support::edge::Pairing;
use crate::support::process::{Ports, Process, configuration};
use crate::support::{customer, eventually, tls};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CAUSE: &str = "00f067aa0ba902b7";

/// The trace context of a caller that records its trace.
fn traceparent() -> String {
    format!("00-{TRACE}-{CAUSE}-01")
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new()
}

/// The demo, with its traces sent to a collector.
struct Traced {
    process: Process,
    ports: Ports,
    client: Client,
    /// Removed when this is dropped.
    _directory: tempfile::TempDir,
}

impl Traced {
    async fn start(endpoint: &str, more: &[(&str, &str)]) -> Self {
        let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
        let mut environment = vec![("PROFILE_EDGE__TELEMETRY__ENDPOINT", endpoint)];
        environment.extend_from_slice(more);
        let process = ports.start(directory.path(), &environment);
        let client = client();
        ports.ready(&client).await;
        Self { process, ports, client, _directory: directory }
    }

    fn lookup(&self, customer: &str) -> RequestBuilder {
        let request = self.client.get(format!("http://127.0.0.1:{}/api/v1/profile", self.ports.public));
        request.query(&[("tenantId", "10001"), ("customerId", customer)]).header("X-API-Key", "demo-key")
    }

    async fn stop(mut self) -> String {
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await, Some(0), "{}", self.process.log());
        self.process.log()
    }
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_continues_the_callers_trace_and_contains_its_fetch() {
    let collector = Collector::start(CollectorBehaviour::Takes).await;
    let headers = ("PROFILE_EDGE__TELEMETRY__HEADERS__X-COLLECTOR-KEY", "let-me-in");
    let edge = Traced::start(&collector.endpoint(), &[headers]).await;
    let one = customer(1);
    let request = edge.lookup(&one).header("traceparent", traceparent()).header("X-Request-Id", "request-1");
    assert_eq!(status(request).await, 200);

    let lookup = collector.span("lookup", |_| true).await;
    assert_eq!((lookup.trace.as_str(), lookup.parent.as_str()), (TRACE, CAUSE));
    assert_eq!(lookup.service, "profile-edge");
    for (name, value) in [("tenant", "10001"), ("caller", "demo"), ("result", "miss"), ("request_id", "request-1")] {
        assert_eq!(lookup.attribute(name), value, "{name}");
    }
    let key = lookup.attribute("key");
    assert!(key.starts_with("cust:profile:10001:"), "{key}");
    let lead = collector.span("lead", |_| true).await;
    assert_eq!((&lead.trace, &lead.parent), (&lookup.trace, &lookup.id));
    assert_eq!((lead.attribute("key"), lead.attribute("cause")), (key, "miss"));
    let fetch = collector.span("fetch", |_| true).await;
    assert_eq!((&fetch.trace, &fetch.parent), (&lookup.trace, &lead.id));
    assert_eq!((fetch.attribute("outcome"), fetch.attribute("attempts")), ("found", "1"));
    assert!(fetch.nanos <= lead.nanos && fetch.nanos <= lookup.nanos, "{fetch:?} {lookup:?}");

    // A hit is one span. An invalid or repeated trace context starts a new trace.
    let broken = ["00-0-0-01".to_owned(), traceparent().to_uppercase(), format!("ff{}", &traceparent()[2..])];
    for (n, context) in broken.iter().enumerate() {
        let request = edge.lookup(&one).header("traceparent", context).header("X-Request-Id", format!("broken-{n}"));
        assert_eq!(status(request).await, 200);
        let hit = collector.span("lookup", |span| span.attribute("request_id") == format!("broken-{n}")).await;
        assert_eq!((hit.attribute("result"), hit.parent.as_str()), ("hit", ""));
        assert_ne!(hit.trace, TRACE);
        assert_eq!(collector.spans().iter().filter(|span| span.trace == hit.trace).count(), 1);
    }
    let twice = edge.lookup(&one).header("traceparent", traceparent()).header("traceparent", traceparent());
    assert_eq!(status(twice.header("X-Request-Id", "twice")).await, 200);
    let twice = collector.span("lookup", |span| span.attribute("request_id") == "twice").await;
    assert_eq!(twice.parent, "");
    // A trace that the caller does not record is not recorded here.
    let unrecorded = format!("00-{}-{CAUSE}-00", "a".repeat(32));
    assert_eq!(status(edge.lookup(&one).header("traceparent", unrecorded)).await, 200);

    edge.stop().await;
    assert!(!collector.spans().iter().any(|span| span.trace == "a".repeat(32)));
    let requests = collector.requests();
    assert!(requests.iter().all(|(headers, _)| headers["x-collector-key"] == "let-me-in"));
    assert!(requests.iter().all(|(headers, _)| headers["content-type"] == "application/x-protobuf"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_requests_are_not_recorded() {
    let collector = Collector::start(CollectorBehaviour::Takes).await;
    let edge = Traced::start(&collector.endpoint(), &[]).await;
    let stranger = edge.client.get(format!("http://127.0.0.1:{}/api/v1/profile", edge.ports.public));
    let stranger = stranger.query(&[("tenantId", "10001"), ("customerId", &customer(1))]);
    assert_eq!(status(stranger.header("traceparent", traceparent())).await, 401);
    let webhook = edge.client.post(format!("http://127.0.0.1:{}/webhooks/10001", edge.ports.public));
    let webhook = webhook.json(&json!({ "tenantId": "10001", "customerId": customer(1) }));
    assert_eq!(status(webhook.header("traceparent", traceparent())).await, 401);
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    edge.stop().await;
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.name == "lookup"), "what waited was posted at the end");
    assert!(!spans.iter().any(|span| span.trace == TRACE || span.name == "webhook"), "{spans:?}");
}

/// Posts an event with a trace context, and follows it to its effect.
async fn follow(collector: &Collector, client: &Client, ingest: u16, event: &str) {
    let body = json!({ "tenantId": "10001", "customerId": customer(7), "eventId": event });
    let request = client.post(format!("http://127.0.0.1:{ingest}/webhooks/10001")).header("X-API-Key", "demo-secret");
    assert_eq!(status(request.json(&body).header("traceparent", traceparent())).await, 202);

    let webhook = collector.span("webhook", |_| true).await;
    assert_eq!((webhook.trace.as_str(), webhook.parent.as_str()), (TRACE, CAUSE));
    for (name, value) in [("event", event), ("shape", "flat"), ("outcome", "queued"), ("events", "1")] {
        assert_eq!(webhook.attribute(name), value, "{name}");
    }
    let publish = collector.span("publish", |_| true).await;
    assert_eq!((&publish.trace, &publish.parent), (&webhook.trace, &webhook.id));
    assert_eq!(publish.attribute("event"), event);
    let apply = collector.span("apply", |_| true).await;
    assert_eq!((&apply.trace, &apply.parent), (&webhook.trace, &publish.id));
    for (name, value) in [("event", event), ("kind", "updated"), ("verdict", "applied"), ("tenant", "10001")] {
        assert_eq!(apply.attribute(name), value, "{name}");
    }
    assert!(![webhook, publish, apply].iter().any(|span| span.is_error));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_webhook_embedded_queue_and_effect() {
    let collector = Collector::start(CollectorBehaviour::Takes).await;
    let edge = Traced::start(&collector.endpoint(), &[]).await;
    follow(&collector, &edge.client, edge.ports.public, "4cbedb0f-4dfd-4c8e-9e57-0acded092527").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_webhook_rabbitmq_and_effect_in_another_process() {
    let (collector, client, directory) =
        (Collector::start(CollectorBehaviour::Takes).await, client(), tempfile::tempdir().unwrap());
    let shared = Pairing::RedisAndRabbit.settings().await;
    let file = configuration(directory.path(), &shared).display().to_string();
    let endpoint = collector.endpoint();
    let start = |role: &str, ports: &Ports, path: &Path| {
        let environment = [
            ("PROFILE_EDGE_CONFIG", file.as_str()),
            ("PROFILE_EDGE__TELEMETRY__ENDPOINT", &endpoint),
            ("PROFILE_EDGE__TELEMETRY__SERVICE_NAME", role),
            ("PROFILE_EDGE__ROLES", role),
        ];
        ports.start(path, &environment)
    };
    let (one, other) = (Ports::draw(), Ports::draw());
    let mut ingest = start("ingest", &one, directory.path());
    let mut consumer = start("consumer", &other, directory.path());
    one.ready(&client).await;
    other.ready(&client).await;

    follow(&collector, &client, one.public, "01ARZ3NDEKTSV4RRFFQ69G5FAV").await;
    let of = |name: &str| collector.spans().into_iter().find(|span| span.name == name).unwrap().service;
    assert_eq!([of("webhook"), of("publish"), of("apply")], ["ingest", "ingest", "consumer"]);
    for process in [&mut ingest, &mut consumer] {
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0), "{}", process.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_recorded_and_traces_hold_no_personal_data() {
    const RAW_ID: &str = "CANARY-CUSTOMER-4711";
    let collector = Collector::start(CollectorBehaviour::Takes).await;
    let edge =
        Traced::start(&collector.endpoint(), &[("RUST_LOG", "trace"), ("PROFILE_EDGE__LOG__FORMAT", "json")]).await;
    let sandbox = format!("http://127.0.0.1:{}", edge.ports.sandbox);
    let contact = format!("{sandbox}/api/v2/externalcontacts/contacts/{}", customer(1));
    let person = json!({ "firstName": "Zephyrina-Canaryname", "workEmail": "zephyrina.canary@example.com" });
    assert_eq!(status(edge.client.patch(&contact).bearer_auth("sandbox-editor").json(&person)).await, 200);
    let behave = async |behaviour: Value| {
        let request = edge.client.post(format!("{sandbox}/sandbox/behaviour")).bearer_auth("sandbox-editor");
        assert_eq!(status(request.json(&behaviour)).await, 200);
    };
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    assert_eq!(status(edge.lookup(RAW_ID)).await, 404);
    behave(json!({ "fail_status": 500 })).await;
    assert_eq!(status(edge.lookup(&customer(2))).await, 503);
    // Its own task logs it, which continues after the end of the lookup.
    for n in 10.. {
        status(edge.lookup(&customer(n)).header("X-Request-Id", "request-2")).await;
        if edge.process.log().contains("breaker is open") {
            break;
        }
        assert!(n < 200, "the breaker opens");
    }
    behave(json!({ "fail_status": null })).await;
    let recovered = || async { (status(edge.lookup(&customer(4))).await == 200).then_some(()) };
    eventually("genesys answers again", recovered).await;
    behave(json!({ "malformed": true })).await;
    assert_eq!(status(edge.lookup(&customer(3))).await, 502);
    let webhook = edge.client.post(format!("http://127.0.0.1:{}/webhooks/10001", edge.ports.public));
    let webhook = webhook.header("X-API-Key", "demo-secret");
    for (event, answer) in [
        (json!({ "tenantId": "10001", "customerId": RAW_ID, "eventId": format!("change-of-{RAW_ID}") }), 202),
        (json!({ "tenantId": "10001", "customerId": [RAW_ID] }), 400),
        (json!({ "tenantId": "10002", "customerId": RAW_ID }), 403),
    ] {
        assert_eq!(status(webhook.try_clone().unwrap().json(&event)).await, answer);
    }
    let failed = collector.span("fetch", |span| span.attribute("outcome") == "failed").await;
    assert!(failed.is_error);
    assert!(failed.attribute("attempts").parse::<u32>().unwrap() > 1, "{failed:?}");
    assert!(collector.span("lookup", |span| span.attribute("result") == "error").await.is_error);
    for outcome in ["malformed", "foreign", "queued"] {
        collector.span("webhook", |span| span.attributes.get("outcome").is_some_and(|told| told == outcome)).await;
    }
    let log = edge.stop().await;
    let line = |message: &str| -> Value {
        let line = log.lines().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{message} is logged"));
        serde_json::from_str(line).unwrap()
    };
    let refused = line("lookup failed");
    let id = refused["span"]["request_id"].as_str().unwrap();
    let lookup = collector.span("lookup", |span| span.attribute("request_id") == id).await;
    assert_eq!(
        (&refused["span"]["trace_id"], &refused["key"]),
        (&json!(lookup.trace), &json!(lookup.attribute("key")))
    );
    assert_eq!(line("breaker is open")["span"]["request_id"], "request-2");
    let one = customer(1);
    let planted = [RAW_ID, "Zephyrina", "zephyrina", "demo-key", "demo-secret", "sandbox-editor", one.as_str()];
    let requests = collector.requests();
    assert!(!requests.is_empty());
    for text in planted {
        let is_in = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!requests.iter().any(|(_, body)| is_in(body)), "{text} is in a trace");
        assert!(!is_in(log.as_bytes()), "{text} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_collector_fails_no_lookup_and_is_logged_once() {
    let collector = Collector::start(CollectorBehaviour::Stalls).await;
    let edge = Traced::start(&collector.endpoint(), &[("PROFILE_EDGE__TELEMETRY__TIMEOUT", "100ms")]).await;
    let dropped = "profile_edge_trace_spans_total{outcome=\"dropped\"}";
    let exported = "profile_edge_trace_spans_total{outcome=\"exported\"}";
    // More spans than the queue holds, while it is not emptied.
    let lookups = (0..8).map(|n| {
        let request = edge.lookup(&customer(n + 1));
        async move {
            for _ in 0..800 {
                assert_eq!(status(request.try_clone().unwrap()).await, 200);
            }
        }
    });
    futures_util::future::join_all(lookups).await;
    for manner in [CollectorBehaviour::Stalls, CollectorBehaviour::Fails] {
        collector.behave(manner);
        let before = collector.asked();
        while collector.asked() < before + 3 {
            assert_eq!(status(edge.lookup(&customer(1))).await, 200);
        }
    }
    assert!(edge.ports.metric(&edge.client, dropped).await > 0.0);
    assert_eq!(edge.ports.metric(&edge.client, exported).await, 0.0);
    collector.behave(CollectorBehaviour::Takes);
    assert_eq!(status(edge.lookup(&customer(1)).header("traceparent", traceparent())).await, 200);
    collector.span("lookup", |span| span.trace == TRACE).await;
    edge.process.wait_for_log("the collector accepts traces again").await;
    assert!(edge.ports.metric(&edge.client, exported).await > 0.0);
    let log = edge.stop().await;
    assert_eq!(log.matches("the collector does not accept traces").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_stops_in_time_with_a_stalled_collector() {
    let collector = Collector::start(CollectorBehaviour::Stalls).await;
    let limits = [("PROFILE_EDGE__TELEMETRY__TIMEOUT", "60s"), ("PROFILE_EDGE__SHUTDOWN__DEADLINE", "2s")];
    let edge = Traced::start(&collector.endpoint(), &limits).await;
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    eventually("a batch is under way", || async { (collector.asked() > 0).then_some(()) }).await;
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    let began = Instant::now();
    edge.stop().await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_serves_and_stops_without_a_reachable_collector() {
    let port = crate::support::process::free_port();
    let edge = Traced::start(&format!("http://127.0.0.1:{port}"), &[]).await;
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    edge.process.wait_for_log("the collector does not accept traces").await;
    assert_eq!(status(edge.lookup(&customer(1))).await, 200);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_collector_gets_traces_with_the_right_certificates() {
    const CA: &str = "PROFILE_EDGE__TELEMETRY__TLS__CA";
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in [&ours, &others] {
        tls::certificates(directory.path());
    }
    let path = |name: &str| ours.path().join(name).display().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let other = others.path().join("ca.pem").display().to_string();
    let client = [("PROFILE_EDGE__TELEMETRY__TLS__CERT", cert.as_str()), ("PROFILE_EDGE__TELEMETRY__TLS__KEY", &key)];
    let collector = Collector::start_behind_tls(ours.path()).await;

    // Another authority, this machine's authorities, and no client certificate: the collector gets nothing.
    for environment in [vec![(CA, other.as_str()), client[0], client[1]], client.to_vec(), vec![(CA, ca.as_str())]] {
        let edge = Traced::start(&collector.endpoint(), &environment).await;
        let before = collector.failed_handshakes();
        eventually("three batches that are not told", || async {
            assert_eq!(status(edge.lookup(&customer(1))).await, 200);
            (collector.failed_handshakes() >= before + 3).then_some(())
        })
        .await;
        let log = edge.stop().await;
        assert_eq!(log.matches("the collector does not accept traces").count(), 1, "{log}");
    }
    assert_eq!(collector.asked(), 0);

    let edge = Traced::start(&collector.endpoint(), &[(CA, &ca), client[0], client[1]]).await;
    assert_eq!(status(edge.lookup(&customer(1)).header("traceparent", traceparent())).await, 200);
    collector.span("lookup", |span| span.trace == TRACE).await;
    let log = edge.stop().await;
    assert!(!log.contains("the collector does not accept traces"), "{log}");
}

#[test]
fn invalid_collector_options_are_refused_by_name() {
    let refused = |settings: &str| profile_edge::config::from_toml(settings).unwrap_err().to_string();
    for (settings, option) in [
        ("telemetry.endpoint = \"http://10.0.0.1:4318\"", "telemetry.endpoint"),
        ("telemetry.endpoint = \"grpc://127.0.0.1:4317\"", "telemetry.endpoint"),
        ("telemetry.protocol = \"grpc\"", "telemetry.protocol"),
        ("telemetry.sample_ratio = 1.5", "telemetry.sample_ratio"),
        ("telemetry.timeout = \"0s\"", "telemetry.timeout"),
        ("telemetry.headers.\"a b\" = \"planted\"", "telemetry.headers.a b"),
    ] {
        let refused = refused(settings);
        assert!(refused.contains(option) && !refused.contains("planted"), "{refused}");
    }
    let shown = profile_edge::config::from_toml("telemetry.headers.authorization = \"planted\"").unwrap().report.text();
    assert!(shown.contains("telemetry.headers.authorization = \"[redacted]\""), "{shown}");
    profile_edge::config::from_toml("telemetry.endpoint = \"https://10.0.0.1:4318\"").unwrap();
}
