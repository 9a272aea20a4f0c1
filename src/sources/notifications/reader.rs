//! The reader of one socket: hands what arrives to ingest, and finds out when nothing can arrive any more.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::domain::Timestamp;
use crate::ingest::IngestError;
use crate::supervise::Backoff;
use crate::upstream::notifications::{Socket, SocketEnd};

use super::Watcher;

/// How often the socket is asked for a message.
const PING_EVERY: Duration = Duration::from_secs(10);

/// After how long without a message the socket is given up. Genesys sends a heartbeat every 30 s, and answers a ping.
pub(super) const SILENCE: Duration = Duration::from_secs(35);

/// How long a socket that was replaced is still read: what was sent to it alone may be on the way.
const LINGER: Duration = Duration::from_secs(2);

/// A reader of a socket. Dropping it ends its task, and with it the socket.
#[derive(Debug)]
pub(super) struct Reader {
    /// `None` when another socket has taken over: then the task ends by itself.
    task: Option<AbortHandle>,
    end: watch::Receiver<Option<End>>,
    opened: Timestamp,
    /// Genesys is about to close the socket.
    pub(super) closing: Arc<Notify>,
    replaced: CancellationToken,
}

/// How a socket ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) reason: &'static str,
    /// When it delivered something last: what happened later may be missed.
    pub(super) heard: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageHead {
    #[serde(default)]
    topic_name: String,
}

impl Reader {
    /// Starts to read.
    pub(super) fn start(socket: Socket, watcher: &Arc<Watcher>, lane: usize) -> Self {
        let (closing, replaced, opened) = (Arc::new(Notify::new()), CancellationToken::new(), watcher.clock.now());
        let (ended, end) = watch::channel(None);
        let reading = read(socket, Arc::clone(watcher), lane, Arc::clone(&closing), replaced.clone());
        let task = watcher.shutdown.spawn(async move {
            ended.send_replace(Some(reading.await));
        });
        Self { task: Some(task.abort_handle()), end, opened, closing, replaced }
    }

    /// Waits until the socket has ended. Cancel-safe.
    pub(super) fn ended(&self) -> impl Future<Output = End> + use<> {
        let (mut end, opened) = (self.end.clone(), self.opened);
        async move {
            let found = end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
            // Without an end its task panicked, which the panic hook has logged.
            found.unwrap_or(End { reason: "the reader of the socket failed", heard: opened })
        }
    }

    /// Lets the task end soon: another socket has taken over.
    pub(super) fn replaced(mut self) {
        self.task = None;
        self.replaced.cancel();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.iter().for_each(AbortHandle::abort);
    }
}

async fn read(
    mut socket: Socket,
    watcher: Arc<Watcher>,
    lane: usize,
    closing: Arc<Notify>,
    replaced: CancellationToken,
) -> End {
    let mut pings = interval(PING_EVERY);
    let (mut heard, mut heard_at, mut ends) = (Instant::now(), watcher.clock.now(), None);
    let reason = loop {
        let silent = heard + SILENCE;
        tokio::select! {
            () = watcher.shutdown.requested() => break "shutting down",
            () = replaced.cancelled(), if ends.is_none() => {
                ends = Some(Instant::now() + LINGER);
                if socket.ping().await.is_err() {
                    break "the connection of the socket broke";
                }
            }
            () = sleep_until(ends.unwrap_or(silent)), if ends.is_some() => {
                // Only an answer shows that the connection delivered until now.
                if ends.is_some_and(|ends| heard + LINGER < ends) {
                    break "nothing arrives on the socket";
                }
                socket.close().await;
                return End { reason: "replaced", heard: heard_at };
            }
            () = sleep_until(silent) => break "nothing arrives on the socket",
            _ = pings.tick() => if socket.ping().await.is_err() { break "the connection of the socket broke" },
            message = socket.next() => match message {
                Ok(text) => {
                    (heard, heard_at) = (Instant::now(), watcher.clock.now());
                    take(&watcher, lane, &text, &closing).await;
                }
                Err(SocketEnd::Closed) => break "genesys closed the socket",
                Err(SocketEnd::Broken) => break "the connection of the socket broke",
            },
        }
    };
    if replaced.is_cancelled() && !watcher.shutdown.is_requested() {
        // What was on the way is lost, and its lane does not look at this socket any more.
        watcher.lost(lane, &watcher.watches.of(lane), reason);
        watcher.gaps.due(heard_at);
    }
    End { reason, heard: heard_at }
}

/// Hands a message to ingest, until it is durable. What Genesys sends meanwhile waits in the connection.
async fn take(watcher: &Watcher, lane: usize, text: &str, closing: &Notify) {
    // A message that cannot be read is refused and counted by ingest.
    let head: MessageHead = serde_json::from_str(text).unwrap_or(MessageHead { topic_name: String::new() });
    match head.topic_name.as_str() {
        "channel.metadata" => return,
        "v2.system.socket_closing" => return closing.notify_one(),
        _ => {}
    }
    let mut backoff = Backoff::default();
    loop {
        match watcher.ingest.notified(&watcher.tenant, text.as_bytes()).await {
            Ok(_) => return,
            Err(IngestError::Unavailable { .. }) => backoff.pause(&watcher.shutdown).await,
            Err(_) => break,
        }
        if watcher.shutdown.is_requested() {
            return;
        }
    }
    // The topic names the contact although its message cannot be read; without a topic it may be any of the lane.
    let named = head.topic_name.rsplit('.').next().unwrap_or_default();
    let mut contacts = watcher.watches.of(lane);
    contacts.retain(|contact| named.is_empty() || contact.customer.expose().eq_ignore_ascii_case(named));
    watcher.missed(&contacts);
}
