//! SIGHUP: who may come in changes at once, and nobody who is inside notices.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::Client;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::process::{Ports, Process, configuration};
use crate::support::tls::{believer, certificates, listener};
use crate::support::{customer, eventually};

/// A service whose configuration can be changed.
struct Service {
    directory: TempDir,
    ports: Ports,
    process: Process,
    /// Of the admin listener, which is plain.
    operator: Client,
}

impl Service {
    async fn start() -> Self {
        let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
        certificates(directory.path());
        std::fs::write(directory.path().join("webhook"), "old-secret\n").unwrap();
        let file = configuration(directory.path(), &settings(directory.path(), &ports, "old-key"));
        let process = ports.start(directory.path(), &[("PROFILE_EDGE_CONFIG", &file.display().to_string())]);
        let operator = believer(&[]).build().unwrap();
        ports.ready(&operator).await;
        Self { directory, ports, process, operator }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a configuration and has it read; returns when that is done.
    async fn reload(&self, settings: &str, outcome: &str) {
        let series = format!("profile_edge_config_reloads_total{{outcome=\"{outcome}\"}}");
        let before = self.ports.metric(&self.operator, &series).await;
        configuration(self.path(), settings);
        self.process.signal("HUP");
        eventually(&series, || async { (self.ports.metric(&self.operator, &series).await > before).then_some(()) })
            .await;
    }

    async fn look_up(&self, client: &Client, key: &str) -> reqwest::Result<u16> {
        look_up(client, self.ports.public, key).await
    }

    async fn post(&self, client: &Client, secret: &str) -> u16 {
        let event = json!({ "tenantId": "10001", "customerId": customer(7) });
        let url = format!("https://127.0.0.1:{}/webhooks/10001", self.ports.public);
        client.post(url).header("X-API-Key", secret).json(&event).send().await.unwrap().status().as_u16()
    }
}

async fn look_up(client: &Client, port: u16, key: &str) -> reqwest::Result<u16> {
    let url = format!("https://127.0.0.1:{port}/api/v1/profile?tenantId=10001&customerId={}", customer(1));
    let answer = client.get(url).header("X-API-Key", key).send().await?;
    let status = answer.status().as_u16();
    answer.bytes().await?;
    Ok(status)
}

/// How many requests the hasty caller may make per second.
const HASTY: u32 = 5;

/// Three callers, one of whose keys is `key`; the webhook's secret is in a file.
fn settings(directory: &Path, ports: &Ports, key: &str) -> String {
    let digest = |key: &str| hex::encode(Sha256::digest(key));
    let (sandbox, webhook) = (ports.sandbox, directory.join("webhook").display().to_string());
    format!(
        r#"
        sandbox.enabled = true
        [[tenant]]
        id = "10001"
        upstream = {{ api_url = "http://127.0.0.1:{sandbox}", login_url = "http://127.0.0.1:{sandbox}", client_id = "sandbox", client_secret = "sandbox" }}
        webhook = [{{ scheme = "api-key", secrets = ["file:{webhook}"] }}]
        [[caller]]
        name = "steady"
        key_sha256 = "{}"
        tenants = ["10001"]
        fields = ["*"]
        [[caller]]
        name = "changing"
        key_sha256 = "{}"
        tenants = ["10001"]
        fields = ["*"]
        [[caller]]
        name = "hasty"
        key_sha256 = "{}"
        tenants = ["10001"]
        fields = ["*"]
        requests_per_second = {HASTY}
        {}"#,
        digest("steady-key"),
        digest(key),
        digest("hasty-key"),
        listener("http", directory)
    )
}

/// Callers who look up without a pause until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Half of them keep their connection, half make one for each lookup.
    fn start(authorities: &[&Path], port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..4).map(|n| {
            let idle = if n % 2 == 0 { 8 } else { 0 };
            let client = believer(authorities).pool_max_idle_per_host(idle).build().unwrap();
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(look_up(&client, port, "steady-key").await.expect("an answer"), 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self { tasks: tasks.collect(), stop, answered }
    }

    /// Waits until there were so many more answers.
    async fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("lookups go on", || async { (self.answered.load(Ordering::Relaxed) > before + 20).then_some(()) })
            .await;
    }

    /// Ends; fails if one lookup did.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no lookup failed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_changes_keys_secrets_and_certificates_at_once_and_drops_nothing() {
    let service = Service::start().await;
    let (path, next) = (service.path(), tempfile::tempdir().unwrap());
    certificates(next.path());
    let load = Load::start(&[path, next.path()], service.ports.public);
    load.goes_on().await;
    let client = believer(&[path, next.path()]).build().unwrap();
    assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 200);
    assert_eq!(service.post(&client, "old-secret").await, 202);

