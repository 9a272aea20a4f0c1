//! The processes of an oracle run; each can be killed and restarted.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::history::Recorder;
use super::http::OracleClient;
use crate::support::edge::{DEMO_KEY_SHA256, on_rabbit};
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::memcached::{MemcachedServer, on_memcached};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};

/// The delay of the sandbox's read side.
pub(super) const READ_LAG: Duration = Duration::from_millis(300);
/// `upstream.timeout`.
pub(super) const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1_000);
/// `lookup.unsettled_ttl`. It exceeds the sum of [`READ_LAG`] and [`UPSTREAM_TIMEOUT`], so that a fence is never older
/// than this when an older profile is filled, and no unsettled entry lives longer.
pub(super) const UNSETTLED_TTL: Duration = Duration::from_millis(1_500);

/// The longest start of a process on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A process that can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillTarget {
    Ingest,
    Consumer(usize),
    Lookup(usize),
    /// A server of the store.
    Store(usize),
    Rabbit,
}

/// A fault that ends by itself, while every process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartialFault {
    /// A process of the service gets half of the processor time (SIGSTOP and SIGCONT).
    Starved(KillTarget),
    /// Redis has no memory left, and evicts nothing; in a cluster one master.
    RedisFull,
    /// The user of the service may run no scripts.
    RedisForbidsScripts,
    /// Redis is a replica, of a master that does not answer.
    RedisDemoted,
    /// A slot of a cluster moves from one master to another, and the move does not end.
    SlotMoving,
}

/// The store of a run.
pub(super) enum StoreServers {
    /// Redis hands every change to the kernel before it answers, so a kill loses no write; with `appendfsync no`, a slow disk
    /// does not delay these writes. Lost writes are the subject of [`rules::failover`](profile_edge::rules#failover), not of
    /// these runs. A cluster has three masters, which work without each other.
    Redis(Deployment),
    /// Servers with little memory, which evict all the time. A kill loses everything that one of them has.
    Memcached(Vec<MemcachedServer>),
}

impl StoreServers {
    pub(super) async fn redis() -> Self {
        Self::Redis(Deployment::start(Setup::Single).await)
    }

    pub(super) async fn cluster() -> Self {
        let cluster = Deployment::start(Setup::Cluster).await;
        cluster.serve_without_full_coverage().await;
        Self::Redis(cluster)
    }

    pub(super) async fn memcached(count: usize) -> Self {
        let mut servers = Vec::new();
        for _ in 0..count {
            servers.push(MemcachedServer::start(&["-m", "2"]).await);
        }
        Self::Memcached(servers)
    }

    /// Returns the servers of Redis.
    fn deployment(&self) -> &Deployment {
        let Self::Redis(deployment) = self else { panic!("the run has no Redis") };
        deployment
    }

    async fn kill(&mut self, n: usize) {
        match self {
            Self::Redis(deployment) => deployment.servers[n].kill().await,
            Self::Memcached(servers) => servers[n].kill().await,
        }
    }

    async fn restart(&mut self, n: usize) {
        match self {
            Self::Redis(deployment) => {
                deployment.servers[n].restart().await;
                if deployment.servers.len() > 1 {
                    deployment.serve_without_full_coverage().await;
                }
            }
            Self::Memcached(servers) => servers[n].restart().await,
        }
    }

    /// Writes this many items of another program to each server that evicts.
    pub(super) async fn crowd(&self, items: usize) {
        if let Self::Memcached(servers) = self {
            join_all(servers.iter().map(|server| server.crowd(items))).await;
        }
    }

    /// Returns how many items each server has evicted since its start.
    pub(super) async fn evictions(&self) -> Vec<u64> {
        match self {
            Self::Redis(_) => Vec::new(),
            Self::Memcached(servers) => join_all(servers.iter().map(|server| server.statistic("evictions"))).await,
        }
    }

