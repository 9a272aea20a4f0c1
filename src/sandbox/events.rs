//! Events: what a change posts to the webhook, and how it is retried.
//!
//! The order of steps: a write first takes room for its events (back-pressure: it waits for room,
//! and is refused with 503 when there is none in time), then makes its change, then hands the events
//! over, without a wait in between; so no change loses its event because its client went away.
//! Each event is a tracked task of its own: it waits `event_lag` and a random share of `event_jitter`,
//! posts, and retries what may pass (no answer in 5 s, 401, 407, 409, 429, 5xx) with exponential
//! backoff and jitter, up to 24 hours or 185 attempts, as EventBridge's API destinations do. Order is
//! not promised, as it is not there. `/sandbox/events` tells how many events came how far.
//!
//! On shutdown undelivered events are dropped, with one log line that counts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use http::{StatusCode, header};
use rand::RngExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::clock::SharedClock;
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::Webhook;
use super::announcement::{Announced, Change};
use super::behaviour::Behaviour;
use super::errors::Refusal;

/// How many events may be undelivered.
const ROOM: u32 = 10_000;
/// How many are posted at once.
const IN_FLIGHT: usize = 64;
/// How long a write waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// How long the webhook may take: EventBridge's limit for an API destination.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// EventBridge's default retry policy.
const MAX_ATTEMPTS: u32 = 185;
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// The longest pause between two attempts: so that both limits above are met at about the same time.
const MAX_PAUSE: Duration = Duration::from_secs(8 * 60);

/// Where changes are announced; without a webhook, nowhere.
pub(super) struct Events {
    sender: Option<Arc<Sender>>,
    clock: SharedClock,
    shutdown: Shutdown,
}

/// Room for the events of one change, which [`Slots::send`] consumes.
#[must_use = "room that is not used is given back"]
pub(super) struct Slots<'a> {
    events: &'a Events,
    room: Option<(Arc<Sender>, OwnedSemaphorePermit)>,
    lag: Duration,
    jitter: Duration,
    copies: usize,
}

/// How many events there were, each counted once whatever its copies, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Changes that were to be announced.
    pub(super) announced: usize,
    /// Those that the webhook took at least once.
    pub(super) acknowledged: usize,
    /// Posts, copies included, that are not delivered or given up yet.
    pub(super) waiting: usize,
}

struct Sender {
    http: reqwest::Client,
    webhook: Webhook,
    room: Arc<Semaphore>,
    announced: AtomicUsize,
    acknowledged: AtomicUsize,
    in_flight: Semaphore,
    /// The webhook did not take the last event that was tried.
    failing: AtomicBool,
    dropped: AtomicUsize,
}

enum Failure {
    /// Worth another attempt, not before this.
    Passing { after: Duration },
    /// The webhook will not take this event.
    Final { status: StatusCode },
}

impl Events {
    /// Makes the sender of events.
    ///
    /// # Errors
    ///
    /// When no HTTPS client can be made, for example because the system has no root certificates.
    pub(super) fn new(
        webhook: Option<Webhook>,
        clock: SharedClock,
        shutdown: Shutdown,
    ) -> Result<Self, reqwest::Error> {
        let sender = webhook.map(Sender::new).transpose()?.map(Arc::new);
        Ok(Self { sender, clock, shutdown })
    }

    /// Takes room for the events of one change that touches `contacts` contacts.
    pub(super) async fn room(&self, behaviour: &Behaviour, contacts: usize) -> Result<Slots<'_>, Refusal> {
        let copies = behaviour.event_duplicates + 1;
        let (lag, jitter) = (behaviour.event_lag, behaviour.event_jitter);
        let mut slots = Slots { events: self, room: None, lag, jitter, copies };
        if let Some(sender) = self.sender.as_ref().filter(|_| behaviour.events) {
            // At most 26 contacts and 101 copies: far below u32::MAX, and below ROOM.
            let wanted = Arc::clone(&sender.room).acquire_many_owned((contacts * copies) as u32);
            match timeout(ROOM_WAIT, wanted).await {
                Ok(Ok(permit)) => slots.room = Some((Arc::clone(sender), permit)),
                Ok(Err(_)) | Err(_) => {
                    return Err(Refusal::unavailable("Too many events wait for the webhook; nothing was changed."));
                }
            }
        }
        Ok(slots)
    }

    /// Tells how many events came how far.
    pub(super) fn tally(&self) -> Tally {
        self.sender.as_ref().map_or_else(Tally::default, |sender| Tally {
            announced: sender.announced.load(Ordering::Relaxed),
            acknowledged: sender.acknowledged.load(Ordering::Relaxed),
            waiting: (ROOM as usize).saturating_sub(sender.room.available_permits()),
        })
    }

    /// Waits until all events are delivered or given up; to be called when shutdown was requested
    /// and no request is under way any more.
    pub(super) async fn close(&self) {
        if let Some(sender) = &self.sender {
            // Each task gives its room back at once when it learns of the shutdown.
            let all = timeout(ROOM_WAIT, sender.room.acquire_many(ROOM)).await;
            let dropped = sender.dropped.load(Ordering::Relaxed);
            if dropped > 0 || all.is_err() {
                tracing::warn!(events = dropped, "sandbox dropped undelivered events at shutdown");
            }
        }
    }
}

