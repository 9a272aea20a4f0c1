//! The nodes of a cluster in use, which the commands and the keeper of the map share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::sync::{Notify, watch};

use crate::max_age::MaxAge;
use crate::same_server::SameServer;
use crate::shutdown::Shutdown;

use super::client::{ServerClient, Settings};
use super::cluster_map::{NodeAddress, SlotRange};
use super::config::{Config, Endpoints};
use super::error::CommandError;
use super::role::RoleCheck;
use super::server_connection::ServerConnection;
use super::slots::SLOTS;

/// The nodes of a cluster, and how to connect to them.
pub(super) struct ClusterState {
    config: Config,
    settings: Settings,
    /// That of a command.
    timeout: Duration,
    pub(super) max_age: MaxAge,
    pub(super) shutdown: Shutdown,
    nodes: RwLock<ClusterNodes>,
    /// Whether the map was read, or why not.
    pub(super) known: watch::Sender<Result<(), Arc<str>>>,
    /// Notified when the map is outdated.
    pub(super) outdated: Notify,
    /// Whether a command has failed, so that the map may be outdated.
    has_failed: AtomicBool,
}

/// A node and the connection to it.
#[derive(Debug)]
pub(super) struct ClusterNode {
    pub(super) address: NodeAddress,
    pub(super) connection: ServerConnection,
}

/// The nodes in use.
#[derive(Debug, Default)]
struct ClusterNodes {
    /// Also those to which slots are on their way.
    by_address: HashMap<NodeAddress, Arc<ClusterNode>>,
    primaries: Vec<Arc<ClusterNode>>,
    /// Empty before the map was read.
    by_slot: Vec<Option<Arc<ClusterNode>>>,
}

impl std::fmt::Debug for ClusterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses: Vec<NodeAddress> = self.nodes.read().by_address.keys().cloned().collect();
        f.debug_tuple("ClusterState").field(&addresses).finish()
    }
}

impl ClusterState {
    /// Creates the state before the map was read.
    pub(super) fn new(
        config: &Config,
        settings: Settings,
        timeout: Duration,
        max_age: MaxAge,
        shutdown: &Shutdown,
    ) -> Self {
        Self {
            config: config.clone(),
            settings,
            timeout,
            max_age,
            shutdown: shutdown.clone(),
            nodes: RwLock::default(),
            known: watch::Sender::new(Err("not connected yet".into())),
            outdated: Notify::new(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Returns the configured addresses.
    pub(super) fn seeds(&self) -> Vec<NodeAddress> {
        match &self.settings.endpoints {
            Endpoints::Cluster(seeds) => seeds.iter().filter_map(address).collect(),
            Endpoints::Single(_) | Endpoints::Sentinel { .. } => Vec::new(),
        }
    }

    /// Creates the client of a node.
    pub(super) fn client(&self, node: &NodeAddress) -> Result<ServerClient, CommandError> {
        Ok(ServerClient::of_node(&self.config, &self.settings, node)?)
    }

    /// Returns the node of a slot.
    pub(super) fn node_of(&self, slot: usize) -> Result<Arc<ClusterNode>, CommandError> {
        let node = self.nodes.read().by_slot.get(slot).cloned();
        if node.is_none() {
            self.is_known()?;
        }
        node.flatten().ok_or_else(|| CommandError::unavailable("no node of the cluster has the slot"))
    }

    fn is_known(&self) -> Result<(), CommandError> {
        self.known.borrow().clone().map_err(|reason| CommandError::unavailable(&reason))
    }

    /// Notes that a slot is at another node, and returns that.
    pub(super) fn move_slot(&self, slot: usize, address: &NodeAddress) -> Result<Arc<ClusterNode>, CommandError> {
        let node = self.node_at(address)?;
        if let Some(place) = self.nodes.write().by_slot.get_mut(slot) {
            *place = Some(Arc::clone(&node));
        }
        self.outdated.notify_one();
        Ok(node)
    }

    /// Returns the node at an address; connects to one that is new.
    pub(super) fn node_at(&self, address: &NodeAddress) -> Result<Arc<ClusterNode>, CommandError> {
        let by_address = &mut self.nodes.write().by_address;
        if let Some(node) = by_address.get(address) {
            return Ok(Arc::clone(node));
        }
        // A node that is no part of the cluster any more answers `CLUSTERDOWN` or `MOVED`, so none has to follow another.
        let (client, own) = (self.client(address)?, SameServer::new(self.max_age.of_host(&address.host)));
        // A replica of a cluster sends every command to its primary, so the role is not asked.
        let connection = ServerConnection::open(client, RoleCheck::off(), self.timeout, own.member(), &self.shutdown);
        let node = Arc::new(ClusterNode { address: address.clone(), connection });
        by_address.insert(address.clone(), Arc::clone(&node));
        Ok(node)
    }

    /// Returns the nodes that have slots.
    ///
    /// # Errors
    ///
    /// The map was not read yet.
    pub(super) fn primaries(&self) -> Result<Vec<Arc<ClusterNode>>, CommandError> {
        self.is_known()?;
        Ok(self.nodes.read().primaries.clone())
    }

    /// Returns the addresses of all nodes.
    pub(super) fn addresses(&self) -> Vec<NodeAddress> {
        self.nodes.read().by_address.keys().cloned().collect()
    }

    /// Notes that a command has failed.
    pub(super) fn note_failure(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// Returns whether a command has failed since the last call.
    pub(super) fn take_failure(&self) -> bool {
        self.has_failed.swap(false, Ordering::Relaxed)
    }

    /// Uses a map and its nodes from now on; all others are dropped.
    pub(super) fn replace(&self, map: &[SlotRange], by_address: HashMap<NodeAddress, Arc<ClusterNode>>) {
        let mut by_slot = vec![None; SLOTS];
        for range in map {
            by_slot[range.first..=range.last].fill(by_address.get(&range.primary).cloned());
        }
        let primaries = by_address.values().cloned().collect();
        let old = std::mem::replace(&mut *self.nodes.write(), ClusterNodes { by_address, primaries, by_slot });
        // Outside of the lock: the connections of nodes that are not used any more end here.
        drop(old);
    }
}

fn address(configured: &ConnectionInfo) -> Option<NodeAddress> {
    match configured.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some(NodeAddress { host: host.clone(), port: *port })
        }
        _ => None,
    }
}
