//! One client of the change feed: what it hears, as Server-Sent Events.
//!
//! A change is rendered once for all streams of a caller, with the handle of its customer. Changes that arrive within `PACE` of
//! the last write wait for its end and are written together: a single change is written at once, and many changes cost each
//! stream a bounded number of writes.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use moka::sync::Cache;
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::domain::{Kind, TenantId};
use crate::metrics::InProgress;
use crate::shares::Share;
use crate::store::changes::{AppliedChange, Behind, FeedItem, FeedPosition, FeedReader};

use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::callers::Caller;
use crate::http::routes::event_id::EventIds;

/// The time between two comments on a stream without changes, which keep proxies from closing it.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The shortest time between two writes of changes.
const PACE: Duration = Duration::from_millis(5);

/// The most that is written at once, in bytes; more is written next.
const MAX_WRITE: usize = 16 * 1024;

/// The most rendered changes. Streams read the latest ones at about the same time.
const MAX_RENDERED: u64 = 4096;

/// The latest changes, as each caller hears them.
#[derive(Debug)]
pub struct RenderedChanges {
    auth: Arc<CallerAuth>,
    ids: EventIds,
    latest: Cache<(Arc<str>, u64), RenderedChange>,
}

#[derive(Clone, Debug)]
struct RenderedChange {
    handle: Arc<str>,
    text: Bytes,
}

/// A customer's change, for a caller.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a> {
    profile_key: &'a str,
    kind: &'static str,
}

/// Why a client must assume that anything has changed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum ResetReason {
    /// The connection to the store was broken.
    Gap,
    /// What came after `Last-Event-ID` is not known here.
    Resume,
    /// The client reads too slowly.
    Slow,
}

#[derive(Serialize)]
struct Reset {
    reason: ResetReason,
}

/// What a client listens to.
pub(super) struct Subscription {
    pub(super) caller: Arc<Caller>,
    pub(super) tenant: TenantId,
    /// The handles that the client asked for; empty: all.
    pub(super) handles: Vec<String>,
}

/// One client.
pub(super) struct ChangeStream {
    rendered: Arc<RenderedChanges>,
    subscription: Subscription,
    reader: FeedReader,
    state: StreamState,
    written_at: Instant,
    _open: (Share, InProgress),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    /// Nothing was sent yet; `complete`: the client has missed nothing.
    Opening {
        complete: bool,
    },
    Open,
    Ended,
}

impl RenderedChanges {
    /// Creates an empty set, with the handles that belong to this authentication.
    #[must_use]
    pub fn new(auth: Arc<CallerAuth>) -> Self {
        Self { auth, ids: EventIds::new(), latest: Cache::new(MAX_RENDERED) }
    }

    /// Returns the position of an id that was written for a feed.
    pub(super) fn position(&self, id: &str, epoch: u64) -> Option<FeedPosition> {
        self.ids.read(id, epoch)
    }

    fn of(&self, caller: &Arc<str>, change: &AppliedChange, position: FeedPosition) -> RenderedChange {
        self.latest.get_with((Arc::clone(caller), position.next), || {
            let handle = self.auth.handles().of(caller, change.key.tenant(), change.key.digest());
            let kind = match change.kind {
                Kind::Updated | Kind::Merged => Kind::Updated,
                kind @ (Kind::Created | Kind::Deleted) => kind,
            };
            let id = self.ids.write(position);
            let text = event("change", &Change { profile_key: &handle, kind: kind.as_str() }, &id);
            RenderedChange { handle: handle.into(), text: text.into() }
        })
    }
}

impl ChangeStream {
    /// Creates the stream of a client; `complete`: it has missed nothing that `reader` does not return.
    pub(super) fn new(
        rendered: Arc<RenderedChanges>,
        subscription: Subscription,
        reader: FeedReader,
        complete: bool,
        open: (Share, InProgress),
    ) -> Self {
        let (state, written_at) = (StreamState::Opening { complete }, Instant::now());
        Self { rendered, subscription, reader, state, written_at, _open: open }
    }

    /// Returns what is to be written next; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        match self.state {
            StreamState::Ended => return None,
            StreamState::Opening { complete } => {
                self.state = StreamState::Open;
                if !complete {
                    return Some(self.reset(ResetReason::Resume, self.reader.position()));
                }
                // An id without data is no event, but a client that loses the stream at once resumes from here.
                let id = self.rendered.ids.write(self.reader.position());
                return Some(format!("id: {id}\n\n").into());
            }
            StreamState::Open => {}
        }
        loop {
            let heartbeat = self.written_at + HEARTBEAT;
            let Ok(item) = timeout_at(heartbeat, self.reader.next()).await else {
                self.written_at = Instant::now();
                return Some(Bytes::from_static(b":\n\n"));
            };
            let Some(first) = self.render(item) else { continue };
            sleep_until(self.written_at + PACE).await;
            self.written_at = Instant::now();
            return Some(self.with_ready(first));
        }
    }

    /// Adds what has arrived meanwhile.
    fn with_ready(&mut self, first: Bytes) -> Bytes {
        let mut all: Option<BytesMut> = None;
        while self.state == StreamState::Open && all.as_ref().map_or(0, BytesMut::len) < MAX_WRITE {
            let Some(item) = self.reader.ready() else { break };
            if let Some(text) = self.render(item) {
                all.get_or_insert_with(|| BytesMut::from(&first[..])).extend_from_slice(&text);
            }
        }
        all.map_or(first, BytesMut::freeze)
    }

    /// Returns the text of an item, unless the client does not listen to it.
    fn render(&mut self, item: Result<(FeedItem, FeedPosition), Behind>) -> Option<Bytes> {
        let Ok((item, position)) = item else {
            self.state = StreamState::Ended;
            return Some(self.reset(ResetReason::Slow, self.reader.position()));
        };
        let Subscription { caller, tenant, handles } = &self.subscription;
        match item {
            FeedItem::Gap => Some(self.reset(ResetReason::Gap, position)),
            FeedItem::Change(change) if change.key.tenant() == tenant => {
                let change = self.rendered.of(&caller.name, &change, position);
                let is_wanted = handles.is_empty() || handles.iter().any(|handle| **handle == *change.handle);
                is_wanted.then_some(change.text)
            }
            FeedItem::Change(_) => None,
        }
    }

    fn reset(&self, reason: ResetReason, position: FeedPosition) -> Bytes {
        event("reset", &Reset { reason }, &self.rendered.ids.write(position)).into()
    }
}

fn event(name: &str, data: &impl Serialize, id: &str) -> String {
    // Names and texts always serialize, without line breaks.
    format!("event: {name}\nid: {id}\ndata: {}\n\n", serde_json::to_string(data).unwrap_or_default())
}
