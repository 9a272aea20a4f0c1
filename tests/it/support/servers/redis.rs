//! Private Redis servers: one alone, a cluster of three masters, a master with a replica and a sentinel.
//!
//! Where [`NAMED`] is set, it names the single server that tests share. It must be there for tests alone: each test empties
//! one database before it begins. Tests that kill their servers, need several, or find no database left, still use others
//! that are started for them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisResult};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{Program, Server};
use crate::support::eventually;
use crate::support::process::free_port;

/// The variable that may name a server to share, as `redis://` URL.
const NAMED: &str = "PROFILE_EDGE_TEST_REDIS_URL";

/// The longest that a test waits for an answer to a command of its own. The library's half a second is short for a busy
/// machine.
const PATIENT: Duration = Duration::from_secs(10);

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
    /// It does not answer.
    async fn named() -> Option<Self> {
        let url = std::env::var(NAMED).ok()?.trim_end_matches('/').to_owned();
        let directory = tempfile::tempdir().unwrap();
        let server = Self { port: 0, named: Some(url), directory, arguments: vec![], server: None };
        server.connect().await.unwrap_or_else(|| panic!("{NAMED}: the server does not answer"));
        Some(server)
    }

    async fn start_at(port: u16, more: &[&str]) -> Self {
        let mut arguments: Vec<String> = vec!["--port".into(), port.to_string(), "--bind".into(), "127.0.0.1".into()];
        // Every change is handed to the kernel before it is answered, so a kill loses nothing, and a slow disk delays nothing.
        arguments.extend(["--appendonly", "yes", "--appendfsync", "no", "--save", ""].map(str::to_owned));
        // Replicas follow at once, not after the usual five seconds.
        arguments.extend(["--repl-diskless-sync-delay", "0", "--databases", "256"].map(str::to_owned));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { port, named: None, directory, arguments, server: None };
        server.restart().await;
        server
    }

    /// Starts it again on the same data, and does not wait until it has loaded them.
    pub(crate) async fn relaunch(&mut self) {
        self.kill().await;
        let command = std::iter::once("redis-server".to_owned()).chain(self.arguments.clone()).collect();
        let program = Program { image: ("redis", "7"), command };
        self.server = Some(Server::start(self.directory.path(), &program).await);
    }

    /// Starts it again on the same data.
    pub(crate) async fn restart(&mut self) {
        self.relaunch().await;
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

    /// Kills it and removes its data; the configuration of a cluster stays.
    pub(crate) async fn kill_with_its_data(&mut self) {
        self.kill().await;
        std::fs::remove_dir_all(self.directory.path().join("appendonlydir")).unwrap();
    }

    /// The directory of its data.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
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

    /// Returns what it is, and its version, such as `valkey=9.1.2`.
    pub(crate) async fn version(&self) -> String {
        let mut connection = self.connect().await.expect("the server answers");
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await.unwrap();
        // Valkey reports a version of Redis too: the one that it is compatible with.
        let version = ["valkey", "redis"].into_iter().find_map(|name| {
            let mut lines = info.lines();
            let version = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix("_version:"))?;
            Some(format!("{name}={}", version.trim()))
        });
        version.expect("the server reports its version")
    }

    /// Returns whether it says that it is a master.
    async fn is_master(&self) -> bool {
        let Some(mut connection) = self.connect().await else { return false };
        let info: redis::RedisResult<String> = redis::cmd("INFO").arg("replication").query_async(&mut connection).await;
        info.is_ok_and(|info| info.contains("role:master"))
    }

    /// Waits until it follows its master, if it has one: only then may it take the master's place.
    pub(crate) async fn follows(&self) {
        eventually("the replica follows its master", || async {
            let mut connection = self.connect().await?;
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await.ok()?;
            (info.contains("role:master") || info.contains("master_link_status:up")).then_some(())
        })
        .await;
    }

    /// Empties a database, and returns the settings that point at it.
    async fn empty(&self, database: u32) -> redis::RedisResult<String> {
        let mut connection = self.connect().await.expect("the server that tests share answers");
        redis::cmd("SELECT").arg(database).exec_async(&mut connection).await?;
        redis::cmd("FLUSHDB").exec_async(&mut connection).await?;
        Ok(format!("url = \"{}/{database}\"\n", self.url()))
    }

    /// Connects to it, if it answers.
    pub(crate) async fn connect(&self) -> Option<MultiplexedConnection> {
        let client = redis::Client::open(self.url()).unwrap();
        let patient =
            AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENT)).set_response_timeout(Some(PATIENT));
        client.get_multiplexed_async_connection_with_config(&patient).await.ok()
    }

    /// Sends it a command, which succeeds.
    pub(crate) async fn order(&self, words: &[&str]) {
        let mut connection = self.connect().await.unwrap();
        redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await.unwrap();
    }

    /// Returns the ids of the connections that have no name, as those of sentinels have; the oldest first.
    pub(crate) async fn unnamed_clients(&self) -> Vec<String> {
        let mut connection = self.connect().await.unwrap();
        let list: String =
            redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("NORMAL").query_async(&mut connection).await.unwrap();
        let others = list.lines().filter(|line| line.contains(" name= ") && !line.contains(" cmd=client|list "));
        others.map(|line| line.split([' ', '=']).nth(1).unwrap().to_owned()).collect()
    }
}

