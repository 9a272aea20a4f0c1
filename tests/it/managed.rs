//! Managed Redis services: passwords that expire, one address for a whole cluster, and no permission to configure.

use serde_json::json;

use crate::support::edge::Edge;
use crate::support::process::free_port;
use crate::support::servers::redis::{Deployment, RedisServer, Setup};
use crate::support::tls::certificates;
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

/// Two masters; only one of them is configured, and both answer over TLS, with certificates of both sides.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_over_tls_serves_from_the_nodes_that_it_names() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let start = async |port: u16| {
        let (port, cert, key, ca) = (port.to_string(), file("server.pem"), file("server.key"), file("ca.pem"));
        let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let (client_cert, client_key) = (file("client.pem"), file("client.key"));
        let client = ["--tls-auth-clients", "yes", "--tls-client-cert-file", &client_cert, "--tls-client-key-file"];
        let cluster = [&client_key, "--cluster-enabled", "yes", "--tls-cluster", "yes"];
        RedisServer::start(&[&tls[..], &client[..], &cluster[..]].concat()).await
    };
    let ports = [free_port(), free_port()];
    let deployment = Deployment {
        servers: vec![start(ports[0]).await, start(ports[1]).await],
        settings: format!(
            "urls = [\"rediss://127.0.0.1:{}\"]\nmode = \"cluster\"\n\
             [store.redis.tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            ports[0],
            file("ca.pem"),
            file("client.pem"),
            file("client.key")
        ),
        sentinels: vec![],
    };
    deployment.command::<String>(0, &["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]).await;
    deployment.command::<String>(1, &["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]).await;
    deployment.command::<String>(0, &["CLUSTER", "MEET", "127.0.0.1", &ports[1].to_string()]).await;
    for server in 0..2 {
        eventually("the nodes know each other", || async {
            let info: String = deployment.command(server, &["CLUSTER", "INFO"]).await;
            (info.contains("cluster_state:ok") && info.contains("cluster_size:2")).then_some(())
        })
        .await;
    }

    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings);
    let edge = Edge::start_with(&format!("[sandbox]\nlatency = \"0ms\"\n{store}")).await;
    for n in 1..=20 {
        assert_eq!(edge.look_up(&customer(n)).await.status, 200);
        assert!(edge.look_up(&customer(n)).await.is_hit());
    }
    let entries: [Vec<String>; 2] = [
        deployment.command(0, &["KEYS", "cust:profile:*"]).await,
        deployment.command(1, &["KEYS", "cust:profile:*"]).await,
    ];
    assert!(entries.iter().all(|entries| !entries.is_empty()));
    edge.is_ready().await;
    edge.stop().await;
}
