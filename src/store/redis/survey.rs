//! Survey: how the servers of Redis are set up, for `profile-edge doctor`. It only reads.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{Cmd, RedisResult, Value};
use tokio::time::{Instant, timeout};

use crate::clock::SharedClock;
use crate::store::Error;

use super::client::{RedisClient, ServerClient};
use super::config::Config;
use super::error::explain;
use super::reply::{bytes, list};
use super::role;

/// How many round trips are measured; the median counts.
const ROUND_TRIPS: usize = 5;

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// The server, or each primary of the cluster.
    pub nodes: Vec<NodeState>,
    /// Whether snapshots are configured; `None` if the user may not read the configuration.
    pub has_snapshots: Option<bool>,
    /// The largest distance of a server's clock from ours (positive: ours is behind).
    pub clock_offset_ms: i64,
    /// The median time of an empty command.
    pub round_trip: Duration,
}

/// The state of one server, from its `INFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// The TCP port.
    pub port: String,
    /// The version.
    pub version: String,
    /// Whether it is a primary.
    pub is_primary: bool,
    /// Bytes in use.
    pub used: u64,
    /// The limit of the memory in bytes; 0: none.
    pub max_memory: u64,
    /// What happens at the limit.
    pub policy: String,
    /// The keys that it evicted since its start.
    pub evicted: u64,
    /// Whether it has an append-only file.
    pub has_append_only_file: bool,
    /// Whether its last writes to disk succeeded.
    pub writes_to_disk: bool,
    /// The replicas that are connected.
    pub replicas: u64,
    /// Whether it still loads its data.
    pub is_loading: bool,
}

impl NodeState {
    fn parse(info: &str) -> Self {
        let text = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let count = |name: &str| text(name).parse().unwrap_or_default();
        let is_ok = |name: &str| matches!(text(name).as_str(), "ok" | "");
        Self {
            port: text("tcp_port"),
            version: text("redis_version"),
            is_primary: text("role") == "master",
            used: count("used_memory"),
            max_memory: count("maxmemory"),
            policy: text("maxmemory_policy"),
            evicted: count("evicted_keys"),
            has_append_only_file: text("aof_enabled") == "1",
            writes_to_disk: is_ok("rdb_last_bgsave_status") && is_ok("aof_last_write_status"),
            replicas: count("connected_slaves"),
            is_loading: text("loading") == "1",
        }
    }
}

/// A connection to what is configured.
enum SurveyConnection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl SurveyConnection {
    /// Sends a command to any server.
    async fn one(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd).await?.extract_error(),
            Self::Cluster(connection) => connection.req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Sends a command to the server, or to each primary of the cluster.
    async fn every_primary(&mut self, cmd: &Cmd) -> RedisResult<Vec<Value>> {
        let Self::Cluster(connection) = self else { return Ok(vec![self.one(cmd).await?]) };
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        match connection.route_command(cmd.clone(), all).await?.extract_error()? {
            Value::Map(answers) => answers.into_iter().map(|(_, answer)| answer.extract_error()).collect(),
            answer => Ok(vec![answer]),
        }
    }
}

/// Connects and asks; all of it takes at most `patience`.
///
/// # Errors
///
/// The configuration is invalid, no server answers, or one of them refuses the user or a command.
pub async fn survey(config: &Config, patience: Duration, clock: &SharedClock) -> Result<Survey, Error> {
    timeout(patience, ask(config, clock))
        .await
        .unwrap_or_else(|_elapsed| Err(Error::Unavailable { reason: "no answer".to_owned() }))
}

async fn ask(config: &Config, clock: &SharedClock) -> Result<Survey, Error> {
    let connected = match &mut RedisClient::new(config, |cluster| cluster)? {
        RedisClient::Server(server) => connect_to_primary(server).await.map(SurveyConnection::Server),
        RedisClient::Cluster(cluster) => cluster.connect().await.map(SurveyConnection::Cluster),
    };
    let mut connection = connected.map_err(|error| explain(&error))?;
    let infos = every(&mut connection, redis::cmd("INFO")).await?;
    let nodes = infos.into_iter().filter_map(bytes).map(|info| NodeState::parse(&String::from_utf8_lossy(&info)));
    let nodes = nodes.collect();
    let mut save = redis::cmd("CONFIG");
    save.arg("GET").arg("save");
    // The user of the service need not have this permission.
    let has_snapshots =
        every(&mut connection, save).await.ok().map(|answers| answers.into_iter().any(names_a_snapshot));
    let before = clock.now().as_millis();
    let times = every(&mut connection, redis::cmd("TIME")).await?;
    let after = clock.now().as_millis();
    let outside = |at: i64| if at > after { at - after } else { (at - before).min(0) };
    let offsets = times.into_iter().filter_map(millis).map(outside);
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let started = Instant::now();
        connection.one(&redis::cmd("PING")).await.map_err(|error| explain(&error))?;
        trips.push(started.elapsed());
    }
    trips.sort_unstable();
    Ok(Survey {
        nodes,
        has_snapshots,
        clock_offset_ms: offsets.max_by_key(|offset| offset.abs()).unwrap_or_default(),
        round_trip: trips[ROUND_TRIPS / 2],
    })
}

/// Connects to a server. Fails with `READONLY` if it is a replica.
async fn connect_to_primary(server: &mut ServerClient) -> RedisResult<MultiplexedConnection> {
    let mut connection = server.connect().await?;
    role::ask(&mut connection).await?;
    Ok(connection)
}

async fn every(connection: &mut SurveyConnection, cmd: Cmd) -> Result<Vec<Value>, Error> {
    connection.every_primary(&cmd).await.map_err(|error| explain(&error))
}

/// Returns whether an answer to `CONFIG GET save` names a time after which a snapshot is written.
fn names_a_snapshot(answer: Value) -> bool {
    let value = match answer {
        Value::Map(pairs) => pairs.into_iter().next().map(|(_, value)| value),
        other => list(other).ok().and_then(|pair| pair.into_iter().nth(1)),
    };
    value.and_then(bytes).is_some_and(|value| !value.is_empty())
}

/// Returns the milliseconds of an answer to `TIME`: seconds and microseconds.
fn millis(answer: Value) -> Option<i64> {
    let mut parts = list(answer).ok()?.into_iter().map(|part| match part {
        Value::Int(number) => Some(number),
        text => String::from_utf8(bytes(text)?).ok()?.parse::<i64>().ok(),
    });
    Some(parts.next()?? * 1_000 + parts.next()?? / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_server_is_read_from_its_info() {
        let info = "# Server\r\nredis_version:7.0.15\r\ntcp_port:6379\r\nloading:0\r\nused_memory:1024\r\n\
                    maxmemory:2048\r\nmaxmemory_policy:allkeys-lru\r\nevicted_keys:7\r\naof_enabled:1\r\n\
                    rdb_last_bgsave_status:err\r\nrole:slave\r\nconnected_slaves:2\r\n";
        let state = NodeState::parse(info);
        assert_eq!((state.version.as_str(), state.port.as_str()), ("7.0.15", "6379"));
        assert_eq!((state.used, state.max_memory, state.policy.as_str()), (1024, 2048, "allkeys-lru"));
        assert_eq!((state.evicted, state.replicas), (7, 2));
        assert!(state.has_append_only_file && !state.is_primary && !state.writes_to_disk && !state.is_loading);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        assert_eq!(millis(Value::Array(vec![text("12"), text("345678")])), Some(12_345));
        assert!(names_a_snapshot(Value::Array(vec![text("save"), text("3600 1")])));
        assert!(!names_a_snapshot(Value::Array(vec![text("save"), text("")])));
    }
}