/// Servers that belong together, and the settings that point at them.
pub(crate) struct Deployment {
    pub(crate) servers: Vec<RedisServer>,
    /// The lines of `[store.redis]`.
    pub(crate) settings: String,
    pub(crate) sentinels: Vec<RedisServer>,
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
        Self { settings: format!("url = \"{}\"\n", server.url()), servers: vec![server], sentinels: vec![] }
    }

    /// The settings of an empty database of its own, on the single server that all tests share, or on another one when that
    /// has no database left: many servers have 16.
    pub(crate) async fn database() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        static MORE: OnceCell<RedisServer> = OnceCell::const_new();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let shared = &Self::shared(Setup::Single).await.servers[0];
        match shared.empty(number).await {
            Ok(settings) => settings,
            Err(_) => MORE.get_or_init(|| RedisServer::start(&[])).await.empty(number).await.unwrap(),
        }
    }

    /// Sends a command to a server, and returns its answer. The command may be sent again: a sentinel closes the connections of a
    /// server that it demotes.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, server: usize, words: &[&str]) -> T {
        eventually("the server answers", || async {
            match self.try_command(server, words).await {
                Err(error) if error.is_io_error() => None,
                answer => Some(answer.unwrap()),
            }
        })
        .await
    }

    async fn try_command<T: redis::FromRedisValue>(&self, server: usize, words: &[&str]) -> RedisResult<T> {
        let mut connection = self.servers[server].connect().await.expect("the server answers");
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    }

    /// Returns which server is the master: the one that the sentinel names, or else the first that says so.
    pub(crate) async fn master(&self) -> usize {
        if let Some(sentinel) = self.sentinels.first() {
            let mut connection = sentinel.connect().await.expect("the sentinel answers");
            let asked = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "edge"];
            let address: Vec<String> =
                redis::cmd(asked[0]).arg(&asked[1..]).query_async(&mut connection).await.unwrap();
            let is_it = |server: &RedisServer| server.port.to_string() == address[1];
            return self.servers.iter().position(is_it).expect("the sentinel names one of the servers");
        }
        for (index, server) in self.servers.iter().enumerate() {
            if server.is_master().await {
                return index;
            }
        }
        panic!("no server is a master");
    }

    /// Waits until every server except the master follows it.
    pub(crate) async fn follows_one_master(&self) {
        eventually("every other server follows the master", || async {
            let master = self.master().await;
            for (index, server) in self.servers.iter().enumerate() {
                if server.is_master().await != (index == master) {
                    return None;
                }
            }
            Some(())
        })
        .await;
        for server in &self.servers {
            server.follows().await;
        }
    }

    /// Lets the masters of a cluster that work go on without the others.
    pub(crate) async fn serve_without_full_coverage(&self) {
        for server in 0..self.servers.len() {
            let option = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
            self.command::<redis::Value>(server, &option).await;
        }
    }

    /// Returns the slot of each key in a cluster.
    pub(crate) async fn slots_of(&self, keys: &[String]) -> Vec<u16> {
        let mut slots = redis::pipe();
        for key in keys {
            slots.cmd("CLUSTER").arg("KEYSLOT").arg(key);
        }
        slots.query_async(&mut self.servers[0].connect().await.unwrap()).await.unwrap()
    }

    /// Begins to move a slot from the first master of a cluster to the second: of those that have entries, one with most.
    /// Returns its entries.
    pub(crate) async fn begin_to_move_a_slot(&self) -> Vec<String> {
        let entries: Vec<String> = self.command(0, &["KEYS", "cust:profile:*"]).await;
        let slots = self.slots_of(&entries).await;
        let moving = *slots.iter().max_by_key(|slot| slots.iter().filter(|other| other == slot).count()).unwrap();
        let [from, to]: [String; 2] =
            [self.command(0, &["CLUSTER", "MYID"]).await, self.command(1, &["CLUSTER", "MYID"]).await];
        let set = |end, node| ["CLUSTER", "SETSLOT", &moving.to_string(), end, node].map(str::to_owned);
        for (server, words) in [(1, set("IMPORTING", &from)), (0, set("MIGRATING", &to))] {
            self.command::<redis::Value>(server, &words.each_ref().map(String::as_str)).await;
        }
        entries.into_iter().zip(slots).filter(|(_, slot)| *slot == moving).map(|(key, _)| key).collect()
    }

    /// Ends the move.
    pub(crate) async fn end_to_move_the_slot(&self) {
        let nodes: String = self.command(0, &["CLUSTER", "NODES"]).await;
        // Of the slots of a node the one that moves is listed as `[slot->-node]`.
        let (before, after) = nodes.split_once("->-").expect("a slot moves");
        let (slot, to) = (before.rsplit('[').next().unwrap(), after.split(']').next().unwrap());
        let port = self.servers[1].port.to_string();
        let keys: Vec<String> = self.command(0, &["CLUSTER", "GETKEYSINSLOT", slot, "1000"]).await;
        for key in &keys {
            let words = ["MIGRATE", "127.0.0.1", &port, key, "0", "5000", "REPLACE"];
            // A starved cluster counts as down, now and then, and refuses commands of keys.
            eventually("a key is moved", async || self.try_command::<redis::Value>(0, &words).await.ok()).await;
        }
        // Last, and first at its new owner: it tells the other of it, which then has no keys of the slot any more.
        for server in [1, 0] {
            self.command::<redis::Value>(server, &["CLUSTER", "SETSLOT", slot, "NODE", to]).await;
        }
    }

    /// Starts a deployment of its own.
    pub(crate) async fn start(kind: Setup) -> Self {
        match kind {
            Setup::Single => Self::single(RedisServer::start(&[]).await),
            Setup::Cluster => Self::cluster(0).await,
            Setup::Sentinel => Self::sentinel().await,
        }
    }

    /// The sentinel of a deployment that has one.
    pub(crate) fn sentinel_server(&self) -> &RedisServer {
        &self.sentinels[0]
    }

    /// Makes the replica an empty master that the sentinel names. The old master does not know.
    pub(crate) async fn promote_unnoticed(&self) {
        let (other, sentinel) = (&self.servers[1], self.sentinel_server());
        other.order(&["REPLICAOF", "NO", "ONE"]).await;
        other.order(&["FLUSHALL"]).await;
        sentinel.order(&["SENTINEL", "REMOVE", "edge"]).await;
        sentinel.order(&["SENTINEL", "MONITOR", "edge", "127.0.0.1", &other.port.to_string(), "1"]).await;
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
        Self { servers, settings, sentinels: vec![] }
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
        Self { servers: vec![master, replica], settings, sentinels: vec![sentinel] }
    }
}
