//! The connection of the store: to one server, or to each node of a cluster.
//!
//! See [`ServerConnection`] for its promises; a [`Cluster`] has one for each node.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};

use crate::same_server::SameServer;
use crate::shutdown::Shutdown;
use crate::store::Error;

use super::client::{ServerClient, Settings};
use super::cluster::{Cluster, PrimaryAnswers};
use super::config::{Config, Mode};
use super::error::{CommandError, explain, refused};
use super::role::{NewestConnection, RoleCheck};
use super::server_connection::ServerConnection;

/// A connection that restores itself.
#[derive(Debug)]
pub(super) enum RedisConnection {
    Server(ServerConnection),
    Cluster(Cluster),
}

impl RedisConnection {
    /// Creates a connection, one of those to the same server; its task starts at once. `timeout` is that of a command.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, or one of its files cannot be read.
    pub(super) fn open(
        config: &Config,
        timeout: Duration,
        all: &SameServer,
        newest: &Arc<NewestConnection>,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let settings = Settings::read(config).map_err(refused)?;
        if config.mode == Some(Mode::Cluster) {
            return Ok(Self::Cluster(Cluster::open(config, settings, timeout, all, shutdown)));
        }
        let client = ServerClient::new(config, &settings).map_err(|error| explain(&error))?;
        Ok(Self::Server(ServerConnection::open(client, RoleCheck::new(newest), timeout, all.member(), shutdown)))
    }

    /// Waits for the first connection; the caller limits the time.
    pub(super) async fn connected(&self) {
        match self {
            Self::Server(server) => server.connected().await,
            Self::Cluster(cluster) => cluster.connected().await,
        }
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<Value, CommandError> {
        match self {
            Self::Server(server) => server.send(cmd).await,
            // Boxed, so that the future of a command to one server stays small.
            Self::Cluster(cluster) => Box::pin(cluster.send(cmd)).await,
        }
    }

    /// Sends commands of one hash slot one after the other on one connection; returns their answers. If they do not
    /// show that the server `works`, they count as unanswered.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        count: usize,
        works: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, CommandError> {
        match self {
            Self::Server(server) => server.send_all(commands, (0, count), works).await,
            Self::Cluster(cluster) => Box::pin(cluster.send_all(commands, count, works)).await,
        }
    }

    /// Sends a command to every primary; returns the address of each in a cluster, and its answer. Fails if the primaries are
    /// not known.
    pub(super) async fn send_to_every_primary(&self, cmd: &Cmd) -> Result<PrimaryAnswers, CommandError> {
        match self {
            Self::Server(server) => Ok(vec![(String::new(), server.send(cmd).await)]),
            Self::Cluster(cluster) => cluster.send_to_every_primary(cmd).await,
        }
    }
}
