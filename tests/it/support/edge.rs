//! A whole profile-edge in this process: the real application on port 0, with its sandbox.

use std::convert::Infallible;
use std::io::BufRead;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use profile_edge::app::App;
use profile_edge::config;
use profile_edge::faults::Faults;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::servers::memcached::{MemcachedServer, on_memcached};
use super::servers::rabbit::RabbitServer;
use super::servers::redis::Deployment;
use super::{PATIENCE, eventually};

/// The SHA-256 of `demo-key`.
pub(crate) const DEMO_KEY_SHA256: &str = "c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c";

/// A running application, its faults, and a client.
pub(crate) struct Edge {
    app: Option<App>,
    pub(crate) faults: Faults,
    pub(crate) client: reqwest::Client,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    sandbox: Option<SocketAddr>,
    /// The trail, unless the settings put it elsewhere.
    audit: Option<std::fs::File>,
    /// Removed when this is dropped.
    _data: TempDir,
}

/// The adapters of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Everything in this process.
    Embedded,
    /// The store in Redis.
    Redis,
    /// The store in Redis, the queue in RabbitMQ.
    RedisAndRabbit,
    /// The store in Memcached.
    Memcached,
}

impl Pairing {
    /// Returns settings with an own database and virtual host, on the servers that all tests share.
    pub(crate) async fn settings(self) -> String {
        let store = async || format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", Deployment::database().await);
        match self {
            Self::Embedded => String::new(),
            Self::Redis => store().await,
            // A server of its own: tests use the same customers.
            Self::Memcached => on_memcached(&[MemcachedServer::start_for_the_process().await]),
            Self::RedisAndRabbit => {
                let server = RabbitServer::shared().await;
                let vhost = server.vhost().await;
                format!("{}{}", store().await, on_rabbit(&server.url(&vhost)))
            }
        }
    }
}

/// The settings of a queue in a virtual host of RabbitMQ.
pub(crate) fn on_rabbit(url: &str) -> String {
    format!("[queue]\nkind = \"amqp\"\n[queue.amqp]\nurl = \"{url}\"\n")
}

/// The answer of a lookup.
#[derive(Debug)]
pub(crate) struct LookupAnswer {
    pub(crate) status: u16,
    pub(crate) cache_status: String,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl LookupAnswer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status.starts_with("profile-edge; hit")
    }
}

impl Edge {
    /// Starts the demo on free ports, with a fast sandbox.
    pub(crate) async fn start() -> Self {
        Self::start_with("[sandbox]\nlatency = \"0ms\"\n").await
    }

    /// Starts with these adapters and additional settings.
    pub(crate) async fn start_on(pairing: Pairing, settings: &str) -> Self {
        Self::start_with(&format!("{settings}{}", pairing.settings().await)).await
    }

