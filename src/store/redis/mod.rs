//! The Redis store: one server, a cluster, or a master that sentinels know.
//!
//! # The steps
//!
//! A hit is one plain `GET` on a multiplexed connection. Every other step is one script, in one hash slot
//! (all keys of a customer share one through `{K}`), so that it is atomic. Events have a link of their
//! own: what the consumer does never stands before a hit, and a `WAIT` holds up nothing else. K is read
//! from the master only.
//!
//! # When something fails
//!
//! An error leaves unknown whether a step took effect; every step may be repeated, a lease with a new
//! token. Redis down: see `link.rs`. A failed-over master may have lost acknowledged writes; what bounds
//! that is told in DESIGN section 2, rule 12, and `min_replicas` is its lever here: an event whose delete
//! was not confirmed by so many replicas is an error, and comes again.

mod breaker;
mod client;
pub mod config;
mod connection;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod lineage;
mod pubsub;
mod record;
mod scripts;
mod waiting;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::{At, Key, Kind, Modified, Redelivery};
use crate::invalid::InvalidSetting;
use crate::shutdown::Shutdown;

use super::fence::Fence;
use super::{
    Applied, Base, Change, Entry, Error, Filled, Held, Inspect, Inspection, Lease, LeaseAnswer, Leased, Lifetimes,
    Record, ReplicationHistory, Store, Token,
};

use config::{Config, Place};
use connection::{Failure, Link};
use pubsub::Announcements;
use scripts::{APPLY, FILL, INSPECT, LEASE, Names, RELEASE, Script};

/// A store in Redis; see the module's head.
#[derive(Debug)]
pub struct Redis {
    lookups: Link,
    events: Link,
    announcements: Announcements,
    /// The kind of channel on which scripts announce a change.
    channel: &'static str,
    lifetimes: Lifetimes,
    min_replicas: u32,
    timeout: Duration,
    clock: SharedClock,
}

impl Redis {
    /// Makes a store, whose links connect in the background.
    ///
    /// # Errors
    ///
    /// The configuration cannot work.
    pub fn open(
        config: &Config,
        timeout: Duration,
        lifetimes: Lifetimes,
        clock: SharedClock,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let refuse = |error: InvalidSetting| Error::Rejected { reason: error.within("store.redis").to_string() };
        let place = config.place().map_err(refuse)?;
        let certificates = config.certificates().map_err(refuse)?;
        // A WAIT may take as long again as its script.
        let patience = if config.min_replicas > 0 { timeout * 2 } else { timeout };
        Ok(Self {
            lookups: Link::open(&place, certificates.as_ref(), timeout, shutdown)?,
            events: Link::open(&place, certificates.as_ref(), patience, shutdown)?,
            announcements: Announcements::open(&place, certificates.as_ref(), shutdown)?,
            channel: if matches!(place, Place::Cluster(_)) { "s" } else { "p" },
            lifetimes,
            min_replicas: config.min_replicas,
            timeout,
            clock,
        })
    }

    /// Waits until both links are connected for the first time; the caller bounds it.
    pub async fn connected(&self) {
        self.lookups.connected().await;
        self.events.connected().await;
    }

    /// Runs a script of a lookup.
    async fn run(&self, script: &Script, names: &Names<'_>, argue: impl Fn(&mut Cmd)) -> Result<Value, Error> {
        let call = |mut cmd: Cmd| {
            cmd.arg(3).arg(names.key).arg(&names.fence).arg(&names.lock);
            argue(&mut cmd);
            cmd.arg(self.channel);
            cmd
        };
        match self.lookups.send(&call(script.by_name())).await {
            // Nothing was run, so running it now is its first attempt.
            Err(Failure::NoScript) => self.lookups.send(&call(script.by_text())).await,
            answer => answer,
        }
        .map_err(settle)
    }

