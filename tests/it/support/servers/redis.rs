//! Private Redis servers: one alone, a cluster of three masters, a master with a replica and a sentinel.
//!
//! Where [`NAMED`] is set, it names the single server that tests share. It must be there for tests alone, and allow
//! 256 databases (`redis-server --databases 256`): each test empties one before it begins. Tests that kill their
//! servers, or need several, still start their own.

use std::sync::atomic::{AtomicU32, Ordering};

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Program, Server};
use crate::support::eventually;
use crate::support::process::free_port;

/// The variable that may name a server to share, as `redis://` URL.
const NAMED: &str = "PROFILE_EDGE_TEST_REDIS_URL";

/// One Redis server.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    /// Its address, if the tests did not start it.
    named: Option<String>,
    directory: TempDir,
    arguments: Vec<String>,
    server: Option<Server>,
}

impl RedisServer {
    /// Starts a server, which keeps its data in an append-only file.
    pub(crate) async fn start(more: &[&str]) -> Self {
        Self::start_at(free_port(), more).await
    }

    /// The server that the environment names, if it names one.
    ///
    /// # Panics
    ///
    /// It does not answer, or has too few databases.
    async fn named() -> Option<Self> {
        let url = std::env::var(NAMED).ok()?.trim_end_matches('/').to_owned();
        let directory = tempfile::tempdir().unwrap();
        let server = Self { port: 0, named: Some(url), directory, arguments: vec![], server: None };
        let mut connection = server.connect().await.unwrap_or_else(|| panic!("{NAMED}: the server does not answer"));
        let last = redis::cmd("SELECT").arg(255).exec_async(&mut connection).await;
        last.unwrap_or_else(|error| panic!("{NAMED}: needs 256 databases: {error}"));
        Some(server)
    }

    async fn start_at(port: u16, more: &[&str]) -> Self {
        let mut arguments: Vec<String> = vec!["--port".into(), port.to_string(), "--bind".into(), "127.0.0.1".into()];
        arguments.extend(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""].map(str::to_owned));
        // Replicas follow at once, not after the usual five seconds.
        arguments.extend(["--repl-diskless-sync-delay", "0", "--databases", "256"].map(str::to_owned));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { port, named: None, directory, arguments, server: None };
        server.restart().await;
        server
    }

    /// Starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        let command = std::iter::once("redis-server".to_owned()).chain(self.arguments.clone()).collect();
        let program = Program { image: ("redis", "7"), command };
        self.server = Some(Server::start(self.directory.path(), &program).await);
        eventually("redis-server answers; is it installed?", || async {
            let mut connection = self.connect().await?;
            redis::cmd("PING").query_async::<String>(&mut connection).await.ok()
        })
        .await;
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill().await;
        }
    }

    /// Pauses it (SIGSTOP).
    pub(crate) async fn pause(&self) {
        self.server.as_ref().unwrap().pause().await;
    }

    /// Continues it.
    pub(crate) async fn unpause(&self) {
        self.server.as_ref().unwrap().unpause().await;
    }

    pub(crate) fn url(&self) -> String {
        self.named.clone().unwrap_or_else(|| format!("redis://127.0.0.1:{}", self.port))
    }

    /// Waits until it follows its master, if it has one: only then may it take the master's place.
    async fn follows(&self) {
        eventually("the replica follows its master", || async {
            let mut connection = self.connect().await?;
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await.ok()?;
            (info.contains("role:master") || info.contains("master_link_status:up")).then_some(())
        })
        .await;
    }

    /// Connects to it, if it answers.
    pub(crate) async fn connect(&self) -> Option<MultiplexedConnection> {
        redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.ok()
    }
}

/// Servers that belong together, and the settings that point at them.
pub(crate) struct Deployment {
    pub(crate) servers: Vec<RedisServer>,
    /// The lines of `[store.redis]`.
    pub(crate) settings: String,
    _sentinels: Vec<RedisServer>,
}

