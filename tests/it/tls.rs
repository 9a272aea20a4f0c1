//! TLS at the listeners: which clients are served, and how operators connect.

use std::path::Path;
use std::process::{Command, Output};

use profile_edge::config;
use reqwest::{StatusCode, Version, tls};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::edge::Edge;
use crate::support::process::configuration;
use crate::support::tls::{certificates, client_trusting, identity, listener};
use crate::support::{PATIENCE, customer};

const QUIET: &str = "sandbox.latency = \"0ms\"\n";

fn authority() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    directory
}

/// Looks a customer up over TLS.
async fn look_up(edge: &Edge, client: reqwest::ClientBuilder) -> reqwest::Result<reqwest::Response> {
    let url = format!("https://{}/api/v1/profile?tenantId=10001&customerId={}", edge.public, customer(1));
    client.build().unwrap().get(url).header("X-API-Key", "demo-key").send().await
}

/// Sends a `ClientHello` with this highest version (RFC 5246 section 7.4.1.2), and returns the version of the answer.
async fn say_hello(edge: &Edge, version: [u8; 2]) -> Vec<u8> {
    let mut hello = version.to_vec();
    hello.extend_from_slice(&[7; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 and ..._CBC_SHA; no compression.
    hello.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x09, 1, 0]);
    // Groups: x25519, secp256r1. Point formats: uncompressed. Signatures: ecdsa_secp256r1_sha256.
    let extensions =
        [&[0, 10, 0, 6, 0, 4, 0, 0x1d, 0, 0x17][..], &[0, 11, 0, 2, 1, 0], &[0, 13, 0, 4, 0, 2, 4, 3]].concat();
    hello.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend_from_slice(&extensions);
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let handshake = [&[1, 0][..], &length(&hello), &hello].concat();
    let record = [&[0x16, 3, 1][..], &length(&handshake), &handshake].concat();
    let mut stream = TcpStream::connect(edge.public).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = vec![0; 7];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_clients_are_served_and_older_ones_refused() {
    let directory = authority();
    let edge = Edge::start_with(&format!("{QUIET}{}", listener("http", directory.path()))).await;
    for version in [tls::Version::TLS_1_2, tls::Version::TLS_1_3] {
        let client = || client_trusting(&[directory.path()]).tls_version_min(version).tls_version_max(version);
        let answer = look_up(&edge, client()).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=31536000");
        let answer = look_up(&edge, client().http1_only()).await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_11));
    }
    // A handshake record, its version, two bytes of length, then the server's hello.
    let [kind, .., message, _] = say_hello(&edge, [3, 3]).await[..] else { panic!("seven bytes") };
    assert_eq!((kind, message), (0x16, 2), "the same words with TLS 1.2 are understood");
    for older in [[3, 2], [3, 1], [3, 0]] {
        // An alert of two bytes: fatal, protocol_version.
        let answer = say_hello(&edge, older).await;
        assert_eq!((answer[0], &answer[3..]), (0x15, &[0, 2, 2, 70][..]), "{older:?}");
    }
    let plain = edge.client.get(edge.url("/openapi.json")).send().await;
    assert!(plain.is_err(), "a plain request must not be answered");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_required_where_configured() {
    let (directory, stranger) = (authority(), authority());
    let client_ca = format!("client_ca = {:?}\n", directory.path().join("ca.pem").display().to_string());
    let known = || client_trusting(&[directory.path()]).identity(identity(directory.path()));
    let unknown = || client_trusting(&[directory.path()]).identity(identity(stranger.path()));
    let none = || client_trusting(&[directory.path()]);
    for (more, without_one) in [("", false), ("client_cert = \"optional\"\n", true)] {
        let settings = format!("{QUIET}{}{client_ca}{more}", listener("http", directory.path()));
        let edge = Edge::start_with(&settings).await;
        assert_eq!(look_up(&edge, known()).await.unwrap().status(), StatusCode::OK);
        assert!(look_up(&edge, unknown()).await.is_err(), "{more}");
        assert_eq!(look_up(&edge, none()).await.is_ok(), without_one, "{more}");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_handshake_delays_nobody_and_times_out() {
    const SILENT: usize = 200;
    let directory = authority();
    let limits = "[http.limits]\nhandshake_timeout = \"300ms\"\n";
    let edge = Edge::start_with(&format!("{QUIET}{}{limits}", listener("http", directory.path()))).await;
    let mut silent = Vec::new();
    for n in 0..SILENT {
        let mut stream = TcpStream::connect(edge.public).await.unwrap();
        // Some send the beginning of a handshake.
        if n % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 1, 0]).await.unwrap();
        }
        silent.push(stream);
    }
    assert_eq!(look_up(&edge, client_trusting(&[directory.path()])).await.unwrap().status(), StatusCode::OK);
    for mut stream in silent {
        let mut byte = [0];
        let end = timeout(PATIENCE, stream.read(&mut byte)).await.expect("the connection is closed");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    let ended = "profile_edge_connections_ended_total{listener=\"public\",reason=\"handshake_timeout\"}";
    edge.wait_for_metric(ended, SILENT as f64).await;
    edge.stop().await;
}

