//! The task that keeps the map of a cluster up to date.
//!
//! The map is read at the start from the configured addresses, and later from all nodes in use: after a redirection, every
//! second while commands fail, and now and then. What most of them say counts. New nodes are connected before they replace
//! others. Where names are configured, they are resolved and asked again from time to time, because a name may lead to
//! another cluster. No command waits for any of this.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::Cmd;
use tokio::time::{Instant, sleep, timeout};

use crate::same_server::{Due, Member};
use crate::store::Error;
use crate::supervise::Backoff;

use super::cluster_map::{self, NodeAddress, SlotRange};
use super::cluster_state::ClusterState;
use super::error::CommandError;

/// The longest time until a node answers with its map, and until new nodes are connected.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the map is read while commands fail.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The least time between two reads of the map.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// How often the map is read where nothing fails.
const READ_EVERY: Duration = Duration::from_secs(15);

/// Keeps the map.
pub(super) struct MapKeeper {
    pub(super) state: Arc<ClusterState>,
    /// One of those that must follow the configured names to the same cluster.
    pub(super) member: Member,
}

impl MapKeeper {
    /// Keeps it up to date until shutdown.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let (mut from_seeds, mut failing, mut attempt) = (true, false, self.member.attempt());
        let max_age = self.state.max_age;
        let mut aged = pin!(max_age.reached());
        while !self.state.shutdown.is_requested() {
            let read = tokio::select! {
                () = self.state.shutdown.requested() => return,
                read = self.read_map(from_seeds) => read,
            };
            let was_from_seeds = std::mem::take(&mut from_seeds);
            if let Err(why) = read {
                self.state.known.send_if_modified(|known| {
                    known.as_mut().err().map(|reason| *reason = format!("not connected: {why}").into()).is_some()
                });
                if !failing {
                    tracing::warn!(why, "redis cannot be reached, retrying until it answers");
                }
                failing = true;
                backoff.pause(&self.state.shutdown).await;
                continue;
            }
            if failing {
                tracing::info!("the nodes of the redis cluster answer again");
            }
            failing = false;
            backoff.reset();
            if was_from_seeds {
                self.member.connected(attempt, None);
            }
            self.state.known.send_if_modified(|known| std::mem::replace(known, Ok(())).is_err());
            let read_at = Instant::now();
            // Redirections come many at once. A shutdown ends the pause early; the loop checks it.
            let _ = timeout(LEAST_PAUSE, self.state.shutdown.requested()).await;
            loop {
                tokio::select! {
                    () = self.state.shutdown.requested() => return,
                    () = self.state.outdated.notified() => break,
                    () = &mut aged => {
                        aged.set(max_age.reached());
                        (from_seeds, attempt) = (true, self.member.attempt());
                        break;
                    }
                    due = self.member.due() => {
                        // The age is measured above, across the rounds of this loop.
                        if due != Due::Aged {
                            (from_seeds, attempt) = (true, self.member.follow());
                            break;
                        }
                    }
                    () = sleep(CHECK_EVERY) => if self.state.take_failure() || read_at.elapsed() >= READ_EVERY {
                        break;
                    }
                }
            }
        }
    }

    /// Reads the map, and adopts it. Fails with the reason.
    async fn read_map(&self, from_seeds: bool) -> Result<(), String> {
        let mut views = if from_seeds { Vec::new() } else { self.ask_nodes().await };
        let mut why = None;
        if views.is_empty() {
            let seeds = self.state.seeds();
            for answer in join_all(seeds.iter().map(|seed| self.ask_seed(seed))).await {
                match answer {
                    Ok(view) => views.push(view),
                    Err(reason) => why = why.or(Some(reason)),
                }
            }
        }
        if views.is_empty() && from_seeds {
            views = self.ask_nodes().await;
        }
        let map = cluster_map::majority(&views);
        if map.is_empty() {
            return Err(why.unwrap_or_else(|| "no node knows the slots of the cluster".to_owned()));
        }
        self.adopt(&map).await.map_err(|error| Error::from(error).to_string())
    }

    /// Returns what each node in use that answers says, unless it knows nothing.
    async fn ask_nodes(&self) -> Vec<Vec<SlotRange>> {
        let (primaries, question) = (self.state.primaries().unwrap_or_default(), question());
        let answers = primaries.iter().map(|node| async {
            let answer = timeout(NODE_TIMEOUT, node.connection.send(&question)).await.ok()?.ok()?;
            Some(cluster_map::parse(answer, &node.address)).filter(|view| !view.is_empty())
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    /// Asks a configured address, on a connection of its own.
    async fn ask_seed(&self, seed: &NodeAddress) -> Result<Vec<SlotRange>, String> {
        let asking = async {
            let mut connection = self.state.client(seed)?.connect().await?;
            Ok::<_, CommandError>(connection.send_packed_command(&question()).await?.extract_error()?)
        };
        match timeout(NODE_TIMEOUT, asking).await {
            Ok(Ok(answer)) => Ok(cluster_map::parse(answer, seed)),
            Ok(Err(error)) => Err(Error::from(error).to_string()),
            Err(_elapsed) => Err("no answer in time".to_owned()),
        }
    }

    /// Uses a map from now on; nodes that it does not name are dropped.
    async fn adopt(&self, map: &[SlotRange]) -> Result<(), CommandError> {
        let before = self.state.addresses();
        let mut by_address = HashMap::new();
        for range in map {
            by_address.insert(range.primary.clone(), self.state.node_at(&range.primary)?);
        }
        let new = by_address.values().filter(|node| !before.contains(&node.address));
        // A new node that is not connected in time is used nevertheless: its slots have no other.
        let _ = timeout(NODE_TIMEOUT, join_all(new.map(|node| node.connection.connected()))).await;
        self.state.replace(map, by_address);
        Ok(())
    }
}

fn question() -> Cmd {
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("SLOTS");
    cmd
}