/// The kinds of deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    Single,
    Cluster,
    Sentinel,
}

impl Deployment {
    /// The deployment that the tests of this process share; they use tenants of their own.
    pub(crate) async fn shared(kind: Setup) -> &'static Self {
        static SINGLE: OnceCell<Deployment> = OnceCell::const_new();
        static CLUSTER: OnceCell<Deployment> = OnceCell::const_new();
        static SENTINEL: OnceCell<Deployment> = OnceCell::const_new();
        let cell = match kind {
            Setup::Single => &SINGLE,
            Setup::Cluster => &CLUSTER,
            Setup::Sentinel => &SENTINEL,
        };
        cell.get_or_init(|| async {
            match (kind, RedisServer::named().await) {
                (Setup::Single, Some(server)) => Self::single(server),
                (Setup::Single | Setup::Cluster | Setup::Sentinel, _) => Self::start(kind).await,
            }
        })
        .await
    }

    fn single(server: RedisServer) -> Self {
        Self { settings: format!("url = \"{}\"\n", server.url()), servers: vec![server], _sentinels: vec![] }
    }

    /// The settings of an empty database of its own, on the single server that all tests share.
    pub(crate) async fn database() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let server = &Self::shared(Setup::Single).await.servers[0];
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut connection = server.connect().await.expect("the server that tests share answers");
        redis::cmd("SELECT").arg(number).exec_async(&mut connection).await.unwrap();
        redis::cmd("FLUSHDB").exec_async(&mut connection).await.unwrap();
        format!("url = \"{}/{number}\"\n", server.url())
    }

    /// Starts a deployment of its own.
    pub(crate) async fn start(kind: Setup) -> Self {
        match kind {
            Setup::Single => Self::single(RedisServer::start(&[]).await),
            Setup::Cluster => Self::cluster(0).await,
            Setup::Sentinel => Self::sentinel().await,
        }
    }

    /// A cluster of three masters, each with this many replicas.
    pub(crate) async fn cluster(replicas: usize) -> Self {
        let mut servers = Vec::new();
        for _ in 0..3 * (1 + replicas) {
            let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
            servers.push(RedisServer::start(&own).await);
        }
        let addresses: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        let mut create = ["redis-cli", "--cluster", "create"].map(str::to_owned).to_vec();
        create.extend(addresses);
        create.extend(["--cluster-replicas".to_owned(), replicas.to_string(), "--cluster-yes".to_owned()]);
        servers[0].server.as_ref().unwrap().run(&create).await;
        for server in &servers {
            eventually("the cluster agrees", || async {
                let mut connection = server.connect().await?;
                let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.ok()?;
                info.contains("cluster_state:ok").then_some(())
            })
            .await;
            server.follows().await;
        }
        let urls: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.url())).collect();
        let settings = format!("urls = [{}]\nmode = \"cluster\"\n", urls.join(", "));
        Self { servers, settings, _sentinels: vec![] }
    }

    /// A master, a replica, and a sentinel that can fail over alone.
    async fn sentinel() -> Self {
        let master = RedisServer::start(&[]).await;
        let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
        replica.follows().await;
        let port = free_port();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor edge 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds edge 500\nsentinel failover-timeout edge 2000\n",
            master.port
        );
        std::fs::write(&file, text).unwrap();
        let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
        let mut sentinel = RedisServer { port, named: None, directory, arguments, server: None };
        sentinel.restart().await;
        eventually("the sentinel knows the replica", || async {
            let mut connection = sentinel.connect().await?;
            let info: String = redis::cmd("INFO").arg("sentinel").query_async(&mut connection).await.ok()?;
            info.contains("slaves=1").then_some(())
        })
        .await;
        let settings = format!("urls = [\"{}\"]\nmode = \"sentinel\"\nmaster_name = \"edge\"\n", sentinel.url());
        Self { servers: vec![master, replica], settings, _sentinels: vec![sentinel] }
    }
}
