//! The servers that the tests run on.

use std::path::Path;

use crate::support::servers::SERVERS;
use crate::support::servers::rabbit::RabbitServer;
use crate::support::servers::redis::{Deployment, Setup};

/// `tests/run --servers redis=8,rabbitmq=4` sets a directory of that name. Without it, any version is right. `tests/pairs`
/// reads what this prints.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_have_the_versions_that_were_asked_for() {
    let redis = Deployment::shared(Setup::Single).await.servers[0].version().await;
    let rabbit = RabbitServer::shared().await.version().await;
    println!("the servers report: {redis} {rabbit}");
    let directory = std::env::var(SERVERS).unwrap_or_default();
    let asked = Path::new(&directory).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    for asked in asked.split(',').filter(|asked| asked.contains('=')) {
        let is_it = |version: &String| format!("{version}.").starts_with(&format!("{asked}."));
        assert!([&redis, &rabbit].into_iter().any(is_it), "{asked}: {redis} {rabbit}");
    }
}
