//! Planted personal data must not come out anywhere but in answers: not in logs, metrics, the audit, or the queue's
//! files.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::process::{Process, free_port};
use crate::support::{customer, eventually};

/// What is planted. All of it is unmistakable, so that a hit is a leak.
const NAME: &str = "Zephyrina-Canaryname";
const EMAIL: &str = "zephyrina.canary@example.com";
const PHONE: &str = "+15550199871";
const RAW_ID: &str = "CANARY-CUSTOMER-4711";

struct Run {
    process: Process,
    client: reqwest::Client,
    public: String,
    admin: String,
    sandbox: String,
}

impl Run {
    async fn start(directory: &std::path::Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = |port: u16| format!("127.0.0.1:{port}");
        let (public, admin, sandbox) = (address(free_port()), address(free_port()), address(free_port()));
        let environment = [
            ("PROFILE_EDGE__HTTP__LISTEN", public.as_str()),
            ("PROFILE_EDGE__ADMIN__LISTEN", admin.as_str()),
            ("PROFILE_EDGE__SANDBOX__LISTEN", sandbox.as_str()),
            ("PROFILE_EDGE__SANDBOX__LATENCY", "0ms"),
            ("PROFILE_EDGE__AUDIT__SINK", "file"),
            ("PROFILE_EDGE__AUDIT__LOOKUPS", "all"),
            ("PROFILE_EDGE__LOG__FORMAT", "json"),
            ("RUST_LOG", "trace"),
        ];
        let process = Process::start(directory, &[], &environment);
        let run = Self { process, client: reqwest::Client::new(), public, admin, sandbox };
        eventually("readiness", || async {
            let ready = run.client.get(format!("http://{}/readyz", run.admin)).send().await.ok()?;
            (ready.status() == 200).then_some(())
        })
        .await;
        run
    }

    async fn look_up(&self, customer: &str) -> reqwest::Response {
        let request = self.client.get(format!("http://{}/api/v1/profile", self.public));
        request
            .query(&[("tenantId", "10001"), ("customerId", customer)])
            .header("X-API-Key", "demo-key")
            .send()
            .await
            .unwrap()
    }

    async fn post(&self, body: &Value) {
        let request = self.client.post(format!("http://{}/webhooks/10001", self.public));
        request.header("X-API-Key", "demo-secret").json(body).send().await.unwrap();
    }

    async fn sandbox(&self, method: Method, path: &str, body: &Value) {
        let request = self.client.request(method, format!("http://{}{path}", self.sandbox));
        request.bearer_auth("sandbox-editor").json(body).send().await.unwrap();
    }

    async fn everything(&self) {
        let one = customer(1);
        let contact = format!("/api/v2/externalcontacts/contacts/{one}");
        let person = json!({ "firstName": NAME, "workEmail": EMAIL, "workPhone": { "e164": PHONE } });
        self.sandbox(Method::PATCH, &contact, &person).await;
        eventually("the planted profile", || async {
            let text = self.look_up(&one).await.text().await.unwrap();
            text.contains(NAME).then_some(())
        })
        .await;
        for behaviour in [json!({ "fail_status": 500 }), json!({ "fail_status": 429 }), json!({ "malformed": true })] {
            self.sandbox(Method::POST, "/sandbox/behaviour", &behaviour).await;
            self.look_up(RAW_ID).await;
            self.look_up(&customer(2)).await;
        }
        let calm = json!({ "fail_status": null, "fail_ratio": null, "malformed": null });
        self.sandbox(Method::POST, "/sandbox/behaviour", &calm).await;
        let flat = json!({ "tenantId": "10001", "customerId": RAW_ID, "eventId": format!("change-of-{RAW_ID}") });
        let topic = format!("v2.externalcontacts.contacts.{one}");
        let mut body = person.clone();
        body["id"] = one.clone().into();
        let notification = json!({ "topicName": topic, "version": "2", "eventBody": body, "metadata": {} });
        let malformed = json!({ "tenantId": "10001", "customerId": [RAW_ID, NAME, EMAIL, PHONE] });
        let foreign = json!({ "tenantId": "10002", "customerId": RAW_ID });
        for event in [&flat, &notification, &malformed, &foreign] {
            self.post(event).await;
        }
        let refused = self.client.post(format!("http://{}/webhooks/10001", self.public));
        refused.header("X-API-Key", "wrong").json(&flat).send().await.unwrap();
        self.sandbox(Method::DELETE, &contact, &Value::Null).await;
        eventually("the tombstone", || async { (self.look_up(&one).await.status() == 410).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_personal_is_in_logs_metrics_or_the_queue() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::start(directory.path()).await;
    run.everything().await;
    let metrics = run.client.get(format!("http://{}/metrics", run.admin)).send().await.unwrap().text().await.unwrap();
    run.process.signal("TERM");
    assert_eq!(run.process.ended().await, Some(0));

    let mut places =
        vec![("metrics".to_owned(), metrics.into_bytes()), ("logs".to_owned(), run.process.log().into_bytes())];
    places.push(("audit".to_owned(), std::fs::read(directory.path().join("data/audit.jsonl")).unwrap()));
    for file in std::fs::read_dir(directory.path().join("data/queue")).unwrap() {
        let path = file.unwrap().path();
        places.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    assert!(places.len() >= 4, "there is a queue file");
    let one = customer(1);
    for (place, bytes) in &places {
        assert!(bytes.len() > 100, "{place} was looked at");
        for planted in [NAME, EMAIL, PHONE, RAW_ID, one.as_str(), "demo-secret", "demo-key"] {
            assert!(!contains(bytes, planted), "{planted} is in the {place}: {}", around(bytes, planted));
        }
    }
}

#[test]
fn a_planted_leak_is_found() {
    assert!(contains(b"warn: lookup of CANARY-CUSTOMER-4711 failed", RAW_ID));
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
}

fn around(bytes: &[u8], text: &str) -> String {
    let at = bytes.windows(text.len()).position(|window| window.eq_ignore_ascii_case(text.as_bytes())).unwrap_or(0);
    let end = bytes.len().min(at + text.len() + 120);
    String::from_utf8_lossy(&bytes[at.saturating_sub(200)..end]).into_owned()
}