    fn settings(&self) -> String {
        let servers = match self {
            Self::Redis(deployment) => format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings),
            Self::Memcached(servers) => on_memcached(&servers.iter().collect::<Vec<_>>()),
        };
        format!("{servers}[store.sealing]\nactive = \"k1\"\nkeys.k1 = \"{KEY}\"\n")
    }
}

/// The extensions of the files with the log and with the audit trail of a process.
const LOG: &str = "log";
const TRAIL: &str = "audit";

/// The directory of a run. After a failure it stays, with the logs of the processes.
pub(super) struct RunDirectory(TempDir);

impl RunDirectory {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the lines of all logs that contain a text, at most so many, each after the name of its process.
    pub(super) fn lines_with(&self, text: &str, most: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for log in self.files(LOG) {
            let (name, log) = (log.file_stem().unwrap().to_owned(), std::fs::read_to_string(log).unwrap());
            let with = log.lines().filter(|line| line.contains(text));
            lines.extend(with.map(|line| format!("{}: {line}", name.display())));
        }
        lines.truncate(most);
        lines
    }

    /// Returns the audit trails of all processes.
    pub(super) fn trails(&self) -> impl Iterator<Item = String> {
        self.files(TRAIL).map(|file| std::fs::read_to_string(file).unwrap())
    }

    /// Empties all logs and trails.
    pub(super) fn empty_logs(&self) {
        self.files(LOG).chain(self.files(TRAIL)).for_each(|file| drop(File::create(file).unwrap()));
    }

    fn files(&self, kind: &str) -> impl Iterator<Item = PathBuf> {
        let files = std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(move |file| file.extension().is_some_and(|extension| extension == kind))
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("the logs of the processes are in {}", self.path().display());
        }
    }
}

/// A process of the service, and its start parameters.
pub(super) struct ServiceProcess {
    /// The name of its log, whatever its start.
    log: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    pub(super) admin: SocketAddr,
    process: Option<Process>,
}

/// All processes of the run.
pub(super) struct OracleWorld {
    pub(super) sandbox: SocketAddr,
    pub(super) lookups: [SocketAddr; 2],
    _genesys: Process,
    ingest: ServiceProcess,
    consumers: [ServiceProcess; 2],
    readers: [ServiceProcess; 2],
    pub(super) store: StoreServers,
    rabbit: RabbitServer,
    recorder: Arc<Recorder>,
    pub(super) directory: RunDirectory,
}

impl OracleWorld {
    /// Starts all processes; the lookup processes have these faults. The clocks step by so many seconds: those of ingest and of a
    /// lookup process ahead, those of the other one and of a consumer back. The judge compares the time at which a consumer
    /// took an event, which must not be later than it was.
    pub(super) async fn start(recorder: &Arc<Recorder>, store: StoreServers, faults: &str, step: i64) -> Self {
        let rabbit = RabbitServer::start("").await;
        let [sandbox, public, one, other] = [(); 4].map(|()| loopback());
        let directory = RunDirectory::new();
        let webhook = format!("http://{public}/webhooks/10001");
        let file = configuration(directory.path(), &settings(sandbox, &store, &rabbit)).display().to_string();
        let genesys = ["sandbox", "--listen", &sandbox.to_string(), "--customers", "1000000", "--latency", "10ms"];
        let genesys = [&genesys[..], &["--webhook-url", &webhook, "--webhook-key", "demo-secret"]].concat();
        let role = |name: &str, public: SocketAddr, faults: &str, step: i64| {
            ServiceProcess::new(name, &file, public, faults).with("PROFILE_EDGE_CLOCK_STEP", &step.to_string())
        };
        let mut world = Self {
            sandbox,
            lookups: [one, other],
            _genesys: Process::start(directory.path(), &genesys, &[]),
            ingest: role("ingest", public, "", step),
            consumers: [0, -step].map(|step| role("consumer", loopback(), "", step)),
            readers: [(one, step), (other, -step)].map(|(public, step)| role("lookup", public, faults, step)),
            store,
            rabbit,
            recorder: Arc::clone(recorder),
            directory,
        };
        for victim in [
            KillTarget::Ingest,
            KillTarget::Consumer(0),
            KillTarget::Consumer(1),
            KillTarget::Lookup(0),
            KillTarget::Lookup(1),
        ] {
            world.restart(victim).await;
        }
        world
    }

