//! What operators and background tasks ask of every server.

use futures_util::future::join_all;

use crate::domain::Key;
use crate::store::{Error, Inspection, ReplicationHistory};

use super::connection::unexpected;
use super::protocol::{Answer, Condition, Requests};
use super::values::{KeyNames, fence, lock};
use super::{Memcached, Node};

/// The key that the probe writes: of a tenant that has no customers.
const PROBE: &str = "cust:profile:.:probe";

impl Memcached {
    /// Does at every server what lookups and events do there. See [`Inspect::ping`](crate::store::Inspect::ping).
    pub(super) async fn probe(&self) -> Result<(), Error> {
        let results = join_all(self.nodes.iter().map(probe_node)).await;
        let works = results.iter().any(Result::is_ok);
        match results.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(Error::Unavailable { reason } | Error::Rejected { reason }) if works => Err(Error::Partial { reason }),
            Some(error) => Err(error),
        }
    }

    /// Returns one history for each server. It ends when the server is started again, or emptied: what it held is lost, and
    /// with it the fences of the last events. That of a server that does not answer is the last known one. See [`Inspect::replication_history`](crate::store::Inspect::replication_history).
    pub(super) async fn histories(&self) -> Result<ReplicationHistory, Error> {
        let answers = self.nodes.iter().map(|node| async move { (node.name.clone(), history(node).await) });
        self.histories.complete(join_all(answers).await)
    }

    /// See [`Inspect::inspect`](crate::store::Inspect::inspect).
    pub(super) async fn inspect_key(&self, key: &Key) -> Result<Inspection, Error> {
        let (session, names) = (self.node(key).lookups.session()?, KeyNames::of(key));
        let requests = Requests::default().get(names.key).get(&names.fence).get(&names.lock);
        let [at_key, at_fence, at_lock] = session.run(requests).await?;
        let now = self.clock.now();
        let entry = at_key.value()?.and_then(|stored| self.entry_silently(key, &stored, now));
        Ok(Inspection {
            remaining: entry.as_ref().map(|entry| self.remaining(entry, now)),
            entry: entry.map(crate::store::Entry::without_body),
            fence: fence(at_fence.value()?.as_ref(), now).value.map(|fence| fence.fence),
            lock: lock(at_lock.value()?.as_ref(), now).value.map(|leased| (leased.token, leased.until.since(now))),
        })
    }
}

async fn probe_node(node: &Node) -> Result<(), Error> {
    let [read] = node.lookups.session()?.run(Requests::default().get(PROBE)).await?;
    read.value()?;
    let requests = Requests::default().set(PROBE, b"1", Some(2), Condition::Any).delete(PROBE);
    let [written, deleted] = node.events.session()?.run(requests).await?;
    written.done()?;
    deleted.done()?;
    Ok(())
}

async fn history(node: &Node) -> Result<String, Error> {
    let [Answer::Statistics(all)] = node.events.session()?.run(Requests::default().statistics()).await? else {
        return Err(unexpected());
    };
    let number = |name: &str| -> Result<i64, Error> {
        let found = all.iter().find(|(found, _)| found == name);
        found.and_then(|(_, value)| value.parse().ok()).ok_or_else(unexpected)
    };
    // Both clocks are those of the server, so their difference is its start.
    let started = number("time")? - number("uptime")?;
    Ok(format!("{}|{}|{started}|{}", node.name, number("pid")?, number("cmd_flush")?))
}
