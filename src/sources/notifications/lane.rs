//! A lane: one channel of notifications, its socket, and the task that keeps both.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::domain::CustomerId;
use crate::supervise::Backoff;
use crate::upstream::Error;
use crate::upstream::notifications::Channel;

use super::Watcher;
use super::reader::Reader;
use super::watches::Contact;

/// How long contacts are gathered for one request.
const GATHER: Duration = Duration::from_millis(200);

/// The longest life of a channel.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The longest time before the end of a channel at which it is replaced; for a short life a quarter of it.
const AHEAD: Duration = Duration::from_secs(30 * 60);

/// How long before the end of its token a channel is replaced: the token was renewed by then.
const AHEAD_OF_TOKEN: Duration = Duration::from_secs(30);

/// The shortest time between two replacements.
const SHORTEST: Duration = Duration::from_secs(1);

/// One channel of a tenant.
#[derive(Debug)]
pub(super) struct Lane {
    watcher: Arc<Watcher>,
    number: usize,
    /// A channel without a socket, which can be used again.
    idle: Option<Channel>,
    backoff: Backoff,
}

/// A channel whose changes are received.
#[derive(Debug)]
struct Live {
    channel: Channel,
    reader: Reader,
    /// The contacts that it is subscribed to.
    subscribed: HashSet<CustomerId>,
    replace_at: Instant,
    /// When contacts that could not be subscribed are tried again.
    retry_at: Option<Instant>,
}