    /// Returns the admin addresses of the consumers.
    pub(super) fn consumer_admins(&self) -> [SocketAddr; 2] {
        [0, 1].map(|n: usize| self.consumers[n].admin)
    }

    /// Returns what the consumers report about events and their queue, except zeros.
    pub(super) async fn consumer_metrics(&self) -> String {
        let mut found = String::new();
        for admin in self.consumer_admins() {
            let reply = OracleClient::new(admin, "").send("GET", "/metrics", "").await;
            let metrics = reply.map_or_else(|error| error.to_string(), |reply| reply.body);
            let about = ["profile_edge_consumer", "profile_edge_queue", "profile_edge_dead"];
            let lines = metrics.lines().filter(|line| about.iter().any(|name| line.starts_with(name)));
            lines.filter(|line| !line.ends_with(" 0")).for_each(|line| found.extend([line, "\n"]));
        }
        found
    }

    /// Kills a process with `SIGKILL`, and waits for its end.
    pub(super) async fn kill(&mut self, victim: KillTarget) {
        match victim {
            KillTarget::Store(n) => self.store.kill(n).await,
            KillTarget::Rabbit => self.rabbit.kill().await,
            KillTarget::Ingest | KillTarget::Consumer(_) | KillTarget::Lookup(_) => self.role(victim).kill().await,
        }
    }

    /// Restarts a process on the same data, and waits until it is ready.
    pub(super) async fn restart(&mut self, victim: KillTarget) {
        match victim {
            KillTarget::Store(n) => self.store.restart(n).await,
            KillTarget::Rabbit => self.rabbit.restart().await,
            KillTarget::Ingest | KillTarget::Consumer(_) | KillTarget::Lookup(_) => {
                let (recorder, directory) = (Arc::clone(&self.recorder), self.directory.path().to_owned());
                self.role(victim).start(&directory, &recorder).await;
            }
        }
    }

