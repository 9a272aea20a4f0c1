//! A connection for commands: to one server or to a cluster.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Arg, Cmd, Pipeline, RedisResult, Value};

use super::breaker::SlotRange;
use super::role;

/// A connection for commands.
#[derive(Clone)]
pub(super) enum CommandConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What is sent, and to which nodes.
pub(super) enum RedisRequest<'a> {
    /// A command of one hash slot.
    One(&'a Cmd),
    /// A command to every primary.
    EveryPrimary,
    /// Several commands of one hash slot.
    Many(&'a Pipeline),
}

impl CommandConnection {
    /// Returns the slot range that a request uses; `None` if any node may answer it.
    pub(super) fn slot_range(&self, request: &RedisRequest<'_>) -> Option<SlotRange> {
        let cmd = match (self, request) {
            (Self::Single(_), _) => return Some(SlotRange::WHOLE),
            (Self::Cluster(_), RedisRequest::EveryPrimary) => return None,
            (Self::Cluster(_), RedisRequest::One(cmd)) => cmd,
            (Self::Cluster(_), RedisRequest::Many(commands)) => commands.cmd_iter().next()?,
        };
        // The first key of every command of the store is the entry key: it follows the command's name, or the script
        // and the number of keys.
        let mut words = cmd.args_iter().map(|arg| if let Arg::Simple(word) = arg { word } else { &[] });
        let is_script = matches!(words.next(), Some(b"EVAL" | b"EVALSHA"));
        words.nth(if is_script { 2 } else { 0 }).map(SlotRange::of)
    }

    pub(super) async fn one(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            // Every hit comes here: this call avoids the boxed future of the library's trait.
            Self::Single(connection) => connection.send_packed_command(cmd).await?.extract_error(),
            Self::Cluster(connection) => connection.req_packed_command(cmd).await?.extract_error(),
        }
    }

    /// Sends a command to the server together with the question for its role. Returns the answer, and whether the server
    /// named its role. Fails with `READONLY` if it is no primary. A cluster is not asked.
    pub(super) async fn one_of_primary(&mut self, cmd: &Cmd) -> RedisResult<(Value, bool)> {
        let Self::Single(connection) = self else { return Ok((self.one(cmd).await?, true)) };
        let mut both = redis::pipe();
        both.add_command(role::question()).add_command(cmd.clone());
        let mut answers = connection.send_packed_commands(&both, 0, 2).await?.into_iter();
        let has_role = role::check(answers.next().unwrap_or(Value::Nil))?;
        Ok((answers.next().unwrap_or(Value::Nil).extract_error()?, has_role))
    }

    pub(super) async fn many(&mut self, commands: &Pipeline, count: usize) -> RedisResult<Vec<Value>> {
        let answers = match self {
            Self::Single(connection) => connection.req_packed_commands(commands, 0, count).await?,
            Self::Cluster(connection) => connection.req_packed_commands(commands, 0, count).await?,
        };
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// Sends commands of a slot to the node that receives it.
    pub(super) async fn asking(
        &mut self,
        host: &str,
        port: u16,
        commands: &Pipeline,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let Self::Cluster(connection) = self else { return self.many(commands, count).await };
        let mut asking = redis::pipe();
        asking.cmd("ASKING");
        for command in commands.cmd_iter() {
            asking.add_command(command.clone());
        }
        let to = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port };
        let answers = connection.route_pipeline(asking, 0, count + 1, to).await?;
        answers.into_iter().skip(1).map(Value::extract_error).collect()
    }

    pub(super) async fn every_primary(&mut self, cmd: &Cmd) -> RedisResult<Vec<Value>> {
        let connection = match self {
            Self::Single(connection) => return Ok(vec![connection.req_packed_command(cmd).await?.extract_error()?]),
            Self::Cluster(connection) => connection,
        };
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        match connection.route_command(cmd.clone(), all).await?.extract_error()? {
            Value::Map(answers) => answers.into_iter().map(|(_, answer)| answer.extract_error()).collect(),
            answer => Ok(vec![answer]),
        }
    }
}
