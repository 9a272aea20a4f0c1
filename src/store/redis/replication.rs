//! The replication histories of Redis: the replication ids of its primaries.
//!
//! A primary draws a new id when it starts, and a replica when it is promoted. The last writes under the previous
//! id may be lost then. The databases of a server share its id, so a name has the number of the database too.

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
        let answers = self.events.send_to_every_primary(&cmd).await?;
        let name = |answer| Some(format!("{}/{}", id(answer)?, self.database));
        answers.into_iter().map(|answer| name(answer).ok_or_else(unexpected)).collect()
    }
}

fn id(answer: Value) -> Option<String> {
    let text = match answer {
        Value::VerbatimString { text, .. } => text,
        other => String::from_utf8(bytes(other)?).ok()?,
    };
    text.lines().find_map(|line| line.strip_prefix(FIELD)).map(|id| id.trim().to_owned())
}
