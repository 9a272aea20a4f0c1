//! The doctor: in each broken world it names what is broken, with the right advice, and blames nothing else.

mod genesys;
mod servers;
mod service;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::edge::{DEMO_KEY_SHA256, Edge};
use crate::support::process::configuration;

/// The secret of the webhook.
const WEBHOOK_SECRET: &str = "secret-of-the-doctors-webhook";

/// What a run of the doctor found.
#[derive(Debug)]
struct Diagnosis {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Diagnosis {
    /// Asserts that exactly this check is not in order, with this verdict, and an advice with these words.
    fn blames_only(&self, check: &str, verdict: &str, advice: &str) {
        let wrong: Vec<&Value> = self.findings.iter().filter(|finding| finding["verdict"] != "ok").collect();
        assert_eq!(wrong.len(), 1, "expected {check} alone: {wrong:#?}");
        let found = (wrong[0]["check"].as_str().unwrap(), wrong[0]["verdict"].as_str().unwrap());
        assert_eq!(found, (check, verdict), "{wrong:#?}");
        let given = wrong[0]["advice"].as_str().unwrap();
        assert!(given.contains(advice), "expected {advice:?} in {given:?}");
        assert_eq!(self.code, Some(if verdict == "failed" { 2 } else { 1 }));
    }

    fn is_healthy(&self) {
        let wrong: Vec<&Value> = self.findings.iter().filter(|finding| finding["verdict"] != "ok").collect();
        assert_eq!((wrong.len(), self.code), (0, Some(0)), "{wrong:#?}");
    }

    fn names(&self, check: &str) -> bool {
        self.findings.iter().any(|finding| finding["check"] == check)
    }
}

/// Settings of a tenant whose Genesys is at this URL, with a secret and a client that can be changed by replacing text.
fn settings(genesys: &str) -> String {
    format!(
        "http.limits.max_connections = 100\nsecurity.require_tls = false\n\
         keys = {{ scheme = \"hmac-sha256\", secret = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\" }}\n\
         [[tenant]]\nid = \"10001\"\n\
         upstream = {{ api_url = \"{genesys}\", login_url = \"{genesys}\", client_id = \"sandbox\", client_secret = \"sandbox\" }}\n\
         webhook = [{{ scheme = \"hub-signature\", secrets = [\"{WEBHOOK_SECRET}\"] }}]\n\
         [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = [\"id\"]\n"
    )
}

fn sandbox_of(edge: &Edge) -> String {
    format!("http://{}", edge.sandbox_address())
}

/// Runs the doctor with a file of settings.
async fn diagnose(settings: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Diagnosis {
    let directory = tempfile::tempdir().unwrap();
    diagnose_in(&directory, settings, arguments, environment).await
}

async fn diagnose_in(
    directory: &TempDir,
    settings: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Diagnosis {
    let path = configuration(directory.path(), settings);
    run(directory.path(), &[&["--config", path.to_str().unwrap()], arguments].concat(), environment).await
}

async fn run(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Diagnosis {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    command.args(["doctor", "--json"]).args(arguments).envs(environment.iter().copied());
    command.current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("the doctor ends").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let findings = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!text.contains(WEBHOOK_SECRET) && !text.contains("demo-key"), "a secret was printed: {text}");
    Diagnosis { code: output.status.code(), findings }
}
