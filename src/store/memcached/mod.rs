//! The Memcached store: one server or several, each customer's keys on one of them.
//!
//! # The steps
//!
//! Memcached executes one command on one key at a time. It gives every value a version, and writes on the condition that the
//! version is unchanged. So this adapter decides here, by the pure functions of the store, and writes each value in place of
//! exactly what it read. What is one script in Redis is several steps here; `apply` and `lease` say why their orders keep the
//! promise. A hit is one read.
//!
//! | step | commands |
//! |---|---|
//! | lease | add the lease at K, then read the fence |
//! | fill | read K, lock and fence; replace exactly what was read at K |
//! | event | read fence and K; raise the fence; delete the lock; delete K, or write a tombstone in place of what was read; mark the event |
//!
//! # What is lost
//!
//! A server that is started again has lost everything: entries, leases, fences, marks. It then has another history, and the
//! latest events are restored from the journal ([`rules::failover`](crate::rules#failover)). An evicted key costs what it
//! costs in Redis. A server that is down is a part that does not work: its customers bypass the store, their events wait. Its keys
//! move to no other server, where events would not find them. So every process needs the same list of servers.

mod answers;
mod apply;
mod changes;
pub mod config;
mod connection;
mod connector;
mod generations;
mod lease;
mod link;
mod probe;
mod protocol;
pub mod survey;
mod tombstones;
mod values;
mod waiting;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, select_all};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use crate::clock::SharedClock;
use crate::domain::{Key, TenantId, Timestamp};
use crate::invalid::InvalidSetting;
use crate::max_age::MaxAge;
use crate::same_server::SameServer;
use crate::shutdown::Shutdown;

use super::changes::ChangeFeed;
use super::histories::KnownHistories;
use super::sealed::macs::Macs;
use super::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    Lifetimes, Record, ReplicationHistory, Store, Token,
};

use changes::follow;
use config::Config;
use connection::Connection;
use protocol::Requests;

/// The age at which a connection to a name is replaced.
const MAX_AGE: Duration = Duration::from_secs(300);

/// How long the lease lives that a tombstone replaces.
const MARKER: Duration = Duration::from_secs(1);

/// How long the start waits for the other servers after the first.
const OTHERS: Duration = Duration::from_secs(1);

/// A store in Memcached; see the module's head.
#[derive(Debug)]
pub struct Memcached {
    nodes: Vec<Node>,
    histories: KnownHistories,
    lifetimes: Lifetimes,
    clock: SharedClock,
    macs: Option<Macs>,
}

/// A server. Events have a connection of their own, so that the work of the consumer never delays a hit. Both lead to the same
/// server, also when its name moves.
#[derive(Clone, Debug)]
struct Node {
    name: String,
    lookups: Connection,
    events: Connection,
}

impl Memcached {
    /// Creates a store, whose connections are established in the background.
    ///
    /// # Errors
    ///
    /// The configuration is invalid.
    pub fn open(
        config: &Config,
        timeout: Duration,
        lifetimes: Lifetimes,
        clock: SharedClock,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let refuse = |error: InvalidSetting| Error::Rejected { reason: error.within("store.memcached").to_string() };
        let mut nodes = Vec::new();
        for server in config.parsed().map_err(refuse)? {
            let all = SameServer::new(MaxAge::new(MAX_AGE, [server.host.as_str()]));
            let open = || Connection::open(config, &server, timeout, all.member(), shutdown).map_err(refuse);
            nodes.push(Node { name: server.to_string(), lookups: open()?, events: open()? });
        }
        Ok(Self { nodes, histories: KnownHistories::default(), lifetimes, clock, macs: None })
    }

    /// Returns the store with MACs for its tombstones and marks.
    #[must_use]
    pub fn with_macs(self, macs: Macs) -> Self {
        Self { macs: Some(macs), ..self }
    }

    /// Starts to publish in `feed`, from its first reader on, the changes that any process applies.
    pub fn follow_changes(&self, feed: &ChangeFeed, shutdown: &Shutdown) {
        let (nodes, clock) = (self.nodes.clone(), SharedClock::clone(&self.clock));
        feed.spawn_when_wanted(shutdown, follow(nodes, feed.clone(), clock, shutdown.clone()));
    }

    /// Waits for a first server, and a moment for the others; the caller limits the time.
    pub async fn connected(&self) {
        let node = |node: &'_ Node| {
            let node = node.clone();
            Box::pin(async move {
                node.lookups.connected().await;
                node.events.connected().await;
            })
        };
        let (_, _, others) = select_all(self.nodes.iter().map(node)).await;
        // A server that is down is a part that does not work.
        let _ = timeout(OTHERS, join_all(others)).await;
    }

    /// Returns the server that has the keys of a customer.
    fn node(&self, key: &Key) -> &Node {
        self.node_of(key.as_str())
    }

    /// Returns the server that has a key: rendezvous hashing (Thaler and Ravishankar, 1998), so that adding a server moves the
    /// least keys.
    fn node_of(&self, key: &str) -> &Node {
        let [first, others @ ..] = &self.nodes[..] else { unreachable!("a configuration has a server") };
        if others.is_empty() {
            return first;
        }
        let score = |node: &&Node| -> [u8; 32] {
            Sha256::new().chain_update(&node.name).chain_update([0]).chain_update(key).finalize().into()
        };
        self.nodes.iter().max_by_key(score).unwrap_or(first)
    }

    /// Returns for how long an entry is still valid.
    fn remaining(&self, entry: &Entry, now: Timestamp) -> Duration {
        match entry {
            Entry::Record(record) => record.lifetime().saturating_sub(now.since(record.fetched_at)),
            Entry::Tombstone(tombstone) => tombstone.written_at.plus(self.lifetimes.tombstone_ttl).since(now),
            Entry::Leased(leased) => leased.until.since(now),
            Entry::Corrupt(_) => Duration::ZERO,
        }
    }
}

#[async_trait]
impl Store for Memcached {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let [found] = self.node(key).lookups.session()?.run(Requests::default().get(key.as_str())).await?;
        Ok(self.entry(key, found.value()?.as_ref(), self.clock.now()).value)
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        self.request_lease(key, base, token, ttl).await
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        self.write_record(lease, record).await
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        self.remove_lease(lease).await
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.apply_change(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.wait_for_change(key, seen, deadline).await;
    }
}

#[async_trait]
impl Inspect for Memcached {
    async fn ping(&self) -> Result<(), Error> {
        self.probe().await
    }

    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        self.histories().await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        self.inspect_key(key).await
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.raise_generations(tenant, mode).await
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        self.read_generations().await
    }
}
