//! Link: one connection to the broker, made again for as long as the queue is open.
//!
//! # Protocol
//!
//! 1. Connect, declare the topology, make what lives on the connection ([`Prepare`]); then the link is up.
//! 2. Watch it: an error of the connection, a broker that is silent for two heartbeats, or whoever finds
//!    that something on it is broken ([`Live::give_up`]) ends it. Everything on it ends with it.
//! 3. After a pause that doubles from 100 ms to 5 s, and begins anew after a connection that held, begin
//!    at 1.
//!
//! The library's own recovery is not used: it gives up, and it does not know what must be replayed.
//!
//! # What a failure leaves behind
//!
//! While the link is down, whoever needs it is told why at once. What the broker refuses for good
//! ([`Error::Misconfigured`]) ends the link if it was never up; later it is tried again as everything else,
//! because an operator may be at work. Failures are logged here, once for each new reason.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use futures_util::StreamExt;
use lapin::Event;
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::queue::Error;
use crate::shutdown::Shutdown;

use super::broker::{Broker, Connected};

/// The longest that preparing a new connection may take.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a connection is looked at, besides being listened to.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A connection that held for so long was a good one.
const HELD: Duration = Duration::from_secs(5);

/// Makes what lives on a connection.
#[async_trait]
pub(super) trait Prepare: Send + Sync + 'static {
    /// What is made.
    type Made: Send + Sync + 'static;

    /// What the connection is for, for the log.
    const PURPOSE: &'static str;

    /// Makes it, on a connection that is new.
    async fn prepare(&self, live: &Live) -> Result<Self::Made, Error>;
}

/// A connection that is up. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Live {
    connected: Arc<Connected>,
    ended: CancellationToken,
    blocked: watch::Receiver<Option<String>>,
}

impl Live {
    /// Returns the connection.
    pub(super) fn connection(&self) -> &lapin::Connection {
        &self.connected.connection
    }

    /// Returns the broker's major version, if it told.
    pub(super) fn major(&self) -> Option<u32> {
        self.connected.major
    }

    /// Waits until the connection is given up. Cancel-safe.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Gives the connection up, so that everything on it is made again.
    pub(super) fn give_up(&self) {
        self.ended.cancel();
    }

    /// Answers if the broker takes publishes on this connection.
    pub(super) fn takes_publishes(&self) -> Result<(), Error> {
        self.blocked.borrow().as_deref().map_or(Ok(()), |reason| Err(blocked(reason)))
    }

    /// Waits until the broker takes no publishes, and returns why. Cancel-safe.
    pub(super) async fn until_blocked(&self) -> String {
        let mut blocked = self.blocked.clone();
        match blocked.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => reason.unwrap_or_default(),
            // Nobody watches any more: the connection has ended, which others see.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Says that the broker takes no publishes.
pub(super) fn blocked(reason: &str) -> Error {
    Error::Unavailable { reason: format!("the broker takes no publishes: {reason}") }
}

/// A link that is up, and what was made on it.
#[derive(Debug)]
pub(super) struct Up<M> {
    /// The connection.
    pub(super) live: Live,
    /// What lives on it.
    pub(super) made: M,
}

/// How a link is.
#[derive(Debug)]
enum State<M> {
    Down(String),
    Up(Arc<Up<M>>),
    Refused(Error),
    Closed,
}

/// One supervised connection.
#[derive(Debug)]
pub(super) struct Link<M> {
    state: watch::Receiver<State<M>>,
    closing: CancellationToken,
}

impl<M: Send + Sync + 'static> Link<M> {
    /// Starts supervising; `shutdown` tracks the task.
    pub(super) fn start<P: Prepare<Made = M>>(broker: Arc<Broker>, prepare: P, shutdown: &Shutdown) -> Self {
        let (shown, state) = watch::channel(State::Down("not connected yet".to_owned()));
        let closing = CancellationToken::new();
        let supervisor = Supervisor { broker, prepare, shown, closing: closing.clone(), shutdown: shutdown.clone() };
        shutdown.spawn(supervisor.run());
        Self { state, closing }
    }

    /// Returns the link's connection, waiting for one until `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] with why there is none; [`Error::Misconfigured`] when there never will be.
    pub(super) async fn up(&self, deadline: Instant) -> Result<Arc<Up<M>>, Error> {
        if let State::Up(up) = &*self.state.borrow() {
            return Ok(Arc::clone(up));
        }
        let mut state = self.state.clone();
        let settled = |state: &State<M>| !matches!(state, State::Down(_));
        // Where time is up the last state says why.
        let _ = timeout_at(deadline, state.wait_for(settled)).await;
        self.now()
    }

    /// Returns the link's connection, however long that takes.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] or [`Error::Closed`]: there will be none.
    pub(super) async fn up_at_last(&self) -> Result<Arc<Up<M>>, Error> {
        let mut state = self.state.clone();
        let settled = |state: &State<M>| !matches!(state, State::Down(_));
        if state.wait_for(settled).await.is_err() {
            return Err(Error::Closed);
        }
        self.now()
    }

    /// Returns the link's connection, if it has one now.
    ///
    /// # Errors
    ///
    /// As of [`Link::up`].
    pub(super) fn now(&self) -> Result<Arc<Up<M>>, Error> {
        match &*self.state.borrow() {
            State::Up(up) => Ok(Arc::clone(up)),
            State::Down(reason) => Err(Error::Unavailable { reason: reason.clone() }),
            State::Refused(error) => Err(error.clone()),
            State::Closed => Err(Error::Closed),
        }
    }

    /// Asks the link to end; [`Link::closed`] tells when it has.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until the link has ended.
    pub(super) async fn closed(&self) {
        let over = |state: &State<M>| matches!(state, State::Closed | State::Refused(_));
        // Nobody is there to say more: it has ended.
        let _ = self.state.clone().wait_for(over).await;
    }
}

/// Keeps one link up.
struct Supervisor<P: Prepare> {
    broker: Arc<Broker>,
    prepare: P,
    shown: watch::Sender<State<P::Made>>,
    closing: CancellationToken,
    shutdown: Shutdown,
}

impl<P: Prepare> Supervisor<P> {
    async fn run(self) {
        let mut pauses = pauses();
        let (mut was_up, mut told) = (false, String::new());
        while !self.is_closing() {
            let opened = tokio::select! {
                () = self.asked_to_close() => break,
                opened = self.open() => opened,
            };
            let reason = match opened {
                Ok((up, blocked)) => {
                    let since = Instant::now();
                    was_up = true;
                    told.clear();
                    let reason = self.hold(up, &blocked).await;
                    if since.elapsed() >= HELD {
                        pauses.reset();
                    }
                    reason
                }
                Err(error @ Error::Misconfigured { .. }) if !was_up => {
                    self.shown.send_replace(State::Refused(error));
                    return;
                }
                Err(error) => Some(error.to_string()),
            };
            let Some(reason) = reason else { break };
            if reason != told {
                tracing::warn!(purpose = P::PURPOSE, reason, "the link to the broker is down, trying again");
                told.clone_from(&reason);
            }
            self.shown.send_replace(State::Down(reason));
            let pause = pauses.next_backoff().unwrap_or(pauses.max_interval);
            // Either way it is time to go on.
            let _ = timeout(pause, self.asked_to_close()).await;
        }
        self.shown.send_replace(State::Closed);
    }

