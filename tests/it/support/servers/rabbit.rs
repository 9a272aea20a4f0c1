//! Private RabbitMQ servers: one node alone, and a cluster of three.
//!
//! [`NAMED`] and [`NAMED_API`] can name the one node that tests share. Its user creates a virtual host for each test, so
//! it must be an administrator. Tests that stop or configure their broker still start their own.

use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use futures_util::future::join_all;
use profile_edge::domain::Secret;
use profile_edge::queue::amqp::Config;
use profile_edge::tls::TlsFiles;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Duration, Instant, sleep};
use url::Url;

use super::{Program, SERVERS, Server};
use crate::support::eventually;
use crate::support::process::free_port;

/// The variables that may name a broker to share: `amqp://user:password@host:port`, and the address of its
/// management API, such as `http://host:15672`.
const NAMED: &str = "PROFILE_EDGE_TEST_AMQP_URL";
const NAMED_API: &str = "PROFILE_EDGE_TEST_RABBITMQ_API";

/// The longest that a broker may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Runs a program of RabbitMQ: its launcher, or from where Debian, or the official image, keeps those that do not insist on
/// a user of their own.
const FIND: &str = "for at in \"$PROFILE_EDGE_TEST_SERVERS\" /usr/lib/rabbitmq/bin /opt/rabbitmq/sbin; do \
                    [ -x \"$at/$0\" ] && exec \"$at/$0\" \"$@\"; done";

/// The Erlang cookie of the nodes of a cluster. Every node listens on loopback only.
const COOKIE: &[u8] = b"PROFILEEDGETESTS";

/// A port mapper (epmd) of the tests, which ends with them.
struct Mapper {
    port: u16,
    _directory: TempDir,
    _server: Server,
}

impl Mapper {
    async fn start() -> Self {
        let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
        let mapper = program(["epmd".into(), "-port".into(), port.to_string()]);
        let server = Server::start(directory.path(), &mapper).await;
        Self { port, _directory: directory, _server: server }
    }
}

/// One RabbitMQ node.
pub(crate) struct RabbitServer {
    pub(crate) port: u16,
    pub(crate) tls_port: Option<u16>,
    name: String,
    management: u16,
    /// `None` of a node that is not one of ours.
    mapper: Option<Arc<Mapper>>,
    directory: TempDir,
    server: Option<Server>,
    /// The launchers of its programs; `None`: those of all servers.
    launchers: Option<String>,
    /// Its address, if the tests did not start it: the URL, the API, and the user and password of both.
    named: Option<(Url, String)>,
    client: reqwest::Client,
}