impl Lane {
    /// Creates a lane that has no channel.
    pub(super) fn new(watcher: Arc<Watcher>, number: usize) -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(60));
        Self { watcher, number, idle: None, backoff }
    }

    /// Keeps a channel from the first contact on, until shutdown.
    pub(super) async fn run(mut self) {
        let watcher = Arc::clone(&self.watcher);
        tokio::select! {
            () = watcher.watches.changed(self.number) => sleep(GATHER).await,
            () = watcher.shutdown.requested() => return,
        }
        while !watcher.shutdown.is_requested() {
            match self.open().await {
                Ok(live) => {
                    self.backoff.reset();
                    self.works();
                    if let Some(reason) = self.keep(live).await {
                        self.lose(&reason);
                        self.backoff.pause(&watcher.shutdown).await;
                    }
                }
                Err(error) => self.fail(&error).await,
            }
        }
    }

    /// Opens a channel and its socket, and subscribes it to all contacts of the lane.
    async fn open(&mut self) -> Result<Live, Error> {
        let watcher = Arc::clone(&self.watcher);
        let idle = self.idle.take().filter(|channel| replace_at(channel, &watcher) > Instant::now() + SHORTEST);
        let channel = match idle {
            Some(channel) => channel,
            None => {
                watcher.turn().await;
                watcher.api.create().await?
            }
        };
        let socket = match watcher.api.connect(&channel).await {
            Ok(socket) => socket,
            Err(error) => {
                // A channel that is refused is of no use any more.
                self.idle = (!matches!(error, Error::Unusable { .. })).then_some(channel);
                return Err(error);
            }
        };
        // From here on changes are received; they are missed by nobody once the subscription is confirmed.
        let reader = Reader::start(socket, &watcher, self.number);
        let replace_at = replace_at(&channel, &watcher).max(Instant::now() + SHORTEST);
        let mut live = Live { channel, reader, subscribed: HashSet::new(), replace_at, retry_at: None };
        match self.subscribe(&mut live, true).await {
            Ok(()) => Ok(live),
            Err(error) => {
                live.reader.task.abort();
                self.idle = (!matches!(error, Error::Unusable { .. })).then_some(live.channel);
                Err(error)
            }
        }
    }

    /// Subscribes a channel to the contacts of the lane that it lacks; to all of them, if it has others.
    async fn subscribe(&self, live: &mut Live, is_new: bool) -> Result<(), Error> {
        let watcher = &self.watcher;
        watcher.turn().await;
        let contacts = watcher.watches.of(self.number);
        let wanted: HashSet<CustomerId> = contacts.iter().map(|contact| contact.customer.clone()).collect();
        let replace = is_new || !live.subscribed.is_subset(&wanted);
        let lacking = |customer: &&CustomerId| replace || !live.subscribed.contains(customer);
        let topics: Vec<CustomerId> = wanted.iter().filter(lacking).cloned().collect();
        if replace || !topics.is_empty() {
            watcher.api.subscribe(&live.channel, &topics, replace).await?;
        }
        live.subscribed = wanted;
        confirm(watcher, &contacts);
        Ok(())
    }

    /// Keeps a channel subscribed and replaces it in time; returns why its socket ended, or `None` at shutdown.
    async fn keep(&mut self, mut live: Live) -> Option<String> {
        let watcher = Arc::clone(&self.watcher);
        loop {
            let retry = live.retry_at.unwrap_or(live.replace_at);
            tokio::select! {
                () = watcher.shutdown.requested() => return None,
                ended = &mut live.reader.task => {
                    self.idle = Some(live.channel);
                    if watcher.shutdown.is_requested() {
                        return None;
                    }
                    return Some(ended.unwrap_or("the reader of the socket failed").to_owned());
                }
                () = live.reader.closing.notified() => live = self.replace(live).await,
                () = sleep_until(live.replace_at) => live = self.replace(live).await,
                () = sleep_until(live.channel.token_ends) => {
                    live.reader.task.abort();
                    return Some("the token of the channel has ended".to_owned());
                }
                () = watcher.watches.changed(self.number) => {
                    sleep(GATHER).await;
                    if let Some(reason) = self.update(&mut live).await {
                        live.reader.task.abort();
                        return Some(reason);
                    }
                }
                () = sleep_until(retry), if live.retry_at.is_some() => {
                    if let Some(reason) = self.update(&mut live).await {
                        live.reader.task.abort();
                        return Some(reason);
                    }
                }
            }
        }
    }

    /// Subscribes new contacts; on a failure they stay unwatched and are tried again. Returns a reason to give the channel up.
    async fn update(&mut self, live: &mut Live) -> Option<String> {
        match self.subscribe(live, false).await {
            Ok(()) => {
                live.retry_at = None;
                self.backoff.reset();
                self.works();
                None
            }
            Err(error @ Error::Unusable { .. }) => Some(error.to_string()),
            Err(error) => {
                self.report(&error);
                live.retry_at = Some(Instant::now() + self.pause_after(&error));
                None
            }
        }
    }

    /// Opens another channel and lets it take over. If that fails, the present one stays and another attempt follows.
    async fn replace(&mut self, mut live: Live) -> Live {
        let watcher = Arc::clone(&self.watcher);
        let _turn = watcher.replacing.lock().await;
        match self.open().await {
            Ok(next) => {
                if live.reader.task.is_finished() {
                    // Between its end and the subscription of the next one, changes were missed.
                    self.lose("the socket ended while its channel was replaced");
                    let mut contacts = watcher.watches.of(self.number);
                    // One that was added meanwhile is subscribed next.
                    contacts.retain(|contact| next.subscribed.contains(&contact.customer));
                    confirm(&watcher, &contacts);
                }
                self.backoff.reset();
                self.works();
                live.reader.replaced();
                tracing::debug!(tenant = %watcher.tenant, lane = self.number, "a channel of notifications was replaced");
                next
            }
            Err(error) => {
                self.report(&error);
                live.replace_at = Instant::now() + self.pause_after(&error);
                live
            }
        }
    }

    /// Unwatches all contacts of the lane, and has an event published about each.
    fn lose(&self, reason: &str) {
        let watcher = &self.watcher;
        let contacts = watcher.watches.of(self.number);
        contacts.iter().for_each(|contact| contact.unwatched());
        watcher.status.fails(self.number, reason, watcher.clock.now());
        watcher.lost(self.number, &contacts, reason);
    }

    async fn fail(&mut self, error: &Error) {
        self.report(error);
        let pause = self.pause_after(error);
        self.watcher.wait(pause).await;
    }

    fn report(&self, error: &Error) {
        let watcher = &self.watcher;
        if watcher.status.fails(self.number, &error.to_string(), watcher.clock.now()) {
            let cause = std::error::Error::source(error).map(tracing::field::display);
            tracing::warn!(tenant = %watcher.tenant, lane = self.number, %error, cause, "cannot watch contacts, trying again");
        }
    }

    fn works(&self) {
        let watcher = &self.watcher;
        if let Some(since) = watcher.status.works(self.number) {
            tracing::info!(tenant = %watcher.tenant, lane = self.number, %since, "changes of contacts are received again");
        }
    }

    fn pause_after(&mut self, error: &Error) -> Duration {
        let pause = self.backoff.next_delay();
        error.retry_after().map_or(pause, |asked| asked.max(pause))
    }
}

/// Stores that the changes of these contacts are received from now on.
fn confirm(watcher: &Watcher, contacts: &[Arc<Contact>]) {
    let now = watcher.clock.now();
    contacts.iter().for_each(|contact| contact.watched_from(now));
}

/// Returns when a channel is to be replaced.
fn replace_at(channel: &Channel, watcher: &Watcher) -> Instant {
    let life = channel.expires.since(watcher.clock.now()).min(DAY);
    let by_life = Instant::now() + life - AHEAD.min(life / 4);
    // A token ends later than this process began, so the subtraction does not fail.
    by_life.min(channel.token_ends.checked_sub(AHEAD_OF_TOKEN).unwrap_or(by_life))
}
