//! `profile-edge init`: from an empty directory to a service that serves.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::laws::files_below;
use crate::support::customer;
use crate::support::edge::{Edge, looked};
use crate::support::process::{Process, free_port};

/// Runs the command in a directory, without a terminal.
fn init(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    command.arg("init").args(arguments).current_dir(directory).stdin(Stdio::null()).output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_directory_to_the_first_hit() {
    let genesys = Edge::start().await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "sandbox\n").unwrap();
    let (url, public) = (format!("http://{}", genesys.sandbox_address()), "https://cache.example.org:8443");
    let arguments = [
        "--dir",
        "edge",
        "--tenant",
        "acme",
        "--genesys-url",
        &url,
        "--client-id",
        "sandbox",
        "--client-secret-file",
        "secret",
        "--caller",
        "ivr",
        "--caller",
        "desktop",
        "--public-url",
        public,
    ];
    let output = init(directory.path(), &arguments);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let edge = directory.path().join("edge");
    let (posted, imported) =
        (format!("posts to {public}/webhooks/acme"), format!("{}/genesys/eventbridge.yaml", edge.display()));
    for part in [public, "secrets/caller-ivr", "genesys.permissions", &posted, &imported] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&edge), mode(&edge.join("secrets"))), (0o700, 0o700));
    for file in files_below(&edge) {
        assert_eq!(mode(&edge.join(&file)), 0o600, "{file}");
    }
    let read = |name: &str| std::fs::read_to_string(edge.join(name)).unwrap();
    let (config, key) = (read("edge.toml"), read("secrets/caller-ivr"));
    for secret in [&key, &read("secrets/webhook"), &read("secrets/keys")] {
        assert!(
            !config.contains(secret.as_str()) && !printed.contains(secret.as_str()),
            "a secret is in a file or printed"
        );
    }
    let action = read("genesys/data-action-profile-by-id.json");
    assert!(action.contains("https://cache.example.org:8443/api/v1/profile") && action.contains("acme"), "{action}");
    assert!(!action.contains("10001") && !action.contains("edge.example.com"));
    assert!(read("genesys/eventbridge.yaml").contains("Default: cache.example.org:8443"));
    let page = read("genesys/README.md");
    assert!(page.contains("https://cache.example.org:8443/webhooks/acme") && !page.contains("stand for"), "{page}");

    let again = init(directory.path(), &arguments);
    assert_eq!(again.status.code(), Some(64));
    assert!(err(&again).contains("edge.toml exists: nothing was written"), "{}", err(&again));
    assert_eq!(read("secrets/caller-ivr"), key);

    let mut check = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    let check = check.args(["check-config", "--config"]).arg(edge.join("edge.toml")).output().unwrap();
    assert!(check.status.success() && !err(&check).contains("warning"), "{}", err(&check));

    let doctor = ["doctor", "--without-service", "--config", "edge/edge.toml"];
    let diagnosed =
        Command::new(env!("CARGO_BIN_EXE_profile-edge")).args(doctor).current_dir(directory.path()).output().unwrap();
    let diagnosed = String::from_utf8_lossy(&diagnosed.stdout).into_owned();
    for part in ["posts to /webhooks/acme at the public URL of the service", "(edge/genesys/eventbridge.yaml)"] {
        assert!(diagnosed.contains(part), "{part}: {diagnosed}");
    }

    let (port, admin) = (free_port(), free_port());
    let (listen, operators) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{admin}"));
    let environment =
        [("PROFILE_EDGE__HTTP__LISTEN", listen.as_str()), ("PROFILE_EDGE__ADMIN__LISTEN", operators.as_str())];
    let config = edge.join("edge.toml");
    let mut process = Process::start(directory.path(), &["run", "--config", config.to_str().unwrap()], &environment);
    process.wait_for_log("ready").await;
    for is_hit in [false, true] {
        let request = genesys.client.get(format!("http://{listen}/api/v1/profile")).header("X-API-Key", &key);
        let answer =
            looked(request.query(&[("tenantId", "acme"), ("customerId", &customer(1))]).send().await.unwrap()).await;
        assert_eq!((answer.status, answer.is_hit()), (200, is_hit), "{}", answer.text);
    }
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0));
    genesys.stop().await;
}

#[test]
fn a_mistake_leaves_no_file_behind_and_names_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "s").unwrap();
    let complete = ["--region", "us_east_1", "--client-id", "c", "--client-secret-file", "secret"];
    for (arguments, expected) in [
        (&complete[2..], "--region is missing"),
        (&complete[..2], "--client-id is missing"),
        (&complete[..4], "--client-secret-file is missing"),
        (
            &["--region", "us-east-1", "--client-id", "c", "--client-secret-file", "secret"][..],
            "the nearest is us_east_1",
        ),
        (&[&complete[..], &["--redis-url", "redis://10.0.0.1:6379"]].concat()[..], "rediss"),
        (&[&complete[..], &["--caller", "a/b"]].concat()[..], "name"),
    ] {
        let output = init(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(expected), "{arguments:?}: {}", err(&output));
    }
    assert_eq!(files_below(directory.path()), ["secret"]);
}
