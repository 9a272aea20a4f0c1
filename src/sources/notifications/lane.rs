//! A lane: one channel of notifications, its socket, and the task that keeps both.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::domain::{CustomerId, Timestamp};
use crate::supervise::Backoff;
use crate::upstream::Error;
use crate::upstream::notifications::Channel;

use super::Watcher;
use super::live::{Live, replace_at};
use super::reader::{End, Reader};
use super::watches::Contact;

/// How long contacts are gathered for one request.
const GATHER: Duration = Duration::from_millis(200);

/// The shortest time between two replacements.
const SHORTEST: Duration = Duration::from_secs(1);

/// One channel of a tenant.
#[derive(Debug)]
pub(super) struct Lane {
    watcher: Arc<Watcher>,
    number: usize,
    /// A channel without a socket, which can be used again.
    idle: Option<Channel>,
    /// Since when a process before this one may have missed changes.
    missed_before: Option<Timestamp>,
    backoff: Backoff,
}

impl Lane {
    /// Creates a lane that has no channel.
    pub(super) fn new(watcher: Arc<Watcher>, number: usize, missed_before: Option<Timestamp>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(60));
        Self { watcher, number, idle: None, missed_before, backoff }
    }

    /// Keeps a channel from the first contact on, until shutdown.
    pub(super) async fn run(mut self) {
        let shutdown = self.watcher.shutdown.clone();
        tokio::select! {
            // At a shutdown sockets end too, which is no gap.
            biased;
            () = shutdown.requested() => {}
            () = self.work() => {}
        }
    }

    /// Keeps a channel from the first contact on; does not return.
    async fn work(&mut self) {
        let watcher = Arc::clone(&self.watcher);
        watcher.watches.changed(self.number).await;
        sleep(GATHER).await;
        loop {
            match self.open().await {
                Ok(live) => {
                    let since = Instant::now();
                    self.works();
                    let end = self.keep(live).await;
                    self.backoff.reset_after(since.elapsed());
                    watcher.lose(self.number, end);
                    sleep(self.backoff.next_delay()).await;
                }
                Err(error) => {
                    self.report(&error);
                    sleep(self.pause_after(&error)).await;
                }
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
        let ended = live.reader.ended();
        let subscribed = tokio::select! {
            biased;
            _ = ended => Err(Error::Unreachable(None)),
            subscribed = self.subscribe(&mut live, true) => subscribed,
        };
        if let Err(error) = subscribed {
            self.idle = (!matches!(error, Error::Unusable { .. })).then_some(live.channel);
            return Err(error);
        }
        Ok(live)
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

    /// Keeps a channel subscribed and replaces it in time; returns how its socket ended.
    async fn keep(&mut self, mut live: Live) -> End {
        let watcher = Arc::clone(&self.watcher);
        loop {
            let retry = live.retry_at.unwrap_or(live.replace_at);
            let ended = live.ended(&watcher);
            // Whatever takes long looks at the end too.
            let step = tokio::select! {
                biased;
                end = ended => Err(end),
                () = live.reader.closing.notified() => self.replace(&mut live).await,
                () = sleep_until(live.replace_at) => self.replace(&mut live).await,
                () = watcher.watches.changed(self.number) => self.update(&mut live).await,
                () = sleep_until(retry), if live.retry_at.is_some() => self.update(&mut live).await,
            };
            if let Err(end) = step {
                self.idle = Some(live.channel);
                return end;
            }
        }
    }

    /// Subscribes new contacts, or tries it again later. Fails if the channel is to be given up.
    async fn update(&mut self, live: &mut Live) -> Result<(), End> {
        let ended = live.ended(&self.watcher);
        let subscribed = tokio::select! {
            biased;
            end = ended => return Err(end),
            subscribed = async {
                sleep(GATHER).await;
                self.subscribe(live, false).await
            } => subscribed,
        };
        match subscribed {
            Ok(()) => {
                live.retry_at = None;
                self.works();
            }
            Err(error @ Error::Unusable { .. }) => {
                self.report(&error);
                // It is not opened again.
                live.channel.expires = self.watcher.clock.now();
                return Err(End { reason: "genesys refuses the channel", heard: live.channel.expires });
            }
            Err(error) => {
                self.report(&error);
                live.retry_at = Some(Instant::now() + self.pause_after(&error));
            }
        }
        Ok(())
    }

    /// Opens another channel and lets it take over. If that fails, the present one stays and another attempt follows. Fails if
    /// the present socket has ended and there is no other.
    async fn replace(&mut self, live: &mut Live) -> Result<(), End> {
        let watcher = Arc::clone(&self.watcher);
        let (number, ended) = (self.number, live.ended(&watcher));
        tokio::pin!(ended);
        let _turn = tokio::select! {
            biased;
            end = &mut ended => return Err(end),
            turn = watcher.replacing.lock() => turn,
        };
        let mut lost = None;
        let opened = {
            let opening = self.open();
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    biased;
                    // What is missed is not trusted while the other channel is opened.
                    end = &mut ended, if lost.is_none() => {
                        watcher.lose(number, end);
                        lost = Some(end);
                    }
                    opened = &mut opening => break opened,
                }
            }
        };
        match opened {
            Ok(next) => {
                let old = std::mem::replace(live, next);
                self.take_over(old, live, lost.is_some());
                Ok(())
            }
            Err(error) => {
                live.replace_at = Instant::now() + self.pause_after(&error);
                let Some(end) = lost else {
                    let (tenant, lane) = (&watcher.tenant, self.number);
                    tracing::info!(%tenant, lane, %error, "a channel of notifications cannot be replaced yet, trying again");
                    return Ok(());
                };
                self.report(&error);
                Err(end)
            }
        }
    }

    /// Ends the reader of a channel whose successor is subscribed.
    fn take_over(&mut self, old: Live, next: &Live, is_lost: bool) {
        let watcher = Arc::clone(&self.watcher);
        if !is_lost && let Some(end) = old.ended(&watcher).now_or_never() {
            // Between its end and the subscription of the next one, changes were missed.
            watcher.lose(self.number, end);
            let mut contacts = watcher.watches.of(self.number);
            // One that was added meanwhile is subscribed next.
            contacts.retain(|contact| next.subscribed.contains(&contact.customer));
            confirm(&watcher, &contacts);
        }
        self.works();
        old.reader.replaced();
        tracing::debug!(tenant = %watcher.tenant, lane = self.number, "a channel of notifications was replaced");
    }

    fn report(&self, error: &Error) {
        let watcher = &self.watcher;
        if watcher.status.fails(self.number, &error.to_string(), watcher.clock.now()) {
            let cause = std::error::Error::source(error).map(tracing::field::display);
            tracing::warn!(tenant = %watcher.tenant, lane = self.number, %error, cause, "cannot watch contacts, trying again");
        }
    }

    fn works(&mut self) {
        let watcher = &self.watcher;
        if let Some(since) = self.missed_before.take() {
            watcher.gaps.opened(self.number, since);
        }
        watcher.gaps.closed(self.number);
        if let Some(since) = watcher.status.works(self.number) {
            tracing::info!(tenant = %watcher.tenant, lane = self.number, %since, "changes of contacts are received again");
        }
    }

    fn pause_after(&mut self, error: &Error) -> Duration {
        error.retry_after().unwrap_or_default().max(self.backoff.next_delay())
    }
}

/// Stores that the changes of these contacts are received from now on.
fn confirm(watcher: &Watcher, contacts: &[Arc<Contact>]) {
    let now = watcher.clock.now();
    contacts.iter().for_each(|contact| contact.watched_from(now));
}
