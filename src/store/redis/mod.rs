//! The Redis store: one server, a cluster, or a master that sentinels name.
//!
//! # The steps
//!
//! A hit is one plain `GET` on a multiplexed connection. Every other step is one script in one hash slot, so it is
//! atomic: all keys of a customer share a slot through `{entry key}`. Entries are read from the primary only.
//!
//! Redis answers the commands of a connection in their order, and may delay one: a `WAIT`, or a write during a failover or
//! `CLIENT PAUSE`. So there are three connections: for reads, for the scripts of lookups, and for events. A hit never waits
//! for the others.
//!
//! # After a failure
//!
//! After an error it is unknown whether a step took effect. Every step may be repeated; a lease needs a new token.
//! When Redis is down, each connection reconnects in the background. A replica that was promoted may lack acknowledged
//! writes ([`rules::failover`](crate::rules#failover)); with `min_replicas`, an event that fewer confirmed is redelivered.

mod apply;
mod breaker;
pub mod change_listener;
mod client;
mod cluster;
mod cluster_keeper;
mod cluster_map;
mod cluster_state;
pub mod config;
mod connection;
mod connection_state;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod generations;
mod probe;
mod pubsub;
mod replication;
mod reply;
mod role;
mod scripts;
mod sentinels;
mod server_connection;
mod slots;
mod stuck_slots;
mod subscriber;
mod supervisor;
pub mod survey;
mod values;
mod waiting;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::{Key, TenantId};
use crate::same_server::SameServer;
use crate::shutdown::Shutdown;

use super::fence::Fence;
use super::histories::KnownHistories;
use super::sealed::macs::Macs;
use super::{
    Applied, Base, Change, ClearMode, Entry, Error, Filled, Generations, Inspect, Inspection, Lease, LeaseAnswer,
    LeaseTarget, Leased, Lifetimes, Record, ReplicationHistory, Store, Token, record,
};

use config::{Config, Endpoints};
use connection::RedisConnection;
use error::{CommandError, refused};
use pubsub::Announcements;
use reply::{bytes, list, number, unexpected};
use scripts::{FILL, INSPECT, KeyNames, LEASE, RELEASE, Script, script_name};

/// A store in Redis; see the module's head.
#[derive(Debug)]
pub struct Redis {
    reads: RedisConnection,
    scripts: RedisConnection,
    events: RedisConnection,
    announcements: Announcements,
    histories: KnownHistories,
    /// The kind of channel on which scripts announce a change: sharded (`s`) or plain (`p`).
    channel: &'static str,
    /// The channel on which scripts publish applied changes.
    changes: String,
    /// The number of the database.
    database: i64,
    lifetimes: Lifetimes,
    min_replicas: u32,
    timeout: Duration,
    clock: SharedClock,
    macs: Option<Macs>,
}

impl Redis {
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
        let endpoints = config.endpoints().map_err(refused)?;
        let (all, newest) = (SameServer::new(config.max_age().map_err(refused)?), role::NewestConnection::new());
        // A WAIT may take as long as its script did.
        let event_timeout = if config.min_replicas > 0 { timeout * 2 } else { timeout };
        Ok(Self {
            reads: RedisConnection::open(config, timeout, &all, &newest, shutdown)?,
            scripts: RedisConnection::open(config, timeout, &all, &newest, shutdown)?,
            events: RedisConnection::open(config, event_timeout, &all, &newest, shutdown)?,
            announcements: Announcements::open(config, all.max_age(), shutdown)?,
            histories: KnownHistories::default(),
            channel: if matches!(endpoints, Endpoints::Cluster(_)) { "s" } else { "p" },
            changes: change_listener::channel(&endpoints),
            database: endpoints.database(),
            lifetimes,
            min_replicas: config.min_replicas,
            timeout,
            clock,
            macs: None,
        })
    }

    /// Returns the store with MACs for its tombstones and marks.
    #[must_use]
    pub fn with_macs(self, macs: Macs) -> Self {
        Self { macs: Some(macs), ..self }
    }

    /// Waits for the first connection of each kind; the caller limits the time.
    pub async fn connected(&self) {
        for connection in [&self.reads, &self.scripts, &self.events] {
            connection.connected().await;
        }
    }

    /// Returns whether parts of the data are on several servers.
    fn is_cluster(&self) -> bool {
        self.channel == "s"
    }

    /// Runs a script of a lookup.
    async fn run(
        &self,
        script: &Script,
        names: &KeyNames<'_>,
        add_arguments: impl Fn(&mut Cmd),
    ) -> Result<Value, Error> {
        let call = |mut cmd: Cmd| {
            cmd.arg(3).arg(names.key).arg(&names.fence).arg(&names.lock);
            add_arguments(&mut cmd);
            cmd.arg(self.channel);
            cmd
        };
        Ok(script.run(|cmd| self.send_of_lookup(call(cmd))).await?)
    }

    /// Sends the script of a lookup.
    async fn send_of_lookup(&self, cmd: Cmd) -> Result<Value, CommandError> {
        self.scripts.send(&cmd).await
    }
}