    async fn apply(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        let names = Names::of(key);
        let call = |mut cmd: Cmd| {
            cmd.arg(4 + usize::from(change.of.is_some())).arg(names.key).arg(&names.fence).arg(&names.lock);
            cmd.arg(names.seen(change.event)).arg(change.of.map(|of| names.seen(of)));
            self.argue_change(&mut cmd, change);
            cmd.arg(self.channel);
            cmd
        };
        let answer = match self.applied(call(APPLY.by_name())).await {
            Err(Failure::NoScript) => self.applied(call(APPLY.by_text())).await,
            answer => answer,
        }
        .map_err(settle)?;
        match bytes(answer).as_deref() {
            Some(b"duplicate") => Ok(Applied::Duplicate),
            Some(b"outrun") => Ok(Applied::Outrun),
            Some(b"applied") => Ok(Applied::Applied { had_entry: true }),
            Some(b"absent") => Ok(Applied::Applied { had_entry: false }),
            _ => Err(unexpected()),
        }
    }

    /// Sends an event's script, and the `WAIT` for its replicas behind it on the same connection.
    async fn applied(&self, cmd: Cmd) -> Result<Value, Failure> {
        if self.min_replicas == 0 {
            return self.events.send(&cmd).await;
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(cmd).cmd("WAIT").arg(self.min_replicas).arg(record::lifetime(self.timeout));
        let mut answers = self.events.send_all(&pipeline, 2).await?;
        let confirmed = answers.pop().and_then(|value| number(&value)).unwrap_or_default();
        if confirmed < i64::from(self.min_replicas) {
            let reason = format!("{confirmed} of {} replicas confirmed in time", self.min_replicas);
            return Err(Failure::Store(Error::Unavailable { reason }));
        }
        answers.pop().ok_or_else(|| Failure::Store(unexpected()))
    }

    fn argue_change(&self, cmd: &mut Cmd, change: &Change) {
        let does = match change.kind {
            Kind::Created => "C",
            Kind::Updated | Kind::Merged => "U",
            Kind::Deleted => "D",
        };
        let (modified, at) = (change.stamps.modified, change.stamps.at);
        let lacks_modified = modified.is_none() && change.kind != Kind::Deleted;
        cmd.arg(does)
            .arg(modified.map(Modified::as_millis).map_or_else(String::new, |millis| millis.to_string()))
            .arg(at.map(At::as_millis).map_or_else(String::new, |millis| millis.to_string()))
            .arg(at.map_or("", |at| record::precision(at.precision())))
            .arg(u8::from(change.force))
            .arg(change.again.map_or("", Redelivery::as_str))
            .arg(u8::from(lacks_modified))
            .arg(self.clock.now().as_millis())
            .arg(record::lifetime(self.lifetimes.fence()))
            .arg(record::lifetime(self.lifetimes.tombstone_ttl))
            .arg(record::lifetime(self.lifetimes.dedup_window))
            .arg(&Token::draw().as_bytes()[..])
            .arg(u8::from(self.min_replicas > 0));
    }

    async fn withdraw(&self, lease: Lease) -> Result<(), Error> {
        let (key, token, held) = lease.consume();
        let names = Names::of(&key);
        let answer = self.run(&RELEASE, &names, |cmd| {
            cmd.arg(place(held)).arg(&token.as_bytes()[..]);
        });
        answer.await.map(drop)
    }
}

#[async_trait]
impl Store for Redis {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let mut cmd = redis::cmd("GET");
        cmd.arg(key.as_str());
        match self.lookups.send(&cmd).await {
            Ok(answer) => Ok(bytes(answer).map(|bytes| record::decode(bytes.into()))),
            // Corrupt as any other bytes would be; the lease over it removes it.
            Err(Failure::WrongType) => Ok(Some(Entry::Corrupt(Bytes::new()))),
            Err(failure) => Err(settle(failure)),
        }
    }

