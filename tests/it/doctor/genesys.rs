//! Worlds whose Genesys, machine or configuration is broken.

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;

use super::{Diagnosis, diagnose, sandbox_of, settings};
use crate::support::edge::Edge;
use crate::support::tls::{certificates, listener};

const ALONE: &[&str] = &["--without-service"];

async fn behaving(behaviour: serde_json::Value) -> Diagnosis {
    let genesys = Edge::start().await;
    genesys.behave(behaviour).await;
    let found = diagnose(&settings(&sandbox_of(&genesys)), ALONE, &[]).await;
    genesys.stop().await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_oauth_client_are_named() {
    let view = "externalContacts:contact:view";
    for (behaviour, check, verdict, advice) in [
        (
            json!({ "permissions": [view, "externalContacts:contact:edit"] }),
            "genesys.permissions",
            "failed",
            "remove the",
        ),
        (json!({ "permissions": ["conversation:call:view"] }), "genesys.permissions", "failed", "add the permission"),
        (json!({ "token_lifetime": 300 }), "genesys.token", "warning", "raise the token duration"),
    ] {
        behaving(behaviour).await.blames_only(check, verdict, advice);
    }
    let genesys = Edge::start().await;
    let wrong = settings(&sandbox_of(&genesys)).replace("client_secret = \"sandbox\"", "client_secret = \"wrong\"");
    diagnose(&wrong, ALONE, &[]).await.blames_only("genesys.token", "failed", "client_secret");
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_genesys_are_named() {
    for (behaviour, check, verdict, advice) in [
        (json!({ "fail_status": 503 }), "genesys.reading", "failed", "status page"),
        (json!({ "fail_status": 403 }), "genesys.reading", "failed", "divisions"),
        (json!({ "rate_limit_per_minute": 0 }), "genesys.reading", "warning", "a client of its own"),
        (json!({ "clock_offset_seconds": 600 }), "machine.clock", "failed", "NTP"),
        (json!({ "clock_offset_seconds": -20 }), "machine.clock", "warning", "NTP"),
        (json!({ "transports": ["Pigeon"] }), "events.source", "warning", "lookup.ttl"),
    ] {
        behaving(behaviour).await.blames_only(check, verdict, advice);
    }
    let found = behaving(json!({ "transports": ["Websocket", "ProcessAutomation"] })).await;
    found.is_healthy();
    let source = found.findings.iter().find(|finding| finding["check"] == "events.source").unwrap();
    assert!(source["detail"].as_str().unwrap().contains("workflow"), "{source}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catch_up_is_named_where_audits_are_permitted() {
    let permissions = ["externalContacts:contact:view", "audits:audit:view"];
    for (behaviour, expected) in
        [(json!({ "permissions": permissions }), "replay --from-genesys --since"), (json!({}), "audits:audit:view")]
    {
        let found = behaving(behaviour).await;
        found.is_healthy();
        let audits = found.findings.iter().find(|finding| finding["check"] == "genesys.audits").unwrap();
        assert!(audits["detail"].as_str().unwrap().contains(expected), "{audits}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_between_here_and_genesys_are_named() {
    const CHECK: &str = "genesys.connection";
    diagnose(&settings("http://login.nonexistent.invalid"), ALONE, &[]).await.blames_only(
        CHECK,
        "failed",
        "DNS server",
    );
    let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    for (nobody, advice) in [
        (format!("http://127.0.0.1:{port}"), "nothing listens"),
        (format!("https://0.0.0.0:{port}"), "outgoing connections"),
    ] {
        diagnose(&settings(&nobody), ALONE, &[]).await.blames_only(CHECK, "failed", advice);
    }

    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(own.path());
    certificates(other.path());
    let proxy = Edge::start_with(&listener("http", own.path())).await;
    let ca = other.path().join("ca.pem");
    let trusted = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let encrypted = settings(&format!("https://{}", proxy.public));
    diagnose(&encrypted, ALONE, &trusted).await.blames_only(CHECK, "failed", "certificate is not trusted");
    // Something else answers in its place.
    let elsewhere = settings(&format!("http://{}", proxy.admin));
    diagnose(&elsewhere, ALONE, &[]).await.blames_only("genesys.token", "failed", "as Genesys does");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_configuration_and_its_files_are_named() {
    let genesys = Edge::start().await;
    let fine = settings(&sandbox_of(&genesys));
    let misspelt = fine.replace("http.limits", "http.limit");
    diagnose(&misspelt, ALONE, &[]).await.blames_only("configuration", "failed", "check-config");
    let unkeyed = fine.replace("hmac-sha256", "sha256");
    diagnose(&unkeyed, ALONE, &[]).await.blames_only("configuration", "warning", "setting");

    let directory = tempfile::tempdir().unwrap();
    for (year, verdict) in [(2021, "failed"), (4000, "ok")] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        std::fs::write(directory.path().join("server.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(directory.path().join("server.key"), key.serialize_pem()).unwrap();
        let found = diagnose(&format!("{fine}{}", listener("http", directory.path())), ALONE, &[]).await;
        match verdict {
            "ok" => found.is_healthy(),
            failed => found.blames_only("certificate", failed, "renew"),
        }
    }
    genesys.stop().await;
}
