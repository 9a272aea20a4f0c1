//! The outbox: a publisher in front of a broker that keeps in a local log what the broker does not confirm.
//!
//! # Guarantees
//!
//! [`publish`](Publisher::publish) returns after every event is confirmed by the broker, or fsynced in the log. An event
//! stays in the log until the broker has confirmed it, across restarts and `kill -9`. It may reach the broker twice,
//! which has no second effect. While the broker answers, an event costs one more read of a flag: no lock, no disk.
//!
//! # Order
//!
//! The events of a shard are handed on in the order of the log, oldest first, and newer events do not overtake them (see
//! `lanes`). Events of one publish stay together: if one of them goes to the log, all do.
//!
//! # Parts
//!
//! ```text
//! publish ─┬─ broker answers, nothing waits ───────────────▶ broker
//!          └─ otherwise ──▶ log (an embedded queue) ── relay ──▶ broker
//! ```
//!
//! # Failures
//!
//! - The broker is down, blocked, or does not confirm within `publish_timeout`: the event goes to the log. From then on the
//!   events of its shard go there at once, until the relay has found that the broker answers.
//! - The log or its disk is full, or its disk fails or hangs: if events go there only because of their order, they go to the
//!   broker; otherwise the publish fails. The next one asks the broker itself, unless the relay does.
//! - The disk is lost: so are the events on it. Nobody else has them.

mod lanes;
mod relay;
mod shared;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock::SharedClock;
use crate::domain::{Event, Timestamp};
use crate::invalid::InvalidSetting;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::embedded::{self, Embedded};
use super::shards::Shards;
use super::{DeadLetterSelection, DeadLetters, Error, Publisher, Queue};

use lanes::Route;
use relay::{Relay, WINDOW};
use shared::Shared;

/// The longest that a new event waits for the last older ones of its shard, or for the log while the broker answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// The room of an event in bytes, beyond its usual size. A log with less counts as full.
const ROOM: u64 = 1_024;

/// `[queue.outbox]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether there is an outbox.
    pub enabled: bool,
    /// The directory of the log; created if it does not exist.
    pub path: PathBuf,
    /// The limit of the files of the log, in bytes; 4 MiB at least.
    pub max_bytes: ByteSize,
    /// How many events per second are handed on beyond those that arrive.
    pub rate: u32,
}

impl Config {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    ///
    /// The first option that is not usable.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        if self.max_bytes.as_u64() == 0 {
            return Err(InvalidSetting::new("max_bytes", "must be above zero"));
        }
        if !(1..=1_000_000).contains(&self.rate) {
            return Err(InvalidSetting::new("rate", "must be from 1 to 1000000"));
        }
        Ok(())
    }

    /// Returns whether the directory has a file although there is no outbox: events in it are not handed on.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        !self.enabled && self.path.join(embedded::FILE_NAME).exists()
    }

    /// Opens the log. Blocks while it checks the file, for a time in proportion to its content.
    ///
    /// # Errors
    ///
    /// As of [`Embedded::open`].
    pub(super) fn open(&self, clock: SharedClock, shutdown: &Shutdown) -> Result<Arc<Embedded>, Error> {
        // An event that the broker has is in the broker's journal.
        let (journal_max_bytes, journal_retention) = (ByteSize::b(0), Duration::ZERO);
        let (path, max_bytes) = (self.path.clone(), self.max_bytes);
        Embedded::open(&embedded::Config { path, max_bytes, journal_max_bytes, journal_retention }, clock, shutdown)
    }
}

/// The outbox. See the module head.
#[derive(Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
    config: Config,
    clock: SharedClock,
    relay: Mutex<Option<JoinHandle<()>>>,
}

/// What is in an outbox.
#[derive(Clone, Debug)]
pub struct OutboxStatus {
    /// Events that the broker has not confirmed.
    pub events: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// How many bytes of events fit into the log.
    pub max_bytes: u64,
    /// When the oldest of them was received.
    pub oldest: Option<Timestamp>,
    /// The time since then.
    pub oldest_age: Duration,
    /// Things in the log that are not events, and are set aside.
    pub undecodable: u64,
    /// Why the log takes no events; `None`: it does.
    pub refusal: Option<String>,
}

impl Outbox {
    /// Starts an outbox on an open log, in front of `broker`; `tasks` tracks the relay.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`]: the disk of the log failed.
    pub(super) async fn start(
        config: &Config,
        log: Arc<Embedded>,
        broker: Arc<dyn Publisher>,
        shards: Shards,
        clock: SharedClock,
        tasks: &Shutdown,
    ) -> Result<Arc<Self>, Error> {
        // What an earlier version could not read, this one may.
        log.redrive(&DeadLetterSelection::All).await?;
        let subscription = log.subscribe(WINDOW).await?;
        let shared = Arc::new(Shared::new(broker, log, shards));
        let events = shared.log.size().events;
        if events > 0 {
            tracing::info!(events, path = %config.path.display(), "the outbox has events of an earlier process and hands them on");
        }
        let relay = tasks.spawn(Relay::new(Arc::clone(&shared), subscription, config.rate).run());
        Ok(Arc::new(Self { shared, config: config.clone(), clock, relay: Mutex::new(Some(relay)) }))
    }

