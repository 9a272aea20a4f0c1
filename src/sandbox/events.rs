//! Events: what a change posts to the webhook, and how it is retried.
//!
//! The order of steps: a write first takes room for its events (back-pressure: it waits for room,
//! and is refused with 503 when there is none in time), then makes its change, then hands the events
//! over, without a wait in between; so no change loses its event because its client went away.
//! Each event is a tracked task of its own: it waits `event_lag`, posts, and retries what may pass
//! (no answer in 5 s, 401, 407, 409, 429, 5xx) with exponential backoff and jitter, up to 24 hours
//! or 185 attempts, as EventBridge's API destinations do. Order is not promised, as it is not there.
//!
//! On shutdown undelivered events are dropped, with one log line that counts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Timestamp;
use crate::shutdown::Shutdown;

use super::Webhook;
use super::behaviour::Behaviour;
use super::errors::Refusal;
use super::oauth::{ORGANISATION, Role};
use super::shapes;
use super::world::View;

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
    copies: usize,
}

struct Sender {
    http: reqwest::Client,
    webhook: Webhook,
    room: Arc<Semaphore>,
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
        let mut slots = Slots { events: self, room: None, lag: behaviour.event_lag, copies };
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
    /// Announces the changes: each is posted as often as the behaviour says.
    pub(super) fn send(self, changes: impl IntoIterator<Item = Change>) {
        let Some((sender, mut room)) = self.room else { return };
        let now = self.events.clock.now();
        for change in changes {
            let body = Bytes::from(change.envelope(now).to_string());
            for _ in 0..self.copies {
                // There is room for each change and copy; without it the event would go unbounded.
                let Some(slot) = room.split(1) else { return };
                let (sender, body, shutdown) = (Arc::clone(&sender), body.clone(), self.events.shutdown.clone());
                self.events.shutdown.spawn(async move {
                    tokio::select! {
                        biased;
                        () = shutdown.requested() => { sender.dropped.fetch_add(1, Ordering::Relaxed); }
                        () = sender.deliver(body, self.lag) => {}
                    }
                    drop(slot);
                });
            }
        }
    }
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
            in_flight: Semaphore::new(IN_FLIGHT),
            failing: AtomicBool::new(false),
            dropped: AtomicUsize::new(0),
        })
    }

    async fn deliver(&self, body: Bytes, lag: Duration) {
        sleep(lag).await;
        let mut pauses = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(250))
            .with_multiplier(2.0)
            .with_max_interval(MAX_PAUSE)
            .with_max_elapsed_time(Some(MAX_AGE))
            .build();
        for _ in 0..MAX_ATTEMPTS {
            match self.post(body.clone()).await {
                Ok(()) => {
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
                    let Some(pause) = pauses.next_backoff() else { break };
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

/// What is announced of one contact.
pub(super) struct Change {
    topic: String,
    template: &'static str,
    body: Value,
}

impl Change {
    /// A contact was created, changed or merged: the contact topic, with the whole contact.
    pub(super) fn of_contact(view: &View) -> Self {
        Self {
            topic: format!("v2.externalcontacts.contacts.{}", view.id),
            template: "v2.externalcontacts.contacts.{id}",
            body: shapes::topic(view),
        }
    }

    /// A contact was deleted: the audit topic.
    pub(super) fn of_deletion(view: &View, by: Role, at: Timestamp) -> Self {
        Self {
            topic: format!("v2.audits.entitytype.Contact.entityid.{}", view.id),
            template: "v2.audits.entitytype.{id}.entityid.{id}",
            body: json!({
                "id": Uuid::new_v4(), "userHomeOrgId": ORGANISATION, "username": { "id": "" },
                "clientId": { "id": by.id() }, "serviceName": "ExternalContacts", "eventTime": at.to_string(),
                "action": "Delete", "entityType": "Contact",
                "entity": { "id": view.id, "name": shapes::full_name(view) }, "propertyChanges": [],
            }),
        }
    }

    /// Wraps it as EventBridge does: `time` in whole seconds, `detail.timestamp` in milliseconds.
    fn envelope(&self, now: Timestamp) -> Value {
        let second = Timestamp::from_millis(now.as_millis().div_euclid(1_000) * 1_000).to_string();
        json!({
            "version": "0", "id": Uuid::new_v4(), "detail-type": self.template,
            "source": format!("aws.partner/genesys.com/cloud/{ORGANISATION}/sandbox"),
            "account": "123456789012", "time": second.replace(".000Z", "Z"), "region": "us-east-1", "resources": [],
            "detail": {
                "topicName": self.topic, "version": "2", "eventBody": self.body,
                "metadata": { "CorrelationId": Uuid::new_v4() }, "timestamp": now.to_string(),
            },
        })
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
