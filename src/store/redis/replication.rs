//! The replication histories of Redis: the replication ids of its primaries.
//!
//! A primary draws a new id when it starts, and a replica when it is promoted. The last writes under the previous
//! id may be lost then. The databases of a server share its id, so a name has the number of the database too. A node of a
//! cluster that does not answer may go on; it is judged when it answers, or when another has its slots.

use redis::{Cmd, Value};

use crate::store::{Error, ReplicationHistory};

use super::Redis;
use super::reply::{bytes, unexpected};

/// The field of `INFO replication` that holds the id.
const FIELD: &str = "master_replid:";

impl Redis {
    /// See [`Inspect::replication_history`](crate::store::Inspect::replication_history).
    pub(super) async fn replication_ids(&self) -> Result<ReplicationHistory, Error> {
        let mut cmd: Cmd = redis::cmd("INFO");
        cmd.arg("replication");
        let answers = self.events.send_to_every_primary(&cmd).await?.into_iter();
        let name = |answer| Ok(format!("{}/{}", id(answer)?, self.database));
        let names = answers.map(|(server, answer)| (server, answer.map_err(Error::from).and_then(name)));
        self.histories.complete(names.collect())
    }
}

fn id(answer: Value) -> Result<String, Error> {
    let text = match answer {
        Value::VerbatimString { text, .. } => Some(text),
        other => bytes(other).and_then(|bytes| String::from_utf8(bytes).ok()),
    };
    let id = text.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix(FIELD)));
    id.map(|id| id.trim().to_owned()).ok_or_else(unexpected)
}