    // Only the secret's file, the caller's key and the certificate's files change.
    std::fs::write(path.join("webhook"), "new-secret\n").unwrap();
    let changed = settings(path, &service.ports, "new-key");
    let changed = changed.replace(&listener("http", path), &listener("http", next.path()));
    service.reload(&changed, "ok").await;

    assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 200);
    assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 401);
    assert_eq!(service.post(&client, "new-secret").await, 202);
    assert_eq!(service.post(&client, "old-secret").await, 401);
    let of = |authority: &Path| believer(&[authority]).build().unwrap();
    assert_eq!(service.look_up(&of(next.path()), "new-key").await.unwrap(), 200);
    assert!(service.look_up(&of(path), "new-key").await.is_err(), "the old certificate is shown to nobody");
    load.goes_on().await;
    load.end().await;
    let log = service.process.log();
    assert!(!log.contains("need a restart"), "{log}");
    for secret in ["old-secret", "new-secret", "old-key", "new-key"] {
        assert!(!log.contains(secret), "{log}");
    }
    drain(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_with_a_bad_file_changes_nothing_and_says_so() {
    let service = Service::start().await;
    let path = service.path();
    let load = Load::start(&[path], service.ports.public);
    let client = believer(&[path]).build().unwrap();
    let good = settings(path, &service.ports, "new-key");
    std::fs::write(path.join("broken.pem"), "-----BEGIN CERTIFICATE-----\nplanted\n").unwrap();
    let bad = [
        (format!("{good}\nplanted = \"planted\n"), "edge.toml"),
        (good.replace("\"steady\"", "\"changing\""), "caller[1].name"),
        (good.replace("server.pem", "broken.pem"), "http.tls.cert"),
        (good.replace("webhook\"]", "gone\"]"), "tenant[0].webhook[0].secrets[0]"),
    ];
    for (settings, named) in &bad {
        service.reload(settings, "error").await;
        let log = service.process.log();
        let line = log.lines().rfind(|line| line.contains("keeping the running one")).unwrap();
        assert!(line.contains(named), "{line}");
        assert!(!line.contains("planted"), "{line}");
        assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 200, "{named}");
        assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 401, "{named}");
        assert_eq!(service.post(&client, "old-secret").await, 202, "{named}");
    }
    load.goes_on().await;
    load.end().await;
    drain(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_and_the_rest_takes_effect() {
    let service = Service::start().await;
    let client = believer(&[service.path()]).build().unwrap();
    let changed = settings(service.path(), &service.ports, "new-key");
    let changed = changed.replace("client_secret = \"sandbox\"", "client_secret = \"planted\"");
    service.reload(&format!("lookup.ttl = \"77s\"\n{changed}"), "ok").await;
    let named = service.process.says("need a restart").await;
    let log = service.process.log();
    let line = log.lines().rfind(|line| line.contains("need a restart")).unwrap();
    assert!(line.contains("lookup.ttl") && line.contains("tenant[0].upstream.client_secret"), "{line}{named}");
    assert!(!line.contains("caller") && !line.contains("planted"), "{line}");
    assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 200);
    drain(service).await;
}

async fn drain(mut service: Service) {
    service.process.signal("TERM");
    assert_eq!(service.process.ended().await, Some(0), "{}", service.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_gives_nobody_its_rate_anew() {
    const RELOADS: u32 = 20;
    let service = Service::start().await;
    let client = believer(&[service.path()]).build().unwrap();
    let (began, mut served) = (Instant::now(), 0);
    for n in 0..RELOADS {
        // Until the rate is spent, if this machine is quick enough to spend it.
        for _ in 0..10 * HASTY {
            match service.look_up(&client, "hasty-key").await.unwrap() {
                200 => served += 1,
                _ => break,
            }
        }
        let changed = settings(service.path(), &service.ports, &format!("key-{n}"));
        service.reload(&changed, "ok").await;
    }
    // A burst, and what has come back since; with each reload a burst it would be many times as much.
    let most = f64::from(HASTY) * (1.0 + began.elapsed().as_secs_f64());
    assert!(f64::from(served) <= most.ceil(), "{served} were served, at most {most} fit");
    drain(service).await;
}
