//! A Redis Cluster: a connection to each of its primaries.
//!
//! A node that fails, in whatever way, delays and fails the commands of its slots only: each node has a connection, a
//! breaker and a measure of silence of its own, and no command waits while the [map of the slots](super::cluster_keeper) is
//! read. (The client library of Redis has one task for all nodes. It reads the map again after each redirection, and sends
//! nothing else meanwhile.)
//!
//! A command that a node did not run (`MOVED`, `ASK`, `TRYAGAIN`) is sent again where the node says, until the timeout.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, Value};
use tokio::time::{Instant, sleep, timeout_at};

use crate::same_server::SameServer;
use crate::shutdown::Shutdown;
use crate::store::Error;

use super::client::Settings;
use super::cluster_keeper::MapKeeper;
use super::cluster_state::{ClusterNode, ClusterState};
use super::config::Config;
use super::error::{CommandError, Redirection};
use super::slots::slot_of_command;
use super::stuck_slots::StuckSlots;

/// The first pause before a command goes again to a node that did not run it; it doubles.
const REDIRECTED_AFTER: Duration = Duration::from_millis(5);

/// What each primary answered, and its address.
pub(super) type PrimaryAnswers = Vec<(String, Result<Value, CommandError>)>;

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    state: Arc<ClusterState>,
    /// That of a command.
    timeout: Duration,
    stuck: StuckSlots,
}

impl Cluster {
    /// Starts to use a cluster, with one of those that must use the same; `timeout` is that of a command.
    pub(super) fn open(
        config: &Config,
        settings: Settings,
        timeout: Duration,
        all: &SameServer,
        shutdown: &Shutdown,
    ) -> Self {
        let state = Arc::new(ClusterState::new(config, settings, timeout, all.max_age(), shutdown));
        shutdown.spawn(MapKeeper { state: Arc::clone(&state), member: all.member() }.run());
        Self { state, timeout, stuck: StuckSlots::default() }
    }

    /// Waits until the map was read once; the caller limits the time.
    pub(super) async fn connected(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.state.known.subscribe().wait_for(Result::is_ok).await;
    }

    /// Sends a command to the node of its key.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, CommandError> {
        // A command without a key may go to any node.
        let slot = slot_of_command(cmd).unwrap_or_default();
        let answer = async {
            let node = self.state.node_of(slot)?;
            match node.connection.send(cmd).await {
                Err(CommandError::Redirected(to)) => {
                    let mut one = redis::pipe();
                    one.add_command(cmd.clone());
                    let answer = self.follow(slot, node, to, (&one, 1), |_| true).await?.pop();
                    answer.ok_or_else(|| CommandError::unavailable("the answer is empty"))
                }
                answer => answer,
            }
        };
        self.noted(answer.await)
    }

    /// Sends commands of one slot, see [`ServerConnection::send_all`](super::server_connection::ServerConnection::send_all).
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        count: usize,
        works: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        let slot = commands.cmd_iter().next().and_then(slot_of_command).unwrap_or_default();
        let answers = async {
            let node = self.state.node_of(slot)?;
            match node.connection.send_all(commands, (0, count), |answers| works(answers)).await {
                Err(CommandError::Redirected(to)) => self.follow(slot, node, to, (commands, count), works).await,
                answers => answers,
            }
        };
        self.noted(answers.await)
    }

    /// Sends a command to every primary; returns the address and the answer of each.
    pub(super) async fn send_to_every_primary(&self, cmd: &Cmd) -> Result<PrimaryAnswers, CommandError> {
        let primaries = self.noted(self.state.primaries())?;
        let answers = primaries.iter().map(|node| async move {
            let answer = self.noted(node.connection.send(cmd).await);
            (node.address.to_string(), answer)
        });
        Ok(join_all(answers).await)
    }

    /// Notes a failure that a new map may end: its node is gone, or is no primary any more.
    fn noted<T>(&self, answer: Result<T, CommandError>) -> Result<T, CommandError> {
        if matches!(answer, Err(CommandError::Store(Error::Unavailable { .. }))) {
            self.state.note_failure();
        }
        answer
    }

    /// Sends commands that were not run to where the cluster says, until the timeout.
    async fn follow(
        &self,
        slot: usize,
        mut from: Arc<ClusterNode>,
        mut to: Redirection,
        (commands, count): (&Pipeline, usize),
        works: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        let (end, mut pause) = (Instant::now() + self.timeout, REDIRECTED_AFTER);
        let (mut is_first, mut repeats) = (true, false);
        loop {
            // Two nodes may each name the other.
            if to == Redirection::Again || !is_first {
                if !repeats && !self.stuck.may_repeat(slot, Instant::now()) {
                    return Err(CommandError::Redirected(to));
                }
                repeats = true;
                sleep(pause).await;
                pause *= 2;
            }
            is_first = false;
            let mut asking = None;
            let node = match &to {
                Redirection::Again => self.state.node_of(slot)?,
                Redirection::Moved(host, port) => self.state.move_slot(slot, &from.address.named(host, *port))?,
                Redirection::Ask(host, port) => {
                    asking = Some(after_asking(commands));
                    self.state.node_at(&from.address.named(host, *port))?
                }
            };
            // A node that was unknown is being connected to.
            if timeout_at(end, node.connection.connected()).await.is_err() {
                return Err(CommandError::unavailable("not connected to the node that has the slot now"));
            }
            let (sent, skipped) = asking.as_ref().map_or((commands, 0), |asking| (asking, 1));
            match node.connection.send_all(sent, (skipped, count), |answers| works(answers)).await {
                Err(CommandError::Redirected(next)) if Instant::now() < end => (from, to) = (node, next),
                answer => {
                    match &answer {
                        Err(CommandError::Redirected(_)) => self.stuck.repeated_in_vain(slot, Instant::now()),
                        Ok(_) if repeats => self.stuck.ran(slot),
                        _ => {}
                    }
                    return answer;
                }
            }
        }
    }
}

/// Returns the commands with the right to run them at a node that receives their slot. It is that of the first one; a
/// `WAIT` after it has no key.
fn after_asking(commands: &Pipeline) -> Pipeline {
    let mut asking = redis::pipe();
    asking.cmd("ASKING");
    for command in commands.cmd_iter() {
        asking.add_command(command.clone());
    }
    asking
}
