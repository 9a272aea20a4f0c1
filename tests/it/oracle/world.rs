//! The world of an oracle run: a process for everything, each of which can be killed and started again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::history::Recorder;
use super::http::Client;
use crate::support::edge::{DEMO_KEY_SHA256, on_rabbit};
use crate::support::process::{Process, configuration, free_port};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

/// How much later than a change upstream's read side shows it.
pub(super) const READ_LAG: Duration = Duration::from_millis(300);
/// `upstream.timeout`.
pub(super) const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1_000);
/// `lookup.unsettled_ttl`: above [`READ_LAG`] and [`UPSTREAM_TIMEOUT`] together, so that no fence is older than this
/// when a profile from before its change is filled in, and no unsettled entry lives longer.
pub(super) const UNSETTLED_TTL: Duration = Duration::from_millis(1_500);

/// The longest that a process may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Who can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Ingest,
    Consumer(usize),
    Lookup(usize),
    Redis,
    Rabbit,
}

/// A process of the service, and how to start it.
struct Role {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    admin: SocketAddr,
    process: Option<Process>,
}

/// Everything that runs.
pub(super) struct World {
    pub(super) sandbox: SocketAddr,
    pub(super) lookups: [SocketAddr; 2],
    _genesys: Process,
    ingest: Role,
    consumers: [Role; 2],
    readers: [Role; 2],
    redis: RedisServer,
    rabbit: RabbitServer,
    recorder: Arc<Recorder>,
    directory: TempDir,
}

impl World {
    /// Starts everything; lookups have these faults.
    ///
    /// Redis has handed every change to the kernel before it answers (with `appendfsync no` its writes are never put
    /// off behind a slow disk), so a kill takes nothing from it: what a lost write leads to is bounded by rule 12 and
    /// not this run's to find.
    pub(super) async fn start(recorder: &Arc<Recorder>, faults: &str) -> Self {
        let redis = RedisServer::start(&["--appendfsync", "no"]).await;
        let rabbit = RabbitServer::start("").await;
        let [sandbox, public, one, other] = [(); 4].map(|()| loopback());
        let directory = tempfile::tempdir().unwrap();
        let webhook = format!("http://{public}/webhooks/10001");
        let file = configuration(directory.path(), &settings(sandbox, &redis, &rabbit)).display().to_string();
        let genesys = ["sandbox", "--listen", &sandbox.to_string(), "--customers", "1000000", "--latency", "10ms"];
        let genesys = [&genesys[..], &["--webhook-url", &webhook, "--webhook-key", "demo-secret"]].concat();
        let role = |name: &str, public: SocketAddr, faults: &str| Role::new(name, &file, public, faults);
        let mut world = Self {
            sandbox,
            lookups: [one, other],
            _genesys: Process::start(directory.path(), &genesys, &[]),
            ingest: role("ingest", public, ""),
            consumers: [(); 2].map(|()| role("consumer", loopback(), "")),
            readers: [one, other].map(|public| role("lookup", public, faults)),
            redis,
            rabbit,
            recorder: Arc::clone(recorder),
            directory,
        };
        for victim in [Victim::Ingest, Victim::Consumer(0), Victim::Consumer(1), Victim::Lookup(0), Victim::Lookup(1)] {
            world.restart(victim).await;
        }
        world
    }

    /// Where the consumers listen for operators.
    pub(super) fn operators(&self) -> [SocketAddr; 2] {
        [0, 1].map(|n: usize| self.consumers[n].admin)
    }

    /// Kills with `SIGKILL`; it has ended when this returns.
    pub(super) async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Redis => self.redis.kill().await,
            Victim::Rabbit => self.rabbit.kill().await,
            Victim::Ingest | Victim::Consumer(_) | Victim::Lookup(_) => {
                if let Some(mut process) = self.role(victim).process.take() {
                    process.signal("KILL");
                    process.ended().await;
                }
            }
        }
    }

    /// Starts again on the same data; it is ready when this returns.
    pub(super) async fn restart(&mut self, victim: Victim) {
        match victim {
            Victim::Redis => self.redis.restart().await,
            Victim::Rabbit => self.rabbit.restart().await,
            Victim::Ingest | Victim::Consumer(_) | Victim::Lookup(_) => {
                let recorder = Arc::clone(&self.recorder);
                let directory = self.directory.path().to_owned();
                let role = self.role(victim);
                let arguments: Vec<_> = role.arguments.iter().map(String::as_str).collect();
                let environment: Vec<_> = role.environment.iter().map(|(name, value)| (&**name, &**value)).collect();
                let keep = move |line: &str| !recorder.consumer_says(line);
                role.process = Some(Process::start_with(&directory, &arguments, &environment, keep));
                role.is_ready().await;
            }
        }
    }

    fn role(&mut self, victim: Victim) -> &mut Role {
        match victim {
            Victim::Consumer(n) => &mut self.consumers[n],
            Victim::Lookup(n) => &mut self.readers[n],
            Victim::Ingest | Victim::Redis | Victim::Rabbit => &mut self.ingest,
        }
    }
}

impl Role {
    fn new(name: &str, file: &str, public: SocketAddr, faults: &str) -> Self {
        let admin = loopback();
        let environment = [
            ("PROFILE_EDGE__HTTP__LISTEN", public.to_string()),
            ("PROFILE_EDGE__ADMIN__LISTEN", admin.to_string()),
            ("PROFILE_EDGE_FAULTS", faults.to_owned()),
            // The consumer's lines about applied events are what this run knows of them.
            ("RUST_LOG", "warn,profile_edge=info,profile_edge::consumer=debug".to_owned()),
        ];
        Self {
            arguments: ["run", "--config", file, "--role", name].map(str::to_owned).to_vec(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            admin,
            process: None,
        }
    }

    async fn is_ready(&self) {
        let (mut client, started) = (Client::new(self.admin, ""), Instant::now());
        while !client.send("GET", "/readyz", "").await.is_ok_and(|reply| reply.status == 200) {
            let log = self.process.as_ref().map(Process::log).unwrap_or_default();
            assert!(started.elapsed() < START, "{:?} is not ready:\n{log}", self.arguments);
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// 32 bytes: customers' keys are hashed with them, and records sealed.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// As in production, with everything on that protects data.
fn settings(sandbox: SocketAddr, redis: &RedisServer, rabbit: &RabbitServer) -> String {
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
        [store]
        kind = "redis"
        redis.url = "{}"
        sealing = {{ active = "k1", keys.k1 = "{KEY}" }}
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
        "#,
        redis.url(),
        on_rabbit(&rabbit.url("%2f")),
    )
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}