    async fn open(&self) -> Result<(Up<P::Made>, watch::Sender<Option<String>>), Error> {
        let connected = Arc::new(self.broker.connect().await?);
        let (shown, blocked) = watch::channel(None);
        let live = Live { connected, ended: CancellationToken::new(), blocked };
        let prepared = timeout(PREPARE_TIMEOUT, self.prepare.prepare(&live)).await;
        let made = prepared.unwrap_or_else(|_elapsed| {
            let reason = format!("the broker did not answer within {PREPARE_TIMEOUT:?}");
            Err(Error::Unavailable { reason })
        });
        match made {
            Ok(made) => Ok((Up { live, made }, shown)),
            Err(error) => {
                live.give_up();
                live.connected.close().await;
                Err(error)
            }
        }
    }

    /// Shows that the link is up until it is not, and returns why; `None` when it was asked to close.
    async fn hold(&self, up: Up<P::Made>, blocked: &watch::Sender<Option<String>>) -> Option<String> {
        let live = up.live.clone();
        tracing::info!(purpose = P::PURPOSE, broker = live.connected.address, "the link to the broker is up");
        self.shown.send_replace(State::Up(Arc::new(up)));
        let reason = tokio::select! {
            () = self.asked_to_close() => None,
            reason = watch_over(&live, blocked) => Some(reason),
        };
        if let Some(reason) = &reason {
            self.shown.send_replace(State::Down(reason.clone()));
        }
        live.give_up();
        live.connected.close().await;
        reason
    }

    fn is_closing(&self) -> bool {
        self.closing.is_cancelled() || self.shutdown.is_requested()
    }

    async fn asked_to_close(&self) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = self.shutdown.requested() => {}
        }
    }
}

/// Returns why a connection is over, once it is.
async fn watch_over(live: &Live, blocked: &watch::Sender<Option<String>>) -> String {
    let mut events = std::pin::pin!(live.connection().events_listener());
    let mut looks = interval(LOOK_EVERY);
    let mut last = None;
    loop {
        tokio::select! {
            () = live.ended() => return "something on the connection failed".to_owned(),
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "the broker takes no publishes");
                    blocked.send_replace(Some(reason));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker takes publishes again");
                    blocked.send_replace(None);
                }
                Some(Event::Error(error)) => last = Some(error.to_string()),
                Some(_) => {}
                None => return last.unwrap_or_else(|| "the connection ended".to_owned()),
            },
            _ = looks.tick() => {}
        }
        // An error may be that of one channel, which is its owner's to handle.
        if !live.connection().status().connected() {
            return last.unwrap_or_else(|| "the connection ended".to_owned());
        }
    }
}

/// Never gives up (the library's default would, after 15 minutes).
pub(super) fn pauses() -> ExponentialBackoff {
    ExponentialBackoff {
        initial_interval: Duration::from_millis(100),
        max_interval: Duration::from_secs(5),
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}
