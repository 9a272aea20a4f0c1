//! A site: one process with every role, its Redis, its queue, its Genesys behind a proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::oracle::history::Recorder;
use crate::oracle::http::OracleClient;
use crate::support::edge::{DEMO_KEY_SHA256, on_rabbit};
use crate::support::eventually;
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::proxy::Proxy;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, RedisServer, Setup};

/// The queue that events wait in.
pub(super) const WORK_QUEUE: &str = "profile-edge.invalidations.0";

/// `upstream.timeout`.
pub(super) const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1_000);
/// `lookup.unsettled_ttl`.
pub(super) const UNSETTLED_TTL: Duration = Duration::from_millis(500);

/// The shape of the Redis of a site.
pub(super) type Shape = Setup;

/// A running site.
pub(super) struct Site {
    pub(super) shape: Shape,
    pub(super) deployment: Deployment,
    /// `None`: the embedded queue.
    broker: Option<RabbitServer>,
    /// The name of a single Redis, which has a replica that can take its place.
    pub(super) redis_name: Option<Proxy>,
    /// In front of the reads of the service; changes go past it.
    pub(super) genesys: Proxy,
    pub(super) sandbox: SocketAddr,
    pub(super) public: SocketAddr,
    admin: SocketAddr,
    pub(super) edge: Process,
    pub(super) recorder: Arc<Recorder>,
    /// The server of Redis that has the fault.
    pub(super) faulty: usize,
    /// How many rounds have begun.
    pub(super) rounds: u32,
    _sandbox: Process,
    _directory: TempDir,
}

impl Site {
    /// Starts a site on servers of its own.
    pub(super) async fn start(shape: Shape, with_broker: bool) -> Self {
        let mut deployment = Deployment::start(shape).await;
        let mut name = None;
        if shape == Setup::Single {
            let master = deployment.servers[0].port;
            let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.to_string()]).await;
            replica.follows().await;
            deployment.servers.push(replica);
            let proxy = Proxy::to(master).await;
            deployment.settings = format!("url = \"redis://{}\"\n", proxy.address);
            name = Some(proxy);
        }
        let broker = if with_broker { Some(RabbitServer::start("").await) } else { None };
        let [sandbox, public, admin] = [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let (directory, recorder) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::counting_copies()));
        let webhook = format!("http://{public}/webhooks/10001");
        let genesys = ["sandbox", "--listen", &sandbox.to_string(), "--customers", "1000000", "--latency", "0ms"];
        let genesys =
            [&genesys[..], &["--webhook-url", &webhook, "--webhook-key", "a-secret-of-the-fault-matrix"]].concat();
        let genesys = Process::start(directory.path(), &genesys, &[]);
        let proxy = Proxy::to(sandbox.port()).await;
        let queue = broker.as_ref().map(|broker| on_rabbit(&broker.url("%2f"))).unwrap_or_default();
        let text = settings([public, admin, proxy.address], &deployment.settings, &queue);
        let file = configuration(directory.path(), &text).display().to_string();
        // The recorder reads the consumer's lines about applied events.
        let log = [("RUST_LOG", "warn,profile_edge=info,profile_edge::consumer=debug")];
        let of_applies = Arc::clone(&recorder);
        let keep = move |line: &str| !of_applies.record_consumer_line(line);
        let edge = Process::start_with(directory.path(), &["run", "--config", &file], &log, keep);
        let site = Self {
            shape,
            deployment,
            broker,
            redis_name: name,
            genesys: proxy,
            sandbox,
            public,
            admin,
            edge,
            recorder,
            faulty: 0,
            rounds: 0,
            _sandbox: genesys,
            _directory: directory,
        };
        if shape == Setup::Cluster {
            site.deployment.serve_without_full_coverage().await;
        }
        eventually("the site is ready", || async { site.names_nothing().await.then_some(()) }).await;
        site
    }

    /// Returns its name in the table.
    pub(super) fn name(&self) -> String {
        let queue = if self.broker.is_some() { "rabbitmq" } else { "embedded" };
        format!("{:?}, {queue}", self.shape).to_lowercase()
    }

    pub(super) fn broker(&mut self) -> &mut RabbitServer {
        self.broker.as_mut().expect("this site has a broker")
    }

    /// Sends a command to a server of Redis.
    pub(super) async fn redis(&self, server: usize, words: &[&str]) {
        let _: redis::Value = self.deployment.command(server, words).await;
    }

    /// Changes the behaviour of Genesys.
    pub(super) async fn behave(&self, behaviour: &Value) {
        let mut client = OracleClient::new(self.sandbox, "");
        let reply = client.send("POST", "/sandbox/behaviour", &behaviour.to_string()).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// Returns a JSON document of the sandbox.
    pub(super) async fn sandbox(&self, path: &str) -> Value {
        let reply = OracleClient::new(self.sandbox, "").send("GET", path, "").await.unwrap();
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Returns what the admin listener answers; an empty text if it does not.
    async fn admin(&self, path: &str) -> String {
        let reply = OracleClient::new(self.admin, "").send("GET", path, "").await;
        reply.map(|reply| reply.body).unwrap_or_default()
    }

    /// Returns the names of the dependencies that `/readyz` lists, or `None` if it does not answer.
    pub(super) async fn degraded(&self) -> Option<Vec<String>> {
        let ready: Value = serde_json::from_str(&self.admin("/readyz").await).ok()?;
        serde_json::from_value(ready["degraded"].clone()).ok()
    }

    /// Returns whether `/readyz` lists no dependency.
    pub(super) async fn names_nothing(&self) -> bool {
        self.degraded().await.is_some_and(|names| names.is_empty())
    }

    /// Returns whether the metrics have this series with this value.
    pub(super) async fn shows(&self, series: &str) -> bool {
        series.is_empty() || self.admin("/metrics").await.lines().any(|line| line == series)
    }

    /// Ends the process, and returns its log.
    pub(super) async fn stop(mut self) -> String {
        self.edge.signal("TERM");
        let code = self.edge.ended().await;
        let log = self.edge.log();
        assert_eq!(code, Some(0), "{log}");
        log
    }
}

fn settings([public, admin, genesys]: [SocketAddr; 3], redis: &str, queue: &str) -> String {
    let [timeout, unsettled] = [UPSTREAM_TIMEOUT, UNSETTLED_TTL].map(|time| format!("{}ms", time.as_millis()));
    format!(
        r#"
        sandbox.enabled = false
        http.listen = "{public}"
        admin.listen = "{admin}"
        upstream = {{ timeout = "{timeout}", max_in_flight = 256 }}
        lookup = {{ unsettled_ttl = "{unsettled}", lease_ttl = "1200ms" }}
        audit.lookups = "denied"
        {queue}
        [store]
        kind = "redis"
        [store.redis]
        {redis}
        [[tenant]]
        id = "10001"
        [tenant.upstream]
        api_url = "http://{genesys}"
        login_url = "http://{genesys}"
        client_id = "sandbox"
        client_secret = "sandbox"
        requests_per_minute = 10000000
        [[tenant.webhook]]
        scheme = "api-key"
        secrets = ["a-secret-of-the-fault-matrix"]
        [[caller]]
        name = "reader"
        key_sha256 = "{DEMO_KEY_SHA256}"
        tenants = ["10001"]
        fields = ["*"]
        "#
    )
}