    /// Returns what the outbox holds.
    pub async fn status(&self) -> OutboxStatus {
        let log = &self.shared.log;
        let size = log.size();
        let max_bytes = self.config.max_bytes.as_u64().min(size.bytes.saturating_add(size.room));
        let oldest = self.shared.oldest().filter(|_| size.events > 0);
        let oldest_age = oldest.map_or(Duration::ZERO, |oldest| self.clock.now().since(oldest));
        let refusal = match log.ping().await {
            Ok(()) if size.bytes + ROOM <= max_bytes => None,
            Ok(()) => Some("it is full".to_owned()),
            // The log of this process has the reason, with the path.
            Err(Error::Unavailable { .. }) => Some("its file does not work".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let undecodable = size.dead_letters;
        OutboxStatus { events: size.events, bytes: size.bytes, max_bytes, oldest, oldest_age, undecodable, refusal }
    }

    /// Updates the gauges, and returns what the outbox holds.
    pub async fn refresh(&self, metrics: &Metrics) -> OutboxStatus {
        let status = self.status().await;
        // A floating-point number represents sizes below 2^53 exactly.
        metrics.outbox_events.set(status.events as f64);
        metrics.outbox_bytes.set(status.bytes as f64);
        metrics.outbox_max_bytes.set(status.max_bytes as f64);
        metrics.outbox_oldest.set(status.oldest_age.as_secs_f64());
        status
    }

    /// Hands the events on without the rate limit, until none is left, at most until `deadline`. Returns how many are left.
    pub async fn drain(&self, deadline: Instant) -> u64 {
        let _hurry = self.shared.hurry();
        let mut changes = self.shared.lanes.changes();
        while self.shared.log.size().events > 0 {
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        self.shared.log.size().events
    }

    /// Ends the relay and closes the log, within a bounded time; logs what remains. Closing twice is allowed.
    ///
    /// # Errors
    ///
    /// As of [`Embedded::close`].
    pub(super) async fn close(&self) -> Result<(), Error> {
        self.shared.closing.cancel();
        let relay = self.relay.lock().take();
        if let Some(relay) = relay {
            // A panic was reported where it happened.
            let _ = relay.await;
            let OutboxStatus { events, oldest_age, .. } = self.status().await;
            if events > 0 {
                let (oldest_seconds, path) = (oldest_age.as_secs(), self.config.path.display());
                tracing::warn!(events, oldest_seconds, %path, "events remain in the outbox: the next process on this directory hands them on");
            }
        }
        self.shared.log.close().await
    }

    async fn detour(&self, events: &[Event]) -> Result<(), Error> {
        let shards = self.shards_of(events);
        let deadline = Instant::now() + PATIENCE;
        // Subscribed before the lanes are read, so that no change in between is missed.
        let mut changes = self.shared.lanes.changes();
        loop {
            match self.shared.lanes.route(&shards) {
                Route::Broker => return self.offer(events).await,
                Route::Log => return self.keep(events, &shards).await,
                Route::Wait => {
                    if timeout_at(deadline, changes.changed()).await.is_err() {
                        return self.keep(events, &shards).await;
                    }
                }
            }
        }
    }

    /// Publishes events, and keeps them if the broker does not confirm.
    async fn offer(&self, events: &[Event]) -> Result<(), Error> {
        match self.shared.broker.publish(events).await {
            Err(error @ (Error::Unavailable { .. } | Error::Misconfigured { .. })) => {
                let shards = self.shards_of(events);
                self.shared.broker_failed(&shards, &error);
                self.keep(events, &shards).await
            }
            outcome @ (Ok(()) | Err(Error::Full { .. } | Error::DiskFull { .. } | Error::Closed)) => outcome,
        }
    }

    async fn keep(&self, events: &[Event], shards: &[usize]) -> Result<(), Error> {
        let append = self.shared.lanes.append(shards);
        let mut keeping = self.shared.log.publish(events);
        let kept = match timeout(PATIENCE, &mut keeping).await {
            Ok(kept) => kept,
            // Nobody else takes them.
            Err(_) if append.is_failing() => keeping.await,
            Err(_) => match self.pass_the_log(events, shards).await {
                Ok(()) => {
                    // The log may get them as well, which has no second effect.
                    append.refused(true);
                    return Ok(());
                }
                Err(_) => keeping.await,
            },
        };
        let Err(error) = kept else {
            append.kept();
            return Ok(());
        };
        if append.refused(!matches!(error, Error::Full { .. } | Error::DiskFull { .. })) {
            return Err(error);
        }
        // Only the order sent them here, and the broker answers.
        self.pass_the_log(events, shards).await
    }

    async fn pass_the_log(&self, events: &[Event], shards: &[usize]) -> Result<(), Error> {
        self.shared.broker.publish(events).await.inspect_err(|error| self.shared.broker_failed(shards, error))
    }

    fn shards_of(&self, events: &[Event]) -> Vec<usize> {
        events.iter().map(|event| self.shared.shards.of(event)).collect()
    }
}

#[async_trait]
impl Publisher for Outbox {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        if self.shared.lanes.are_open() { self.offer(events).await } else { self.detour(events).await }
    }
}
