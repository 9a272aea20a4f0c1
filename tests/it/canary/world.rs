//! A profile-edge process with every plant in its configuration, and its servers.

use std::path::Path;
use std::process::{Output, Stdio};

use redis::aio::MultiplexedConnection;
use reqwest::Client;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::support::collector::{Collector, CollectorBehaviour};
use crate::support::eventually;
use crate::support::process::{Ports, Process, configuration};
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::RedisServer;

use super::genesys::Genesys;
use super::plants::{
    ADMIN_KEY, AMQP_PASSWORD, API_KEY, AUDIT_KEY, BEARER, CALLER_KEY, CLIENT_SECRET, HASH_KEY, HUB_SECRET, NARROW_KEY,
    OTLP_AUTHORIZATION, PASSWORD, Place, REDIS_PASSWORD, SEALING_KEY, SLOW_KEY, STANDARD_SECRET, TOKEN_KEY, base64,
};

/// The most verbose log level.
const LOUD: [(&str, &str); 2] = [("RUST_LOG", "trace"), ("PROFILE_EDGE__LOG__FORMAT", "json")];

/// The servers of a process.
pub(super) enum Backing {
    /// Nothing. The audit goes to standard output.
    Embedded,
    /// A Redis and a virtual host of RabbitMQ, both with a planted password. Records are sealed and ids hashed with a
    /// key; the audit goes to a file.
    Servers(Box<Servers>),
}

pub(super) struct Servers {
    redis: RedisServer,
    pub(super) rabbit: &'static RabbitServer,
    pub(super) vhost: String,
}

pub(super) struct World {
    pub(super) directory: TempDir,
    pub(super) ports: Ports,
    pub(super) client: Client,
    pub(super) genesys: Genesys,
    pub(super) collector: Collector,
    pub(super) backing: Backing,
}

/// A process of a world.
pub(super) struct Running<'a> {
    pub(super) world: &'a World,
    pub(super) process: Process,
    name: &'static str,
}

impl Backing {
    pub(super) async fn servers() -> Self {
        let (redis, rabbit) = (RedisServer::start(&[]).await, RabbitServer::shared().await);
        let mut connection = redis.connect().await.unwrap();
        let user = ["SETUSER", "edge", "on", &format!(">{REDIS_PASSWORD}"), "~*", "&*", "+@all"];
        redis::cmd("ACL").arg(&user).exec_async(&mut connection).await.unwrap();
        let vhost = rabbit.vhost().await;
        // A user of the virtual host's name.
        let user = json!({ "password": AMQP_PASSWORD, "tags": "" });
        rabbit.api("PUT", &format!("/users/{vhost}"), Some(user)).await.expect("a user");
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        rabbit.api("PUT", &format!("/permissions/{vhost}/{vhost}"), Some(all)).await.expect("its permissions");
        Self::Servers(Box::new(Servers { redis, rabbit, vhost }))
    }

    fn settings(&self) -> String {
        let Self::Servers(servers) = self else {
            return format!("audit.sink = \"stdout\"\nkeys.secret = \"{}\"\n", base64(HASH_KEY));
        };
        let redis = servers.redis.url().replace("redis://", &format!("redis://edge:{REDIS_PASSWORD}@"));
        format!(
            "store.kind = \"redis\"\nstore.redis.url = \"{redis}\"\nqueue.kind = \"amqp\"\nqueue.amqp.url = \"{}\"\n\
             store.sealing.active = \"k1\"\nstore.sealing.keys.k1 = \"{}\"\nkeys.scheme = \"hmac-sha256\"\n\
             keys.secret = \"{}\"\naudit.sink = \"file\"\n",
            servers.url(),
            base64(SEALING_KEY),
            base64(HASH_KEY)
        )
    }
}

impl Servers {
    /// The URL of the planted user.
    pub(super) fn url(&self) -> String {
        let (mut url, user): (url::Url, _) = (self.rabbit.url(&self.vhost).parse().unwrap(), &self.vhost);
        url.set_username(user).unwrap();
        url.set_password(Some(AMQP_PASSWORD)).unwrap();
        url.to_string()
    }