#[async_trait]
impl Store for Redis {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let mut cmd = redis::cmd("GET");
        cmd.arg(key.as_str());
        match self.entry(key, self.reads.send(&cmd).await)? {
            // Boxed, so that the future of every other read stays small.
            Some(Entry::Record(record)) if self.is_early(&record) => Box::pin(self.aged(key, record)).await,
            entry => Ok(entry),
        }
    }

    async fn get_together(&self, keys: &[Key]) -> Option<Vec<Result<Option<Entry>, Error>>> {
        let RedisConnection::Server(server) = &self.reads else { return None };
        Some(self.entries(server, keys).await)
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        let names = KeyNames::of(key);
        let now = self.clock.now();
        let value = record::encode_lease(&Leased { token, until: now.plus(ttl) });
        let (seen, base_bytes): (&str, &[u8]) = match base {
            Base::Absent => ("absent", &[]),
            Base::Token(token) => ("token", token.as_bytes()),
            Base::Dead(token) => ("dead", token.as_bytes()),
            Base::Corrupt(bytes) => ("corrupt", bytes),
        };
        let answer = self.run(&LEASE, &names, |cmd| {
            cmd.arg(seen).arg(base_bytes).arg(&token.as_bytes()[..]).arg(record::lifetime(ttl)).arg(&value[..]);
            cmd.arg(now.as_millis()).arg(record::lifetime(self.lifetimes.tombstone_ttl));
            cmd.arg(&Token::draw().as_bytes()[..]);
        });
        let mut parts = list(answer.await?)?.into_iter();
        let what = parts.next().and_then(bytes).unwrap_or_default();
        let mut granted = |target| {
            let fence = parts.next().and_then(bytes).and_then(|text| record::decode_fence(&text));
            let left = parts.next().as_ref().and_then(number).and_then(|millis| u64::try_from(millis).ok());
            // Redis has counted down its lifetime since it was raised.
            let most = left.map(|left| self.lifetimes.fence().saturating_sub(Duration::from_millis(left)));
            let fence = fence.map(|fence| (fence.age(now, most.unwrap_or(Duration::MAX)), fence));
            LeaseAnswer::Granted(Lease::granted(key.clone(), token, target, fence))
        };
        match (what.as_slice(), base) {
            (b"key", _) => Ok(granted(LeaseTarget::Key)),
            (b"lock", Base::Token(base)) => Ok(granted(LeaseTarget::Lock(*base))),
            (b"held", _) => {
                let mut next = || parts.next();
                let (token, seen) = (next().and_then(reply::token), next().and_then(reply::token));
                let remaining = next().as_ref().and_then(number).and_then(|millis| u64::try_from(millis).ok());
                let (token, seen) = token.zip(seen).ok_or_else(unexpected)?;
                Ok(LeaseAnswer::Held { token, seen, remaining: Duration::from_millis(remaining.unwrap_or_default()) })
            }
            (b"changed", _) => {
                let value = parts.next().and_then(bytes).ok_or_else(unexpected)?;
                Ok(LeaseAnswer::Changed(self.decode(key, value.into())))
            }
            _ => Err(unexpected()),
        }
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let base = lease.witness();
        let (key, token, target) = lease.consume_for(&record)?;
        let names = KeyNames::of(&key);
        let (value, lifetime) = (record::encode(&record), record::lifetime(record.lifetime()));
        let answer = self.run(&FILL, &names, |cmd| {
            cmd.arg(script_name(target))
                .arg(&token.as_bytes()[..])
                .arg(&base.as_bytes()[..])
                .arg(&value[..])
                .arg(lifetime);
        });
        match number(&answer.await?) {
            Some(1) => Ok(Filled::Stored),
            Some(_) => Ok(Filled::Refused),
            None => Err(unexpected()),
        }
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        let (key, token, target) = lease.consume();
        let names = KeyNames::of(&key);
        let answer = self.run(&RELEASE, &names, |cmd| {
            cmd.arg(script_name(target)).arg(&token.as_bytes()[..]);
        });
        answer.await.map(drop)
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.apply_change(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.wait_for_change(key, seen, deadline).await;
    }
}

#[async_trait]
impl Inspect for Redis {
    async fn ping(&self) -> Result<(), Error> {
        self.probe().await
    }

    async fn replication_history(&self) -> Result<ReplicationHistory, Error> {
        self.replication_ids().await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let names = KeyNames::of(key);
        let parts = list(self.run(&INSPECT, &names, |_| {}).await?)?;
        let [entry, entry_left, fence, lock, lock_left] = <[Value; 5]>::try_from(parts).map_err(|_| unexpected())?;
        let left = |value| number(&value).and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis);
        let text = |value| bytes(value).filter(|bytes| !bytes.is_empty());
        let fence: Option<Fence> = text(fence).and_then(|text| record::decode_fence(&text));
        Ok(Inspection {
            entry: text(entry).map(|bytes| self.decode_silently(key, bytes.into()).without_body()),
            remaining: left(entry_left),
            fence,
            lock: reply::token(lock).zip(left(lock_left)),
        })
    }

    async fn clear(&self, tenant: &TenantId, mode: ClearMode) -> Result<(), Error> {
        self.raise_generations(tenant, mode).await
    }

    async fn generations(&self) -> Result<HashMap<TenantId, Generations>, Error> {
        self.read_generations().await
    }
}