    /// Lets a fault last for some time.
    pub(super) async fn suffer(&mut self, fault: PartialFault, time: Duration) {
        let (begin, end): (&[&str], &[&str]) = match fault {
            PartialFault::Starved(target) => {
                return self.role(target).process.as_ref().expect("it runs").starve(time).await;
            }
            PartialFault::RedisFull => (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
            PartialFault::RedisForbidsScripts => {
                (&["ACL", "SETUSER", "default", "-evalsha", "-eval"], &["ACL", "SETUSER", "default", "+@all"])
            }
            PartialFault::RedisDemoted => (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
            PartialFault::SlotMoving => {
                let cluster = self.store.deployment();
                cluster.begin_to_move_a_slot().await;
                sleep(time).await;
                return cluster.end_to_move_the_slot().await;
            }
        };
        let deployment = self.store.deployment();
        deployment.command::<redis::Value>(0, begin).await;
        sleep(time).await;
        deployment.command::<redis::Value>(0, end).await;
    }

    /// Returns the resident memory of each process of the service, and the size of the data of each server, in MiB.
    pub(super) fn sizes(&self) -> String {
        let roles = [&self.ingest].into_iter().chain(&self.consumers).chain(&self.readers);
        let memory: Vec<u64> = roles.filter_map(|role| Some(role.process.as_ref()?.resident())).collect();
        let store = match &self.store {
            StoreServers::Redis(deployment) => {
                deployment.servers.iter().map(|server| mebibytes(server.directory())).sum()
            }
            StoreServers::Memcached(_) => 0,
        };
        let rabbit = mebibytes(self.rabbit.directory());
        format!("MiB resident {memory:?}, on disk: store {store}, RabbitMQ {rabbit}")
    }

    fn role(&mut self, victim: KillTarget) -> &mut ServiceProcess {
        match victim {
            KillTarget::Consumer(n) => &mut self.consumers[n],
            KillTarget::Lookup(n) => &mut self.readers[n],
            KillTarget::Ingest | KillTarget::Store(_) | KillTarget::Rabbit => &mut self.ingest,
        }
    }
}

impl ServiceProcess {
    pub(super) fn new(name: &str, file: &str, public: SocketAddr, faults: &str) -> Self {
        let admin = loopback();
        let environment = [
            ("PROFILE_EDGE__HTTP__LISTEN", public.to_string()),
            ("PROFILE_EDGE__ADMIN__LISTEN", admin.to_string()),
            ("PROFILE_EDGE_FAULTS", faults.to_owned()),
            // The recorder reads the consumer's lines about applied events.
            ("RUST_LOG", "warn,profile_edge=info,profile_edge::consumer=debug".to_owned()),
        ];
        Self {
            log: format!("{name}-{}.{LOG}", public.port()),
            arguments: ["run", "--config", file, "--role", name].map(str::to_owned).to_vec(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            admin,
            process: None,
        }
    }

    /// Sets a variable of its environment.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, and waits until it is ready.
    pub(super) async fn start(&mut self, directory: &Path, recorder: &Arc<Recorder>) {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        let (recorder, path) = (Arc::clone(recorder), directory.join(&self.log));
        let [log, trail] = [path.clone(), path.with_extension(TRAIL)]
            .map(|file| File::options().create(true).append(true).open(file).unwrap());
        let keep = move |line: &str| {
            recorder.record_consumer_line(line);
            writeln!(&log, "{line}").unwrap();
            false
        };
        self.process = Some(Process::start_with_stdout(directory, &arguments, &environment, Stdio::from(trail), keep));
        self.is_ready(&path).await;
    }

    /// Kills it with `SIGKILL`, and waits for its end.
    pub(super) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL");
            process.ended().await;
        }
    }

    async fn is_ready(&self, log: &Path) {
        let (mut client, started) = (OracleClient::new(self.admin, ""), Instant::now());
        while !client.send("GET", "/readyz", "").await.is_ok_and(|reply| reply.status == 200) {
            assert!(started.elapsed() < START, "{:?} is not ready: {:?}", self.arguments, std::fs::read_to_string(log));
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// 32 bytes that key the hashes of customer ids and seal records.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// Returns settings as in production, with every protection of data.
fn settings(sandbox: SocketAddr, store: &StoreServers, rabbit: &RabbitServer) -> String {
    let [timeout, unsettled] = [UPSTREAM_TIMEOUT, UNSETTLED_TTL].map(|time| format!("{}ms", time.as_millis()));
    format!(
        r#"
        sandbox.enabled = false
        upstream = {{ timeout = "{timeout}", max_in_flight = 256 }}
        [lookup]
        ttl = "5s"
        grace = "20s"
        negative_ttl = "3s"
        unsettled_ttl = "{unsettled}"
        lease_ttl = "1200ms"
        [keys]
        scheme = "hmac-sha256"
        secret = "{KEY}"
        [audit]
        lookups = "denied"
        {}
        {}
        [[tenant]]
        id = "10001"
        [tenant.upstream]
        api_url = "http://{sandbox}"
        login_url = "http://{sandbox}"
        client_id = "sandbox"
        client_secret = "sandbox"
        requests_per_minute = 10000000
        [[tenant.webhook]]
        scheme = "api-key"
        secrets = ["demo-secret"]
        [[caller]]
        name = "reader"
        key_sha256 = "{DEMO_KEY_SHA256}"
        tenants = ["10001"]
        fields = ["*"]
        lookup_by = ["customerId", "phone", "email"]
        "#,
        store.settings(),
        on_rabbit(&rabbit.url("%2f")),
    )
}

/// Returns the size of all files below a directory. Files come and go meanwhile.
fn mebibytes(directory: &Path) -> u64 {
    fn bytes(directory: &Path) -> u64 {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let size = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(data) if data.is_dir() => bytes(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        };
        entries.map(size).sum()
    }
    bytes(directory) >> 20
}

pub(super) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