impl Slots<'_> {
    /// Announces the changes: each is posted as often as the behaviour says. Returns their events' ids.
    pub(super) fn send(self, changes: impl IntoIterator<Item = Change>) -> Announced {
        let mut announced = Announced::default();
        let Some((sender, mut room)) = self.room else { return announced };
        let now = self.events.clock.now();
        for change in changes {
            let body = Bytes::from(change.envelope(now).to_string());
            let taken = Arc::new(AtomicBool::new(false));
            sender.announced.fetch_add(1, Ordering::Relaxed);
            announced.0.push(change.id);
            for _ in 0..self.copies {
                // There is room for each change and copy; without it the event would go unbounded.
                let Some(slot) = room.split(1) else { return announced };
                let (sender, body, taken) = (Arc::clone(&sender), body.clone(), Arc::clone(&taken));
                let (shutdown, lag) = (self.events.shutdown.clone(), self.lag + share_of(self.jitter));
                self.events.shutdown.spawn(async move {
                    tokio::select! {
                        biased;
                        () = shutdown.requested() => { sender.dropped.fetch_add(1, Ordering::Relaxed); }
                        () = sender.deliver(body, lag, &taken) => {}
                    }
                    drop(slot);
                });
            }
        }
        announced
    }
}

/// Returns a random share of a duration.
fn share_of(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..=1.0))
}

impl Sender {
    fn new(webhook: Webhook) -> Result<Self, reqwest::Error> {
        // A provider that is there already serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http =
            reqwest::Client::builder().timeout(ANSWER_WAIT).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if webhook.url.scheme() == "http" {
            // A plain link needs no root certificates, which not every machine has.
            http = http.tls_certs_only([]);
        }
        Ok(Self {
            http: http.build()?,
            webhook,
            room: Arc::new(Semaphore::new(ROOM as usize)),
            announced: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            in_flight: Semaphore::new(IN_FLIGHT),
            failing: AtomicBool::new(false),
            dropped: AtomicUsize::new(0),
        })
    }

    /// Posts an event until it is taken or given up; `taken` is shared by its copies.
    async fn deliver(&self, body: Bytes, lag: Duration, taken: &AtomicBool) {
        sleep(lag).await;
        let mut backoff = Backoff::new(Duration::from_millis(250), MAX_PAUSE);
        let give_up = Instant::now() + MAX_AGE;
        for _ in 0..MAX_ATTEMPTS {
            match self.post(body.clone()).await {
                Ok(()) => {
                    if !taken.swap(true, Ordering::Relaxed) {
                        self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    if self.failing.swap(false, Ordering::Relaxed) {
                        tracing::info!("webhook takes the sandbox's events again");
                    }
                    return;
                }
                Err(Failure::Final { status }) => {
                    tracing::warn!(status = status.as_u16(), "webhook refused an event of the sandbox for good");
                    return;
                }
                Err(Failure::Passing { after }) => {
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!("webhook takes no events of the sandbox, they are retried");
                    }
                    let pause = backoff.next_delay();
                    if Instant::now() + pause > give_up {
                        break;
                    }
                    sleep(pause.max(after)).await;
                }
            }
        }
        tracing::warn!("an event of the sandbox was given up, the webhook took it in no attempt");
    }

    async fn post(&self, body: Bytes) -> Result<(), Failure> {
        // The semaphore is never closed, so this holds a permit.
        let _permit = self.in_flight.acquire().await;
        let request = self
            .http
            .post(self.webhook.url.clone())
            .header("X-API-Key", self.webhook.key.expose())
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .body(body);
        let Ok(answer) = request.send().await else {
            return Err(Failure::Passing { after: Duration::ZERO });
        };
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else if matches!(status.as_u16(), 401 | 407 | 409 | 429) || status.is_server_error() {
            let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Err(Failure::Passing { after: Duration::from_secs(seconds.unwrap_or(0)).min(MAX_PAUSE) })
        } else {
            Err(Failure::Final { status })
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::SystemClock;
    use crate::domain::Secret;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_room_and_is_refused_when_none_comes() {
        let (_controller, shutdown) = Shutdown::new();
        let webhook = Webhook { url: "http://127.0.0.1:9/".parse().unwrap(), key: Secret::new("key") };
        let events = Events::new(Some(webhook), SystemClock::shared(), shutdown).unwrap();
        let behaviour = Behaviour::new(Duration::ZERO);
        let room = events.room(&behaviour, ROOM as usize).await.ok().unwrap();
        assert!(events.room(&behaviour, 1).await.is_err());

        let (given, ()) = tokio::join!(events.room(&behaviour, 1), async {
            sleep(ROOM_WAIT / 2).await;
            drop(room);
        });
        assert!(given.is_ok());
    }
}