impl RabbitServer {
    /// Returns the node that the tests of this process share. Each test uses its own virtual host.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<RabbitServer> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                match std::env::var(NAMED) {
                    Ok(url) => Self::named(&url).await,
                    Err(_) => Self::start("").await,
                }
            })
            .await
    }

    /// The broker that the environment names.
    ///
    /// # Panics
    ///
    /// Its management API is not named, or does not answer.
    async fn named(url: &str) -> Self {
        let link = Url::parse(url).unwrap_or_else(|error| panic!("{NAMED}: {error}"));
        let api = std::env::var(NAMED_API).unwrap_or_else(|_| panic!("{NAMED} is set, so {NAMED_API} must be too"));
        let named = Some((link, api.trim_end_matches('/').to_owned()));
        let (directory, client) = (tempfile::tempdir().unwrap(), client());
        let (port, management, name) = (0, 0, String::new());
        let broker = Self {
            port,
            tls_port: None,
            name,
            management,
            mapper: None,
            directory,
            server: None,
            launchers: None,
            named,
            client,
        };
        assert!(
            broker.api("GET", "/whoami", None).await.is_some(),
            "{NAMED_API}: refuses the user, or does not answer"
        );
        broker
    }

    /// Starts a node of its own, with more lines of configuration.
    pub(crate) async fn start(more: &str) -> Self {
        Self::start_with(None, more).await
    }

    /// Starts a node that also listens for TLS, with certificates from a directory.
    pub(crate) async fn start_with_tls(certificates: &TempDir) -> Self {
        let port = free_port();
        let file = |name: &str| certificates.path().join(name).display().to_string();
        let tls = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
            file("ca.pem"),
            file("server.pem"),
            file("server.key")
        );
        Self::start_with(Some(port), &tls).await
    }

    async fn start_with(tls_port: Option<u16>, more: &str) -> Self {
        let mapper = Arc::new(Mapper::start().await);
        let mut started = Self::prepare("edge@localhost", mapper, tls_port, more);
        started.restart().await;
        started
    }

    /// Creates a node that does not run yet.
    fn prepare(name: &str, mapper: Arc<Mapper>, tls_port: Option<u16>, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (port, management) = (free_port(), free_port());
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
             disk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 16777216\n{more}"
        );
        std::fs::write(directory.path().join("rabbitmq.conf"), settings).unwrap();
        std::fs::write(directory.path().join("enabled_plugins"), "[rabbitmq_management].").unwrap();
        let cookie = directory.path().join(".erlang.cookie");
        let private = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(cookie);
        std::io::Write::write_all(&mut private.unwrap(), COOKIE).unwrap();
        let (name, mapper, named, client) = (name.to_owned(), Some(mapper), None, client());
        Self { port, tls_port, name, management, mapper, directory, server: None, launchers: None, named, client }
    }

    /// Stops it in order, and starts it again on the same data, with other launchers if they are given.
    pub(crate) async fn replace(&mut self, launchers: Option<String>) {
        self.ctl(&["stop_app"]).await;
        self.kill().await;
        self.launchers = launchers;
        self.restart().await;
    }

    /// Starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        let program = program(self.command("rabbitmq-server", &[]));
        self.server = Some(Server::start(self.directory.path(), &program).await);
        let started = Instant::now();
        while self.api("GET", "/whoami", None).await.is_none() {
            let log = || std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(started.elapsed() < START, "rabbitmq-server does not answer; is it installed?\n{}", log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it, once it has written the names of its Raft servers. It writes them seconds after their first start, and a broker
    /// that was killed before (observed on 4.3) does not find its streams again: "Stream not found for queue".
    pub(crate) async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            eventually("the broker has written its names", async || self.has_written_its_names().then_some(())).await;
            server.kill().await;
        }
    }

    /// Returns whether the file of names lists every Raft server that has a directory.
    fn has_written_its_names(&self) -> bool {
        ["coordination", "quorum"].into_iter().all(|system| {
            let system = self.directory.path().join("data").join(&self.name).join(system).join(&self.name);
            let names = std::fs::read(system.join("names.dets")).unwrap_or_default();
            let servers = std::fs::read_dir(system).into_iter().flatten().flatten();
            servers.filter(|entry| entry.path().is_dir()).all(|entry| {
                let name = entry.file_name();
                names.windows(name.len()).any(|part| part == name.as_encoded_bytes())
            })
        })
    }

    /// Pauses it (SIGSTOP).
    pub(crate) async fn pause(&self) {
        self.server.as_ref().unwrap().pause().await;
    }

    /// Continues it.
    pub(crate) async fn unpause(&self) {
        self.server.as_ref().unwrap().unpause().await;
    }

    /// The directory of its data.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Runs `rabbitmqctl`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) {
        self.server.as_ref().unwrap().run(&self.command("rabbitmqctl", arguments)).await;
    }

    /// Asks the management API; `None` where it refuses or is not there.
    pub(crate) async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Option<Value> {
        let (api, user, password) = match &self.named {
            Some((link, api)) => (api.clone(), link.username(), link.password().unwrap_or_default()),
            None => (format!("http://127.0.0.1:{}", self.management), "guest", "guest"),
        };
        let request = self.client.request(method.parse().unwrap(), format!("{api}/api{path}"));
        let request = request.basic_auth(user, Some(password));
        let request = request.timeout(Duration::from_secs(10));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        Some(answer.json().await.unwrap_or(Value::Null))
    }

    /// Returns its version, such as `rabbitmq=4.3.6`.
    pub(crate) async fn version(&self) -> String {
        let overview = eventually("the management API", || self.api("GET", "/overview", None)).await;
        format!("rabbitmq={}", overview["rabbitmq_version"].as_str().expect("the broker reports its version"))
    }

    /// Creates a virtual host, and returns its name.
    ///
    /// A node that has just started may refuse, and one that has just joined a cluster may never run what was made
    /// in that moment: then another is made.
    pub(crate) async fn vhost(&self) -> String {
        eventually("a virtual host, on every node", || async {
            let name = format!("v-{}", hex::encode(rand::random::<[u8; 8]>()));
            let path = format!("/vhosts/{name}");
            self.api("PUT", &path, None).await?;
            let made = Instant::now();
            while made.elapsed() < Duration::from_secs(5) {
                let vhost = self.api("GET", &path, None).await?;
                if vhost["cluster_state"].as_object()?.values().all(|state| state == "running") {
                    return Some(name);
                }
                sleep(Duration::from_millis(50)).await;
            }
            None
        })
        .await
    }

    /// Returns the configuration that points at a virtual host.
    pub(crate) fn config(&self, vhost: &str) -> Config {
        Config {
            name: "profile-edge".to_owned(),
            url: Secret::new(self.url(vhost)),
            urls: Vec::new(),
            management_url: None,
            tls: TlsFiles::default(),
            shards: 1,
            prefetch: 512,
            max_connection_age: Duration::from_secs(300),
            publish_timeout: Duration::from_secs(10),
            journal_retention: Duration::from_secs(3600),
            mac_key: None,
            mac_previous: Vec::new(),
            mac_required: false,
        }
    }

    pub(crate) fn url(&self, vhost: &str) -> String {
        match &self.named {
            Some((link, _)) => format!("{}/{vhost}", link.as_str().trim_end_matches('/')),
            None => format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port),
        }
    }

    /// Returns the address of the management API.
    pub(crate) fn management(&self) -> String {
        match &self.named {
            Some((_, api)) => api.clone(),
            None => format!("http://127.0.0.1:{}", self.management),
        }
    }

    /// Publishes bytes directly.
    pub(crate) async fn publish(&self, vhost: &str, exchange: &str, routing_key: &str, bytes: &[u8]) {
        use base64::Engine;
        let payload = base64::engine::general_purpose::STANDARD.encode(bytes);
        let message = json!({ "properties": {}, "routing_key": routing_key, "payload": payload,
                              "payload_encoding": "base64" });
        let path = format!("/exchanges/{vhost}/{exchange}/publish");
        let answer = self.api("POST", &path, Some(message)).await.expect("it is published");
        assert_eq!(answer["routed"], true);
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Vec<String> {
        let mut command = vec!["env".to_owned()];
        command.extend(self.environment());
        command.extend(self.launchers.iter().map(|directory| format!("{SERVERS}={directory}")));
        command.extend(["sh", "-c", FIND, name].map(str::to_owned));
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        command
    }

    fn environment(&self) -> Vec<String> {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let more = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none";
        [
            ("HOME", self.directory.path().display().to_string()),
            ("ERL_EPMD_PORT", self.mapper.as_ref().unwrap().port.to_string()),
            ("RABBITMQ_NODENAME", self.name.clone()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_DIST_PORT", (free_port()).to_string()),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("logs")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_PID_FILE", path("rabbitmq.pid")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", more.to_owned()),
            // The node replaces its start script, so it receives our signals.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
        ]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
    }
}

/// Three nodes that are one broker: quorum queues and streams have a member on each.
pub(crate) struct RabbitCluster {
    pub(crate) nodes: Vec<RabbitServer>,
}

impl RabbitCluster {
    /// Returns the cluster that the tests of this process share, for tests that do not damage it.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<RabbitCluster> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a cluster of its own.
    pub(crate) async fn start() -> Self {
        let mapper = Arc::new(Mapper::start().await);
        let names = ["edge-0@localhost", "edge-1@localhost", "edge-2@localhost"];
        let mut peers = "cluster_formation.peer_discovery_backend = classic_config\n".to_owned();
        for (n, name) in (1..).zip(names) {
            peers += &format!("cluster_formation.classic_config.nodes.{n} = {name}\n");
        }
        // The first does not join others, and the others join the first. If all joined at once, each would wait.
        let mut nodes: Vec<RabbitServer> = names
            .iter()
            .zip(["", &peers, &peers])
            .map(|(name, peers)| RabbitServer::prepare(name, Arc::clone(&mapper), None, peers))
            .collect();
        nodes[0].restart().await;
        join_all(nodes[1..].iter_mut().map(RabbitServer::restart)).await;
        let started = Self { nodes };
        started.is_whole().await;
        started
    }

    /// Waits until every node runs.
    pub(crate) async fn is_whole(&self) {
        eventually("the three nodes are one cluster", || async {
            let nodes = self.nodes[0].api("GET", "/nodes", None).await?;
            let running = nodes.as_array()?.iter().filter(|node| node["running"] == true).count();
            (running == self.nodes.len()).then_some(())
        })
        .await;
    }

    /// Returns the URLs of a virtual host, one for each node, in their order.
    pub(crate) fn urls(&self, vhost: &str) -> Vec<String> {
        self.nodes.iter().map(|node| node.url(vhost)).collect()
    }

    /// Returns which node has the leader of a queue that has a member on every node.
    pub(crate) async fn leader(&self, vhost: &str, queue: &str) -> usize {
        let name = eventually("the queue has a member on every node, and a leader", || async {
            let path = format!("/queues/{vhost}/{queue}");
            let queue = self.nodes[0].api("GET", &path, None).await?;
            let members = queue["members"].as_array()?.len();
            (members == self.nodes.len()).then_some(())?;
            queue["leader"].as_str().map(str::to_owned)
        })
        .await;
        self.nodes.iter().position(|node| node.name == name).expect("the leader is one of the nodes")
    }
}

fn program(command: impl IntoIterator<Item = String>) -> Program {
    Program { image: ("rabbitmq", "3-management"), command: command.into_iter().collect() }
}

fn client() -> reqwest::Client {
    // A client needs a TLS provider, also for plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Each test has its own runtime, which a pooled connection would outlive.
    reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap()
}