    /// Starts with these settings (TOML), on free ports and in its own directory.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        // A client needs a TLS provider, also for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let faults = Faults::default();
        let loaded = config::from_toml(&layout(&data, settings)).unwrap();
        let app = timeout(PATIENCE, App::start(loaded.config, faults.clone())).await.expect("it starts").unwrap();
        Self {
            faults,
            client: reqwest::Client::builder().pool_max_idle_per_host(4096).build().unwrap(),
            public: app.public,
            admin: app.admin,
            sandbox: app.sandbox,
            app: Some(app),
            audit: std::fs::File::open(data.path().join("audit.jsonl")).ok(),
            _data: data,
        }
    }

    /// Shuts down gracefully.
    pub(crate) async fn stop(mut self) {
        assert!(self.app.take().unwrap().stop().await, "the drain met its deadline");
    }

    /// Returns what reads the audit records of this application, also after it has stopped.
    pub(crate) fn audit_records(&self) -> impl FnOnce() -> Vec<Value> + use<> {
        let file = self.audit.as_ref().expect("the trail is here").try_clone().unwrap();
        move || {
            std::io::BufReader::new(file).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.public)
    }

    pub(crate) fn sandbox_address(&self) -> SocketAddr {
        self.sandbox.expect("this configuration has a sandbox")
    }

    /// Returns the answer of the readiness probe.
    pub(crate) async fn ready(&self) -> Value {
        let url = format!("http://{}/readyz", self.admin);
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Waits until readiness names this dependency as down.
    pub(crate) async fn is_without(&self, dependency: &str) {
        eventually("degraded", || async {
            self.ready().await["degraded"].to_string().contains(dependency).then_some(())
        })
        .await;
    }

    /// Waits until readiness names this dependency as down, for a reason with this text.
    pub(crate) async fn is_without_for(&self, dependency: &str, reason: &str) {
        eventually(reason, || async {
            self.ready().await["reasons"][dependency].as_str()?.contains(reason).then_some(())
        })
        .await;
    }

    /// Waits until readiness names no dependency as down.
    pub(crate) async fn is_ready(&self) {
        eventually("ready", || async { (self.ready().await["degraded"] == json!([])).then_some(()) }).await;
    }

    /// A request to the sandbox as its editor.
    pub(crate) fn sandbox(&self, method: Method, path: &str) -> RequestBuilder {
        let sandbox = self.sandbox_address();
        self.client.request(method, format!("http://{sandbox}{path}")).bearer_auth("sandbox-editor")
    }

    pub(crate) async fn look_up(&self, customer: &str) -> LookupAnswer {
        self.look_up_with(customer, |request| request).await
    }

    pub(crate) async fn look_up_with(
        &self,
        customer: &str,
        adapt: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> LookupAnswer {
        let request = self.client.get(self.url("/api/v1/profile")).header("X-API-Key", "demo-key");
        let request = request.query(&[("tenantId", "10001"), ("customerId", customer)]);
        looked(adapt(request).send().await.unwrap()).await
    }

    /// Posts an event with the demo's webhook key.
    pub(crate) async fn post_event(&self, event: &Value) -> Response {
        let request = self.client.post(self.url("/webhooks/10001")).header("X-API-Key", "demo-secret");
        request.json(event).send().await.unwrap()
    }

    pub(crate) async fn change(&self, customer: &str, patch: Value) {
        let path = format!("/api/v2/externalcontacts/contacts/{customer}");
        let response = self.sandbox(Method::PATCH, &path).json(&patch).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
    }

    pub(crate) async fn delete(&self, customer: &str) {
        let path = format!("/api/v2/externalcontacts/contacts/{customer}");
        let response = self.sandbox(Method::DELETE, &path).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
    }

    pub(crate) async fn behave(&self, behaviour: Value) {
        let response = self.sandbox(Method::POST, "/sandbox/behaviour").json(&behaviour).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
    }

    /// Returns how many requests for profiles and for tokens the sandbox got.
    pub(crate) async fn calls(&self) -> (u64, u64) {
        let calls: Value = self.sandbox(Method::GET, "/sandbox/calls").send().await.unwrap().json().await.unwrap();
        (calls["total"].as_u64().unwrap(), calls["tokens"].as_u64().unwrap())
    }

    /// Returns the current value of a series, named as in the scrape, labels included.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let url = format!("http://{}/metrics", self.admin);
        // An idle connection may have been closed just now.
        let scrape = self.client.get(url).header("connection", "close");
        let text = scrape.send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no series {series}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric is at least this.
    pub(crate) async fn wait_for_metric(&self, series: &str, least: f64) {
        eventually(series, || async { (self.metric(series).await >= least).then_some(()) }).await;
    }

    /// Waits until this many events of a kind were applied.
    pub(crate) async fn applied(&self, kind: &str, least: f64) {
        let series = format!("profile_edge_consumer_events_total{{kind=\"{kind}\",outcome=\"applied\"}}");
        self.wait_for_metric(&series, least).await;
    }

    /// Returns how many updates have taken effect. One whose effect was answered too late is delivered again, and is a
    /// duplicate then.
    pub(crate) async fn updates_in_effect(&self) -> f64 {
        let mut there = 0.0;
        for outcome in ["applied", "duplicate"] {
            let series = format!("profile_edge_consumer_events_total{{kind=\"updated\",outcome=\"{outcome}\"}}");
            there += self.metric(&series).await;
        }
        there
    }

    /// Waits until this many updates have taken effect and no event is left.
    pub(crate) async fn updates_took_effect(&self, least: f64) {
        eventually("every event takes effect", || async {
            let all_there = self.updates_in_effect().await >= least;
            (all_there && self.metric("profile_edge_queue_events").await == 0.0).then_some(())
        })
        .await;
    }
}

pub(crate) async fn looked(response: Response) -> LookupAnswer {
    let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    LookupAnswer {
        status: response.status().as_u16(),
        cache_status: header("cache-status").unwrap_or_default(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

/// Returns the settings of a process whose Genesys is the sandbox of another process.
pub(crate) fn with_sandbox_of(address: SocketAddr) -> String {
    format!(
        r#"
        [[tenant]]
        id = "10001"
        upstream = {{ api_url = "http://{address}", login_url = "http://{address}", client_id = "sandbox", client_secret = "sandbox" }}
        [[caller]]
        name = "desktop"
        key_sha256 = "{DEMO_KEY_SHA256}"
        tenants = ["10001"]
        fields = ["*"]
        "#
    )
}

/// The key of identifiers in the demo, as a configured one.
pub(crate) const DEMO_KEYS: &str = "keys.secret = \"cHJvZmlsZS1lZGdlIGRlbW8ga2V5OiBldmVyeWJvZHkga25vd3MgaXQ=\"\n";

/// A chunked body, without a `Content-Length`.
pub(crate) fn chunked(body: &[u8]) -> reqwest::Body {
    let frame = |chunk: &[u8]| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk)));
    let frames: Vec<_> = body.chunks(64 << 10).map(frame).collect();
    reqwest::Body::wrap(StreamBody::new(futures_util::stream::iter(frames)))
}

/// The flat event of a customer.
pub(crate) fn flat(customer: &str) -> Value {
    json!({ "tenantId": "10001", "customerId": customer })
}

fn layout(data: &TempDir, settings: &str) -> String {
    let (queue, audit) = (data.path().join("queue"), data.path().join("audit.jsonl"));
    let own = format!(
        "http.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\nsandbox.listen = \"127.0.0.1:0\"\n\
         shutdown.delay = \"0s\"\n\
         queue.embedded.path = {:?}\naudit.sink = \"file\"\naudit.path = {:?}\n",
        queue.display().to_string(),
        audit.display().to_string()
    );
    // Both texts may have the same tables, so they are merged as values.
    let mut merged: toml::Table = own.parse().unwrap();
    merge(&mut merged, settings.parse().unwrap());
    merged.to_string()
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(value)) => merge(below, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
