//! Managed Redis services: passwords that expire, one address for a whole cluster, and no permission to configure.

use serde_json::json;

use crate::support::edge::Edge;
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// Gives the user of the service this password only, and ends its connections.
async fn renew(deployment: &Deployment, password: &str) {
    for server in 0..deployment.servers.len() {
        let password = format!(">{password}");
        let user = ["ACL", "SETUSER", "edge", "on", "resetpass", &password, "~*", "&*", "+@all", "-config", "-acl"];
        deployment.command::<String>(server, &user).await;
        deployment.command::<i64>(server, &["CLIENT", "KILL", "USER", "edge"]).await;
    }
}

/// Lookups and events take effect at this Redis, also after another program has renewed the password in the file.
async fn serves_while_its_password_changes(deployment: &Deployment, settings: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    renew(deployment, "first").await;
    let edge = Edge::start_with(&format!(
        "[sandbox]\nlatency = \"0ms\"\n[store]\nkind = \"redis\"\n[store.redis]\n{settings}password_file = \"{}\"\n",
        file.display()
    ))
    .await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    assert!(edge.look_up(&customer(1)).await.is_hit());

    std::fs::write(&file, "second").unwrap();
    renew(deployment, "second").await;
    eventually("hits again", || async { edge.look_up(&customer(1)).await.is_hit().then_some(()) }).await;
    edge.change(&customer(1), json!({ "firstName": "Renewed" })).await;
    eventually("the change", || async {
        (edge.look_up(&customer(1)).await.json()["firstName"] == "Renewed").then_some(())
    })
    .await;
    eventually("a hit of the change", || async { edge.look_up(&customer(1)).await.is_hit().then_some(()) }).await;
    edge.is_ready().await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_password_is_read_from_its_file() {
    let deployment = Deployment::start(Setup::Single).await;
    let settings = format!("url = \"redis://edge@127.0.0.1:{}\"\n", deployment.servers[0].port);
    serves_while_its_password_changes(&deployment, &settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_password_is_read_behind_sentinels() {
    let deployment = Deployment::start(Setup::Sentinel).await;
    let settings = deployment.settings.replace("redis://", "redis://edge@");
    serves_while_its_password_changes(&deployment, &settings).await;
}

/// A configuration endpoint: one name, and nodes that call themselves nothing but "the host you asked".
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_behind_one_address_needs_no_hosts_and_no_configuration() {
    let deployment = Deployment::start(Setup::Cluster).await;
    for server in 0..deployment.servers.len() {
        let set = ["CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint"];
        deployment.command::<String>(server, &set).await;
    }
    let port = deployment.servers[0].port;
    let settings =
        format!("urls = [\"redis://edge@localhost:{port}\"]\nmode = \"cluster\"\nmax_connection_age = \"1s\"\n");
    serves_while_its_password_changes(&deployment, &settings).await;
}