/// A tenant and a caller. The demo's may not be reachable from other hosts.
const OWN: &str = r#"
    [[tenant]]
    id = "10001"
    upstream = { region = "us_east_1", client_id = "id", client_secret = "secret" }
    "#;

#[test]
fn a_plain_listener_beyond_loopback_is_refused() {
    let directory = authority();
    let key = format!("admin.key_sha256 = \"{}\"\n", hex::encode(Sha256::digest("operators-key")));
    for (table, listen) in [("http", "http.listen"), ("admin", "admin.listen")] {
        let settings = format!("{key}{listen} = \"0.0.0.0:9000\"\n{OWN}");
        let refused = config::from_toml(&settings).unwrap_err().to_string();
        assert!(refused.contains(listen) && refused.contains(&format!("{table}.tls")), "{refused}");
        config::from_toml(&format!("security.require_tls = false\n{settings}")).unwrap();
        config::from_toml(&format!("{settings}{}", listener(table, directory.path()))).unwrap();
    }
}

#[test]
fn an_unusable_tls_file_is_named_and_its_contents_are_not_shown() {
    let directory = authority();
    let key = std::fs::read_to_string(directory.path().join("server.key")).unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(at("broken.pem"), "-----BEGIN CERTIFICATE-----\nplanted\n").unwrap();
    let (cert, key_file) = (at("server.pem"), at("server.key"));
    let mistakes: [(Option<&str>, Option<&str>, &str, &str); 7] = [
        (Some(&cert), None, "http.tls.key", "is missing"),
        (None, Some(&key_file), "http.tls.cert", "is missing"),
        (Some(&at("none.pem")), Some(&key_file), "http.tls.cert", "none.pem cannot be read"),
        (Some(&at("broken.pem")), Some(&key_file), "http.tls.cert", "broken.pem is not a PEM file"),
        (Some(&key_file), Some(&key_file), "http.tls.cert", "server.key has no certificates"),
        (Some(&cert), Some(&at("client.key")), "http.tls.key", "does not match the certificate"),
        (Some(&cert), Some(&key), "http.tls.key", "not its contents"),
    ];
    let secret = key.lines().nth(1).unwrap();
    for (cert, key, option, reason) in mistakes {
        let line = |name: &str, path: Option<&str>| path.map(|path| format!("{name} = {path:?}\n")).unwrap_or_default();
        let settings = format!("[http.tls]\n{}{}", line("cert", cert), line("key", key));
        let refused = config::from_toml(&settings).unwrap_err().to_string();
        assert!(refused.contains(option) && refused.contains(reason), "{refused}");
        assert!(!refused.contains(secret) && !refused.contains("planted"), "{refused}");
    }
}

/// Starts an edge whose admin listener is reachable from other hosts; returns it and its certificate directory.
async fn remote_admin() -> (Edge, TempDir) {
    let directory = authority();
    let key = format!("admin.key_sha256 = \"{}\"\n", hex::encode(Sha256::digest("operators-key")));
    let settings = format!("admin.listen = \"0.0.0.0:0\"\n{key}{QUIET}{}", listener("admin", directory.path()));
    (Edge::start_with(&settings).await, directory)
}