    async fn lease(&self, key: &Key, base: &Base, token: Token, ttl: Duration) -> Result<LeaseAnswer, Error> {
        let names = Names::of(key);
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
        let granted = |held, fence: Option<Value>| {
            let fence = fence.and_then(bytes).and_then(|text| record::decode_fence(&text));
            LeaseAnswer::Granted(Lease::granted(key.clone(), token, held, fence))
        };
        match (what.as_slice(), base) {
            (b"key", _) => Ok(granted(Held::Key, parts.next())),
            (b"lock", Base::Token(base)) => Ok(granted(Held::Lock(*base), parts.next())),
            (b"held", _) => {
                let mut next = || parts.next();
                let (token, seen) = (next().and_then(read_token), next().and_then(read_token));
                let remaining = next().as_ref().and_then(number).and_then(|millis| u64::try_from(millis).ok());
                let (token, seen) = token.zip(seen).ok_or_else(unexpected)?;
                Ok(LeaseAnswer::Held { token, seen, remaining: Duration::from_millis(remaining.unwrap_or_default()) })
            }
            (b"changed", _) => {
                let value = parts.next().and_then(bytes).ok_or_else(unexpected)?;
                Ok(LeaseAnswer::Changed(record::decode(value.into())))
            }
            _ => Err(unexpected()),
        }
    }

    async fn fill(&self, lease: Lease, record: Record) -> Result<Filled, Error> {
        let (key, token, held) = lease.consume();
        if record.identity.key() != key || record.token != token {
            return Err(Error::Rejected { reason: "a fill names another key or another lease".to_owned() });
        }
        let names = Names::of(&key);
        let (value, lifetime) = (record::encode(&record), record::lifetime(record.lifetime()));
        let base = match held {
            Held::Key => token,
            Held::Lock(base) => base,
        };
        let answer = self.run(&FILL, &names, |cmd| {
            cmd.arg(place(held)).arg(&token.as_bytes()[..]).arg(&base.as_bytes()[..]).arg(&value[..]).arg(lifetime);
        });
        match number(&answer.await?) {
            Some(1) => Ok(Filled::Stored),
            Some(_) => Ok(Filled::Refused),
            None => Err(unexpected()),
        }
    }

    async fn release(&self, lease: Lease) -> Result<(), Error> {
        self.withdraw(lease).await
    }

    async fn invalidate(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.apply(key, change).await
    }

    async fn write_tombstone(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        self.apply(key, change).await
    }

    async fn wait(&self, key: &Key, seen: Token, deadline: Instant) {
        self.wait_for_change(key, seen, deadline).await;
    }
}

#[async_trait]
impl Inspect for Redis {
    async fn ping(&self) -> Result<(), Error> {
        for link in [&self.lookups, &self.events] {
            link.ping().await.map_err(settle)?;
        }
        Ok(())
    }

    async fn lineage(&self) -> Result<ReplicationHistory, Error> {
        self.replication_ids().await
    }

    async fn inspect(&self, key: &Key) -> Result<Inspection, Error> {
        let names = Names::of(key);
        let parts = list(self.run(&INSPECT, &names, |_| {}).await?)?;
        let [entry, entry_left, fence, lock, lock_left] = <[Value; 5]>::try_from(parts).map_err(|_| unexpected())?;
        let left = |value| number(&value).and_then(|millis| u64::try_from(millis).ok()).map(Duration::from_millis);
        let text = |value| bytes(value).filter(|bytes| !bytes.is_empty());
        let fence: Option<Fence> = text(fence).and_then(|text| record::decode_fence(&text));
        Ok(Inspection {
            entry: text(entry).map(|bytes| record::decode(bytes.into()).without_body()),
            remaining: left(entry_left),
            fence,
            lock: text(lock).and_then(|bytes| token_of(&bytes)).zip(left(lock_left)),
        })
    }
}

/// How scripts name where a lease stands.
const fn place(held: Held) -> &'static str {
    match held {
        Held::Key => "key",
        Held::Lock(_) => "lock",
    }
}

fn settle(failure: Failure) -> Error {
    match failure {
        Failure::Store(error) => error,
        // A script that was sent with its text is known to the server.
        Failure::NoScript => Error::Rejected { reason: "a script is not known".to_owned() },
        Failure::WrongType => Error::Rejected { reason: "a key holds another type".to_owned() },
    }
}

fn unexpected() -> Error {
    Error::Rejected { reason: "an answer is not as expected".to_owned() }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn list(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

fn token_of(bytes: &[u8]) -> Option<Token> {
    bytes.try_into().ok().map(Token::from_bytes)
}

fn read_token(value: Value) -> Option<Token> {
    token_of(&bytes(value)?)
}
