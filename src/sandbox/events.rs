//! Events: the posts to the webhook after each change, and their retries.
//!
//! The order of steps: a write first reserves capacity for its events (if there is none it waits, and after some time is
//! refused with 503), then changes the contact, then hands over the events without waiting. So a change never loses its
//! event because its client disconnected.
//!
//! Each event is a tracked task: it waits `event_lag` and a random part of `event_jitter`, posts, and retries temporary
//! failures (no answer in 5 s, 401, 407, 409, 429, 5xx) with exponential backoff and jitter, for up to 24 hours or 185
//! attempts, like the API destinations of EventBridge. Like there, order is not guaranteed. `/sandbox/events` reports the
//! number of events by state.
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
use super::announcement::{CausedEvents, ContactEvent};
use super::behaviour::Behaviour;
use super::channels::Channels;
use super::errors::ApiError;

/// The limit of undelivered events.
const CAPACITY: u32 = 10_000;
/// The limit of concurrent posts.
const IN_FLIGHT: usize = 64;
/// How long a write waits for capacity.
const CAPACITY_WAIT: Duration = Duration::from_secs(5);
/// The timeout of one post: the limit of EventBridge for an API destination.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// The default retry policy of EventBridge.
const MAX_ATTEMPTS: u32 = 185;
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// The longest pause between two attempts: with it an event reaches both limits above at about the same time.
const MAX_PAUSE: Duration = Duration::from_secs(8 * 60);

/// Posts the events of changes to the webhook, if there is one, and sends them to sockets.
pub(super) struct EventSender {
    sender: Option<Arc<WebhookSender>>,
    channels: Arc<Channels>,
    clock: SharedClock,
    shutdown: Shutdown,
}

/// Reserved capacity for the events of one change; [`EventPermit::send`] consumes it.
#[must_use = "dropping the permit returns its capacity"]
pub(super) struct EventPermit<'a> {
    events: &'a EventSender,
    reserved: Option<(Arc<WebhookSender>, OwnedSemaphorePermit)>,
    lag: Duration,
    jitter: Duration,
    copies: usize,
    /// Whether sockets get them.
    notifies: bool,
}

/// The number of events by state; copies of an event count once, except in `waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EventCounts {
    /// Events of changes.
    pub(super) announced: usize,
    /// Events that the webhook accepted at least once.
    pub(super) acknowledged: usize,
    /// Pending posts, copies included.
    pub(super) waiting: usize,
}

struct WebhookSender {
    http: reqwest::Client,
    webhook: Webhook,
    capacity: Arc<Semaphore>,
    announced: AtomicUsize,
    acknowledged: AtomicUsize,
    in_flight: Semaphore,
    /// The webhook rejected the last attempt.
    failing: AtomicBool,
    dropped: AtomicUsize,
}

enum WebhookPostError {
    /// A temporary failure; the next attempt must wait at least `after`.
    Temporary { after: Duration },
    /// The webhook rejects this event permanently.
    Permanent { status: StatusCode },
}

impl EventSender {
    /// Creates the sender of events.
    ///
    /// # Errors
    ///
    /// No HTTPS client can be created, for example because the system has no root certificates.
    pub(super) fn new(
        webhook: Option<Webhook>,
        channels: Arc<Channels>,
        clock: SharedClock,
        shutdown: Shutdown,
    ) -> Result<Self, reqwest::Error> {
        let sender = webhook.map(WebhookSender::new).transpose()?.map(Arc::new);
        Ok(Self { sender, channels, clock, shutdown })
    }

    /// Reserves capacity for the events of a change of `contacts` contacts.
    pub(super) async fn reserve(&self, behaviour: &Behaviour, contacts: usize) -> Result<EventPermit<'_>, ApiError> {
        let copies = behaviour.event_duplicates + 1;
        let (lag, jitter) = (behaviour.event_lag, behaviour.event_jitter);
        let notifies = behaviour.notifications;
        let mut permit = EventPermit { events: self, reserved: None, lag, jitter, copies, notifies };
        if let Some(sender) = self.sender.as_ref().filter(|_| behaviour.events) {
            // At most 26 contacts and 101 copies: far below u32::MAX, and below CAPACITY.
            let wanted = Arc::clone(&sender.capacity).acquire_many_owned((contacts * copies) as u32);
            match timeout(CAPACITY_WAIT, wanted).await {
                Ok(Ok(reserved)) => permit.reserved = Some((Arc::clone(sender), reserved)),
                Ok(Err(_)) | Err(_) => {
                    return Err(ApiError::unavailable(
                        "Too many events wait for the webhook; the change was rejected.",
                    ));
                }
            }
        }
        Ok(permit)
    }

    /// Returns the number of events by state.
    pub(super) fn counts(&self) -> EventCounts {
        self.sender.as_ref().map_or_else(EventCounts::default, |sender| EventCounts {
            announced: sender.announced.load(Ordering::Relaxed),
            acknowledged: sender.acknowledged.load(Ordering::Relaxed),
            waiting: (CAPACITY as usize).saturating_sub(sender.capacity.available_permits()),
        })
    }

    /// Waits until all event tasks have ended. The caller must have requested the shutdown and finished all requests.
    pub(super) async fn close(&self) {
        if let Some(sender) = &self.sender {
            // Each task returns its capacity as soon as the shutdown is requested.
            let all = timeout(CAPACITY_WAIT, sender.capacity.acquire_many(CAPACITY)).await;
            let dropped = sender.dropped.load(Ordering::Relaxed);
            if dropped > 0 || all.is_err() {
                tracing::warn!(events = dropped, "sandbox dropped undelivered events at shutdown");
            }
        }
    }
}