async fn run(arguments: &[&str], key: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    command.args(arguments).env("PROFILE_EDGE_ADMIN_KEY", key);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_probes_and_metrics_need_no_admin_key() {
    let (edge, directory) = remote_admin().await;
    let client = client_trusting(&[directory.path()]).build().unwrap();
    let status = async |path: &str, key: Option<&str>| {
        let request = client.get(format!("https://127.0.0.1:{}{path}", edge.admin.port()));
        key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().await.unwrap().status().as_u16()
    };
    for open in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(status(open, None).await, 200, "{open}");
    }
    for (guarded, with_key) in
        [("/admin/dead-letters", 200), ("/admin/inspect", 405), ("/admin/nothing", 404), ("/", 404), ("/nothing", 404)]
    {
        for wrong in [None, Some(""), Some("operators-kez"), Some("operators-key2")] {
            assert_eq!(status(guarded, wrong).await, 401, "{guarded} {wrong:?}");
        }
        assert_eq!(status(guarded, Some("operators-key")).await, with_key, "{guarded}");
    }
    let text = client.get(format!("https://127.0.0.1:{}/metrics", edge.admin.port())).send().await.unwrap();
    let refused = "profile_edge_auth_failures_total{door=\"admin\"} 20";
    assert!(text.text().await.unwrap().contains(refused));
    edge.stop().await;

    let edge =
        Edge::start_with(&format!("admin.key_sha256 = \"{}\"\n{QUIET}", hex::encode(Sha256::digest("operators-key"))))
            .await;
    let ask = || edge.client.get(format!("http://{}/admin/dead-letters", edge.admin));
    assert_eq!(ask().send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "loopback needs a configured key, too");
    assert_eq!(ask().bearer_auth("operators-key").send().await.unwrap().status(), StatusCode::OK);
    let untyped = edge.client.post(format!("http://{}/admin/inspect", edge.admin)).bearer_auth("operators-key");
    let untyped = untyped.body(r#"{"tenantId":"10001","customerId":"x"}"#).send().await.unwrap();
    assert_eq!(untyped.status(), StatusCode::OK, "a body without a type is JSON");
    edge.stop().await;
}

/// What a page on another port of this machine, or behind a name that resolves to it, can make a browser send.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_in_an_operators_browser_can_command_nothing() {
    for key in ["", &format!("admin.key_sha256 = \"{}\"\n", hex::encode(Sha256::digest("operators-key")))] {
        let edge = Edge::start_with(&format!("{key}{QUIET}")).await;
        let body = r#"{"tenantId":"10001","customerId":"x","force":true}"#;
        let post = |kind: &str| {
            let url = format!("http://{}/admin/invalidate", edge.admin);
            edge.client.post(url).bearer_auth("operators-key").header("Content-Type", kind).body(body)
        };
        let json = "application/json";
        let attacks = [
            (post("text/plain"), 415),
            (post("application/x-www-form-urlencoded"), 415),
            (post(json).header("Origin", "http://127.0.0.1:3000"), 403),
            (post(json).header("Origin", "null"), 403),
            (post(json).header("Sec-Fetch-Site", "cross-site"), 403),
        ];
        for (attack, status) in attacks {
            let answer = attack.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{}", answer.text().await.unwrap());
        }
        let rebound = post(json).header("Host", "evil.example:8081").send().await.unwrap();
        assert_eq!(rebound.status().as_u16(), if key.is_empty() { 403 } else { 202 }, "a key proves the operator");
        let own = post(json).header("Origin", format!("http://{}", edge.admin)).send().await.unwrap();
        assert_eq!(own.status().as_u16(), 202);
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_trusts_only_the_configured_service() {
    let (edge, directory) = remote_admin().await;
    let settings = format!(
        "admin.listen = \"0.0.0.0:{}\"\nadmin.key_sha256 = \"{}\"\n{}",
        edge.admin.port(),
        hex::encode(Sha256::digest("operators-key")),
        listener("admin", directory.path())
    );
    let file = configuration(directory.path(), &settings).display().to_string();
    let url = format!("https://127.0.0.1:{}", edge.admin.port());
    let ca = directory.path().join("ca.pem").display().to_string();
    let inspect = ["inspect", "--tenant", "10001", "--customer", "x"];
    let own = [&inspect[..], &["--config", &file]].concat();
    let named = [&inspect[..], &["--admin", &url, "--ca", &ca]].concat();
    for (arguments, key, code) in [
        (&["healthcheck", "--config", &file][..], "", 0),
        (&["healthcheck", "--admin", &url, "--ca", &ca], "", 0),
        (&["healthcheck", "--admin", &url], "", 69),
        (&own, "operators-key", 0),
        (&own, "another-key", 64),
        (&named, "operators-key", 0),
        (&[&inspect[..], &["--admin", &url]].concat(), "operators-key", 69),
        (&[&inspect[..], &["--admin", &url, "--ca", &file]].concat(), "operators-key", 64),
        (&[&inspect[..], &["--admin", "http://192.0.2.1:8081"]].concat(), "operators-key", 64),
    ] {
        let output = run(arguments, key).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // A server with another certificate is not the configured service, so the key is not sent to it.
    let elsewhere = authority();
    let changed = settings.replace(&shown(directory.path()), &shown(elsewhere.path()));
    let file = configuration(elsewhere.path(), &changed).display().to_string();
    let output = run(&[&inspect[..], &["--config", &file]].concat(), "operators-key").await;
    assert_eq!(output.status.code(), Some(69));
    edge.stop().await;
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