    pub(super) async fn redis(&self) -> MultiplexedConnection {
        self.redis.connect().await.unwrap()
    }
}

impl World {
    pub(super) async fn on(backing: Backing) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (genesys, collector) = (Genesys::start().await, Collector::start(CollectorBehaviour::Takes).await);
        let world = Self {
            directory: tempfile::tempdir().unwrap(),
            client: Client::builder().pool_max_idle_per_host(0).build().unwrap(),
            // Last, because listeners started meanwhile may take a port that was chosen already.
            ports: Ports::draw(),
            genesys,
            collector,
            backing,
        };
        configuration(world.directory.path(), &world.settings());
        world
    }

    /// The complete configuration. One secret each is in the text, in the environment and in a file.
    pub(super) fn settings(&self) -> String {
        let (sandbox, genesys) = (format!("127.0.0.1:{}", self.ports.sandbox), self.genesys.address);
        std::fs::write(self.directory.path().join("client-secret"), format!("{CLIENT_SECRET}\n")).unwrap();
        let tenant = |id: &str, address: &str, secret: &str, more: &str| {
            let (client, address) =
                (if secret == "sandbox" { "sandbox" } else { "canary" }, format!("http://{address}"));
            format!(
                "[[tenant]]\nid = \"{id}\"\n{more}[tenant.upstream]\napi_url = \"{address}\"\nlogin_url = \"{address}\"\n\
                 client_id = \"{client}\"\nclient_secret = \"{secret}\"\nrequests_per_minute = 60000\n"
            )
        };
        let all = "[\"customerId\", \"phone\", \"email\", \"externalId\"]";
        let caller = |name: &str, key: &str, fields: &str, rate: u32| {
            let key = hex::encode(Sha256::digest(key));
            format!(
                "[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\", \"10002\", \"10003\"]\n\
                 fields = {fields}\nrequests_per_second = {rate}\nlookup_by = {all}\n"
            )
        };
        [
            format!("http.token_secret = \"{}\"\naudit.key = \"{}\"\n", base64(TOKEN_KEY), base64(AUDIT_KEY)),
            format!("admin.key_sha256 = \"{}\"\n", hex::encode(Sha256::digest(ADMIN_KEY))),
            "sandbox.enabled = true\nupstream.timeout = \"400ms\"\nlookup.deadline = \"700ms\"\n".to_owned(),
            format!("telemetry.endpoint = \"{}\"\n", self.collector.endpoint()),
            "telemetry.headers.authorization = \"env:CANARY_OTLP\"\n".to_owned(),
            "audit.lookups = \"all\"\n".to_owned(),
            self.backing.settings(),
            tenant("10001", &sandbox, "sandbox", ""),
            webhooks(""),
            tenant(
                "10002",
                &genesys.to_string(),
                "file:client-secret",
                "[tenant.agents]\nallow = true\nfields = [\"*\"]\nrecheck = \"1s\"\n",
            ),
            // Its profiles are stale at once.
            tenant("10003", &genesys.to_string(), "file:client-secret", "ttl = \"20ms\"\nttl_jitter = 0.0\n"),
            caller("desktop", CALLER_KEY, "[\"*\"]", 0),
            caller("narrow", NARROW_KEY, "[\"id\", \"workPhone.e164\"]", 0),
            caller("slow", SLOW_KEY, "[\"*\"]", 1),
        ]
        .concat()
    }

    /// Starts a process, with these faults.
    pub(super) async fn start(&self, name: &'static str, faults: &str) -> Running<'_> {
        let stdout = std::fs::File::create(self.directory.path().join(format!("stdout of {name}"))).unwrap();
        let more = [LOUD[0], LOUD[1], ("PROFILE_EDGE_FAULTS", faults)];
        let more = [&more[..], &self.environment()].concat();
        let process = self.ports.start_with_stdout(self.directory.path(), &more, stdout.into());
        self.ports.ready(&self.client).await;
        Running { world: self, process, name }
    }

    fn environment(&self) -> [(&'static str, &'static str); 4] {
        [
            ("PROFILE_EDGE_CONFIG", "edge.toml"),
            ("CANARY_OTLP", OTLP_AUTHORIZATION),
            ("CANARY_BEARER", BEARER),
            ("PROFILE_EDGE_ADMIN_KEY", ADMIN_KEY),
        ]
    }

    /// Runs a command of the binary with this standard input. Returns its exit code and output.
    pub(super) async fn command(&self, arguments: &[&str], more: &[(&str, &str)], input: &str) -> (Option<i32>, Place) {
        let listens = [
            ("PROFILE_EDGE__ADMIN__LISTEN", format!("127.0.0.1:{}", self.ports.admin)),
            ("PROFILE_EDGE__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
        ];
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_profile-edge"))
            .args(arguments)
            .current_dir(self.directory.path())
            .envs(LOUD)
            .envs(self.environment())
            .envs(listens)
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // A command that reads nothing may have ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        let Output { status, stdout, stderr } = child.wait_with_output().await.unwrap();
        (status.code(), Place::new(format!("what {arguments:?} printed"), [stdout, stderr].concat()))
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// The signature schemes of tenant 10001. `more` are further API keys.
pub(super) fn webhooks(more: &str) -> String {
    let standard = base64(STANDARD_SECRET);
    format!(
        "[[tenant.webhook]]\nscheme = \"api-key\"\nsecrets = [\"{API_KEY}\"{more}]\n\
         [[tenant.webhook]]\nscheme = \"basic\"\nusername = \"eventbridge\"\nsecrets = [\"{PASSWORD}\"]\n\
         [[tenant.webhook]]\nscheme = \"bearer\"\nsecrets = [\"env:CANARY_BEARER\"]\n\
         [[tenant.webhook]]\nscheme = \"hub-signature\"\nsecrets = [\"{HUB_SECRET}\"]\n\
         [[tenant.webhook]]\nscheme = \"standard-webhooks\"\nsecrets = [\"whsec_{standard}\"]\n"
    )
}

impl Running<'_> {
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.world.ports.public)
    }

    pub(super) fn admin(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.world.ports.admin)
    }

    /// The sum of all series of a metric that have this label.
    pub(super) async fn sum(&self, metric: &str, label: &str) -> f64 {
        let text = self.world.client.get(self.admin("/metrics")).send().await.unwrap().text().await.unwrap();
        let series = text.lines().filter(|line| line.starts_with(metric) && line.contains(label));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until every event that was accepted has been applied.
    pub(super) async fn settled(&self) {
        eventually("all events are applied", || async {
            let accepted = self.sum("profile_edge_ingest_events_total", "outcome=\"queued\"").await;
            let mut applied = 0.0;
            for outcome in ["applied", "duplicate", "outrun"] {
                let label = format!("outcome=\"{outcome}\"");
                applied += self.sum("profile_edge_consumer_events_total", &label).await;
            }
            (accepted > 0.0 && applied >= accepted).then_some(())
        })
        .await;
    }

    /// Waits until there are this many dead letters.
    pub(super) async fn dead_letters(&self, count: f64) {
        eventually("the dead letters", || async {
            (self.sum("profile_edge_dead_letters", "").await >= count).then_some(())
        })
        .await;
    }

    /// Stops the process. Returns its log, its standard output, its metrics and its readiness.
    pub(super) async fn end(mut self) -> Vec<Place> {
        let mut places = Vec::new();
        for path in ["/metrics", "/readyz"] {
            let text = self.world.client.get(self.admin(path)).send().await.unwrap().text().await.unwrap();
            places.push(Place::new(format!("{path} of {}", self.name), text));
        }
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await, Some(0), "{}", self.process.log());
        self.process.wait_for_log("\"stopped\"").await;
        places.push(Place::new(format!("the log of {}", self.name), self.process.log()));
        let stdout = format!("stdout of {}", self.name);
        places.push(Place::new(&stdout, std::fs::read(self.world.path().join(&stdout)).unwrap()));
        places
    }
}
