//! SIGHUP reloads: new keys, secrets and certificates apply at once, and no request is dropped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::Client;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::process::{Ports, Process, configuration};
use crate::support::tls::{certificates, client_trusting, listener};
use crate::support::{customer, eventually};

/// A process whose configuration can be changed.
struct ReloadedProcess {
    directory: TempDir,
    ports: Ports,
    process: Process,
    /// The client of the admin listener, which uses plain HTTP.
    operator: Client,
}

impl ReloadedProcess {
    async fn start() -> Self {
        let (directory, ports) = (tempfile::tempdir().unwrap(), Ports::draw());
        certificates(directory.path());
        std::fs::write(directory.path().join("webhook"), "old-webhook-secret\n").unwrap();
        let file = configuration(directory.path(), &settings(directory.path(), &ports, "old-key"));
        let process = ports.start(directory.path(), &[("PROFILE_EDGE_CONFIG", &file.display().to_string())]);
        let operator = client_trusting(&[]).build().unwrap();
        ports.ready(&operator).await;
        Self { directory, ports, process, operator }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a configuration, and waits until the process has reloaded it.
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

/// The rate limit of the caller `hasty`, in requests per second.
const HASTY: u32 = 5;

/// The settings of three callers, one with this key, and of a webhook whose secret is in a file.
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

/// Callers that send lookups without a pause.
struct SteadyLookups {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl SteadyLookups {
    /// Starts callers. Half of them keep their connection, the others open one for each lookup.
    fn start(authorities: &[&Path], port: u16) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..4).map(|n| {
            let idle = if n % 2 == 0 { 8 } else { 0 };
            let client = client_trusting(authorities).pool_max_idle_per_host(idle).build().unwrap();
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(look_up(&client, port, "steady-key").await.expect("every lookup is answered"), 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self { tasks: tasks.collect(), stop, answered }
    }

    /// Waits for 20 more answers.
    async fn continues(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("lookups continue", || async {
            (self.answered.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
    }

    /// Stops the callers; panics if a lookup failed.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no lookup failed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_applies_keys_secrets_and_certificates_without_a_drop() {
    let service = ReloadedProcess::start().await;
    let (path, next) = (service.path(), tempfile::tempdir().unwrap());
    certificates(next.path());
    let load = SteadyLookups::start(&[path, next.path()], service.ports.public);
    load.continues().await;
    let client = client_trusting(&[path, next.path()]).build().unwrap();
    assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 200);
    assert_eq!(service.post(&client, "old-webhook-secret").await, 202);

    // Only the secret file, the caller's key, and the certificate files change.
    std::fs::write(path.join("webhook"), "new-webhook-secret\n").unwrap();
    let changed = settings(path, &service.ports, "new-key");
    let changed = changed.replace(&listener("http", path), &listener("http", next.path()));
    service.reload(&changed, "ok").await;

    assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 200);
    assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 401);
    assert_eq!(service.post(&client, "new-webhook-secret").await, 202);
    assert_eq!(service.post(&client, "old-webhook-secret").await, 401);
    let of = |authority: &Path| client_trusting(&[authority]).build().unwrap();
    assert_eq!(service.look_up(&of(next.path()), "new-key").await.unwrap(), 200);
    assert!(service.look_up(&of(path), "new-key").await.is_err(), "the old certificate must not be served");
    load.continues().await;
    load.end().await;
    let log = service.process.log();
    assert!(!log.contains("need a restart"), "{log}");
    for secret in ["old-webhook-secret", "new-webhook-secret", "old-key", "new-key"] {
        assert!(!log.contains(secret), "{log}");
    }
    drain(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_a_bad_file_changes_nothing_and_logs_why() {
    let service = ReloadedProcess::start().await;
    let path = service.path();
    let load = SteadyLookups::start(&[path], service.ports.public);
    let client = client_trusting(&[path]).build().unwrap();
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
        service.process.wait_for_log("keeping the running one").await;
        service.process.wait_for_log(named).await;
        let log = service.process.log();
        let line = log.lines().rfind(|line| line.contains("keeping the running one")).unwrap();
        assert!(line.contains(named), "{line}");
        assert!(!line.contains("planted"), "{line}");
        assert_eq!(service.look_up(&client, "old-key").await.unwrap(), 200, "{named}");
        assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 401, "{named}");
        assert_eq!(service.post(&client, "old-webhook-secret").await, 202, "{named}");
    }
    load.continues().await;
    load.end().await;
    drain(service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_names_what_needs_a_restart_and_applies_the_rest() {
    let service = ReloadedProcess::start().await;
    let client = client_trusting(&[service.path()]).build().unwrap();
    let changed = settings(service.path(), &service.ports, "new-key");
    let changed = changed.replace("client_secret = \"sandbox\"", "client_secret = \"planted\"");
    service.reload(&format!("lookup.ttl = \"77s\"\n{changed}"), "ok").await;
    let named = service.process.wait_for_log("need a restart").await;
    let log = service.process.log();
    let line = log.lines().rfind(|line| line.contains("need a restart")).unwrap();
    assert!(line.contains("lookup.ttl") && line.contains("tenant[0].upstream.client_secret"), "{line}{named}");
    assert!(!line.contains("caller") && !line.contains("planted"), "{line}");
    assert_eq!(service.look_up(&client, "new-key").await.unwrap(), 200);
    drain(service).await;
}

async fn drain(mut service: ReloadedProcess) {
    service.process.signal("TERM");
    assert_eq!(service.process.ended().await, Some(0), "{}", service.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_reset_rate_limits() {
    const RELOADS: u32 = 20;
    let service = ReloadedProcess::start().await;
    let client = client_trusting(&[service.path()]).build().unwrap();
    let (began, mut served) = (Instant::now(), 0);
    for n in 0..RELOADS {
        // Uses up the rate limit, if the machine is fast enough.
        for _ in 0..10 * HASTY {
            match service.look_up(&client, "hasty-key").await.unwrap() {
                200 => served += 1,
                _ => break,
            }
        }
        let changed = settings(service.path(), &service.ports, &format!("key-{n}"));
        service.reload(&changed, "ok").await;
    }
    // One burst and what was refilled since. If reloads reset the limit, many bursts would be served.
    let most = f64::from(HASTY) * (1.0 + began.elapsed().as_secs_f64());
    assert!(f64::from(served) <= most.ceil(), "{served} were served, at most {most} fit");
    drain(service).await;
}
