//! Survey: how the servers of Memcached are set up, for `profile-edge doctor`. It only reads.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::config::{Config, Server};
use super::connector::{Connected, Connector};
use super::protocol::{Answer, Requests};

/// The state of one server, from its `stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerState {
    /// The addresses to which the name leads.
    pub addresses: Vec<IpAddr>,
    /// The version.
    pub version: String,
    /// Bytes in use.
    pub used: u64,
    /// The limit of the memory in bytes.
    pub max_memory: u64,
    /// The keys that it evicted since its start.
    pub evicted: u64,
}

/// Asks every server. Returns its name, with its state or why there is no answer within `limit`.
pub async fn survey(config: &Config, limit: Duration) -> Vec<(String, Result<ServerState, String>)> {
    let servers = match config.parsed() {
        Ok(servers) => servers,
        Err(error) => return vec![("memcached".to_owned(), Err(error.to_string()))],
    };
    join_all(servers.iter().map(async |server| (server.to_string(), ask(config, server, limit).await))).await
}

async fn ask(config: &Config, server: &Server, limit: Duration) -> Result<ServerState, String> {
    let connector = Connector::new(config, server, limit).map_err(|error| error.to_string())?;
    let Connected { link, carrier, address: _ } = connector.connect(None).await?;
    let answers = async {
        tokio::select! {
            answers = link.run(Requests::default().statistics()) => answers.ok_or_else(|| "no answer".to_owned()),
            why = carrier => Err(why),
        }
    };
    match &timeout(limit, answers).await.map_err(|_elapsed| "no answer".to_owned())??[..] {
        [Answer::Statistics(all)] => Ok(ServerState { addresses: addresses(server, limit).await, ..state(all) }),
        _ => Err("an unexpected answer".to_owned()),
    }
}

/// Returns the addresses of a server that answers.
async fn addresses(server: &Server, limit: Duration) -> Vec<IpAddr> {
    let found = timeout(limit, lookup_host((server.host.as_str(), server.port))).await;
    let found = found.ok().and_then(Result::ok);
    found.into_iter().flatten().map(|address| address.ip()).collect()
}

fn state(all: &[(String, String)]) -> ServerState {
    let text =
        |name: &str| all.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let number = |name| text(name).parse().unwrap_or_default();
    ServerState {
        addresses: Vec::new(),
        version: text("version"),
        used: number("bytes"),
        max_memory: number("limit_maxbytes"),
        evicted: number("evictions"),
    }
}
