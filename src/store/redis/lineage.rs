//! The histories that the data of Redis stand on: the replication ids of its primaries.
//!
//! A primary draws a new one when it starts, and a replica when it is promoted: then the last writes of the
//! one before may be missing.

use redis::{Cmd, Value};

use crate::store::{Error, ReplicationHistory};

use super::{Redis, bytes, settle, unexpected};

/// What comes before the id in `INFO replication`.
const FIELD: &str = "master_replid:";

impl Redis {
    /// See [`Inspect::lineage`](crate::store::Inspect::lineage).
    pub(super) async fn replication_ids(&self) -> Result<ReplicationHistory, Error> {
        let mut cmd: Cmd = redis::cmd("INFO");
        cmd.arg("replication");
        let answers = self.events.send_everywhere(&cmd).await.map_err(settle)?;
        answers.into_iter().map(|answer| id(answer).ok_or_else(unexpected)).collect()
    }
}

fn id(answer: Value) -> Option<String> {
    let text = match answer {
        Value::VerbatimString { text, .. } => text,
        other => String::from_utf8(bytes(other)?).ok()?,
    };
    text.lines().find_map(|line| line.strip_prefix(FIELD)).map(|id| id.trim().to_owned())
}