impl EventPermit<'_> {
    /// Posts the events, each with the configured number of copies. Returns the event ids.
    pub(super) fn send(self, changes: impl IntoIterator<Item = ContactEvent>) -> CausedEvents {
        let mut announced = CausedEvents::default();
        let now = self.events.clock.now();
        let mut reserved = self.reserved;
        for change in changes {
            if self.notifies {
                let (topic, notification) = change.notification();
                self.events.channels.announce(topic, notification, self.lag);
            }
            let Some((sender, reserved)) = &mut reserved else { continue };
            let body = Bytes::from(change.envelope(now).to_string());
            let accepted = Arc::new(AtomicBool::new(false));
            sender.announced.fetch_add(1, Ordering::Relaxed);
            announced.0.push(change.id);
            for _ in 0..self.copies {
                // The permit covers each event and copy; a post without capacity would be unbounded.
                let Some(slot) = reserved.split(1) else { return announced };
                let (sender, body, accepted) = (Arc::clone(sender), body.clone(), Arc::clone(&accepted));
                let (shutdown, lag) = (self.events.shutdown.clone(), self.lag + random_part(self.jitter));
                self.events.shutdown.spawn(async move {
                    tokio::select! {
                        biased;
                        () = shutdown.requested() => { sender.dropped.fetch_add(1, Ordering::Relaxed); }
                        () = sender.deliver(body, lag, &accepted) => {}
                    }
                    drop(slot);
                });
            }
        }
        announced
    }
}

/// Returns a random part of a duration.
fn random_part(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..=1.0))
}

impl WebhookSender {
    fn new(webhook: Webhook) -> Result<Self, reqwest::Error> {
        // An error means that the process has a provider already, which works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http =
            reqwest::Client::builder().timeout(ANSWER_WAIT).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if webhook.url.scheme() == "http" {
            // Plain HTTP needs no root certificates, which not every machine has.
            http = http.tls_certs_only([]);
        }
        Ok(Self {
            http: http.build()?,
            webhook,
            capacity: Arc::new(Semaphore::new(CAPACITY as usize)),
            announced: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            in_flight: Semaphore::new(IN_FLIGHT),
            failing: AtomicBool::new(false),
            dropped: AtomicUsize::new(0),
        })
    }

    /// Posts an event until it is accepted or given up; the copies of an event share `accepted`.
    async fn deliver(&self, body: Bytes, lag: Duration, accepted: &AtomicBool) {
        sleep(lag).await;
        let mut backoff = Backoff::new(Duration::from_millis(250), MAX_PAUSE);
        let give_up = Instant::now() + MAX_AGE;
        for _ in 0..MAX_ATTEMPTS {
            match self.post(body.clone()).await {
                Ok(()) => {
                    if !accepted.swap(true, Ordering::Relaxed) {
                        self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    if self.failing.swap(false, Ordering::Relaxed) {
                        tracing::info!("the webhook accepts events of the sandbox again");
                    }
                    return;
                }
                Err(WebhookPostError::Permanent { status }) => {
                    tracing::warn!(
                        status = status.as_u16(),
                        "the webhook rejected an event of the sandbox permanently"
                    );
                    return;
                }
                Err(WebhookPostError::Temporary { after }) => {
                    if !self.failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!("the webhook does not accept events of the sandbox, retrying");
                    }
                    let pause = backoff.next_delay();
                    if Instant::now() + pause > give_up {
                        break;
                    }
                    sleep(pause.max(after)).await;
                }
            }
        }
        tracing::warn!("giving up an event of the sandbox: every attempt failed");
    }

    async fn post(&self, body: Bytes) -> Result<(), WebhookPostError> {
        // The semaphore is never closed, so this holds a permit.
        let _permit = self.in_flight.acquire().await;
        let request = self
            .http
            .post(self.webhook.url.clone())
            .header("X-API-Key", self.webhook.key.expose())
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .body(body);
        let Ok(answer) = request.send().await else {
            return Err(WebhookPostError::Temporary { after: Duration::ZERO });
        };
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else if matches!(status.as_u16(), 401 | 407 | 409 | 429) || status.is_server_error() {
            let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Err(WebhookPostError::Temporary { after: Duration::from_secs(seconds.unwrap_or(0)).min(MAX_PAUSE) })
        } else {
            Err(WebhookPostError::Permanent { status })
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::SystemClock;
    use crate::domain::Secret;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_capacity_and_is_refused_without_it() {
        let (_controller, shutdown) = Shutdown::new();
        let webhook = Webhook { url: "http://127.0.0.1:9/".parse().unwrap(), key: Secret::new("key") };
        let channels = Arc::new(Channels::new(SystemClock::shared(), shutdown.clone()));
        let events = EventSender::new(Some(webhook), channels, SystemClock::shared(), shutdown).unwrap();
        let behaviour = Behaviour::new(Duration::ZERO);
        let permit = events.reserve(&behaviour, CAPACITY as usize).await.ok().unwrap();
        assert!(events.reserve(&behaviour, 1).await.is_err());

        let (reserved, ()) = tokio::join!(events.reserve(&behaviour, 1), async {
            sleep(CAPACITY_WAIT / 2).await;
            drop(permit);
        });
        assert!(reserved.is_ok());
    }
}
