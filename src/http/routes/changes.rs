//! `GET /api/v1/changes`: the applied invalidations of a tenant, as Server-Sent Events (WHATWG HTML, section 9.2).
//!
//! | event | means |
//! |---|---|
//! | `change` | `{"profileKey":"…","kind":"updated"}`: what is shown of this customer is out of date; look it up again |
//! | `reset` | `{"reason":"gap"}`: changes may be missing (`gap`, `resume`, `slow`); look everything up again |
//!
//! A client resumes with `Last-Event-ID` while the items after it are in the window of this process; otherwise the first event
//! is a `reset`. A client that reads too slowly gets a `reset`, and the stream ends. A stream also ends after an hour, so that a
//! caller that was removed hears nothing for longer, and when the process stops; clients connect again by themselves.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::domain::{Kind, TenantId};
use crate::metrics::{InProgress, Metrics, in_progress};
use crate::shutdown::Shutdown;
use crate::store::changes::{ChangeFeed, FeedItem, FeedPosition, FeedReader};

use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::callers::Caller;
use crate::http::request::query;
use crate::http::response::dialect::Dialect;
use crate::http::response::problem::{Problem, ProblemBody};

/// The time between two comments on a stream without changes, which keep proxies from closing it.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The longest time of a stream.
const LONGEST: Duration = Duration::from_secs(3600);

/// The most handles that one stream may ask for.
const MAX_HANDLES: usize = 100;

/// The state of the route.
#[derive(Debug)]
pub struct ChangesApi {
    /// The authentication of callers.
    pub auth: Arc<CallerAuth>,
    /// What was applied to the store.
    pub feed: ChangeFeed,
    /// The configured tenants.
    pub tenants: Vec<TenantId>,
    /// One permit for each stream.
    pub streams: Arc<Semaphore>,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
    /// Ends the streams.
    pub shutdown: Shutdown,
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

/// One client.
struct ChangeStream {
    api: Arc<ChangesApi>,
    caller: Arc<Caller>,
    tenant: TenantId,
    /// The handles that the client asked for; empty: all.
    handles: Vec<String>,
    reader: FeedReader,
    state: StreamState,
    _permit: OwnedSemaphorePermit,
    _open: InProgress,
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

/// Returns the route.
pub fn routes(api: Arc<ChangesApi>) -> Router {
    Router::new().route("/api/v1/changes", get(changes)).with_state(api)
}

/// Streams the applied changes of a tenant as Server-Sent Events.
#[utoipa::path(
    get, path = "/api/v1/changes", tag = "lookup",
    params(
        ("tenantId" = String, Query, description = "The tenant"),
        ("profileKeys" = Option<String>, Query, description = "The values of `X-Profile-Key` to listen for, at most 100, joined by commas; absent: all"),
        ("Last-Event-ID" = Option<String>, Header, description = "Where to resume; if that is not known here, the first event is `reset`"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "Events `change` and `reset`, without end", content_type = "text/event-stream"),
        (status = 400, description = "Malformed request; `field` names the invalid field", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "Missing or wrong credential", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "Tenant not allowed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The caller's rate limit is reached", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams, or the store does not deliver changes now", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn changes(State(api): State<Arc<ChangesApi>>, request: Request) -> Response {
    let opened = open(&api, request.headers(), request.uri().query());
    opened.unwrap_or_else(|problem| Dialect::Problem.render(problem))
}

fn open(api: &Arc<ChangesApi>, headers: &HeaderMap, query: Option<&str>) -> Result<Response, Problem> {
    let caller = api.auth.admit(headers).map_err(|refused| refused.problem)?.caller;
    let (tenant, handles) = parse(query)?;
    if !caller.may_read(&tenant) || !api.tenants.contains(&tenant) {
        let detail = "tenantId: not allowed for this caller";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field("tenantId"));
    }
    let unavailable =
        |code, detail| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(Duration::from_secs(2));
    if !api.feed.is_live() {
        return Err(unavailable("changes_unavailable", "the store does not deliver changes now"));
    }
    let permit = Arc::clone(&api.streams).try_acquire_owned();
    let permit = permit.map_err(|_full| unavailable("shed", "too many streams of changes"))?;
    let last = headers.get("last-event-id");
    let resumed = last.and_then(|id| {
        let EventId(position) = id.to_str().ok()?.parse().ok()?;
        api.feed.resume(position).ok()
    });
    let stream = ChangeStream {
        state: StreamState::Opening { complete: last.is_none() || resumed.is_some() },
        reader: resumed.unwrap_or_else(|| api.feed.read()),
        caller,
        tenant,
        handles,
        _permit: permit,
        _open: in_progress(&api.metrics.change_streams),
        api: Arc::clone(api),
    };
    let shutdown = api.shutdown.clone();
    let end = async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = sleep(LONGEST) => {}
        }
    };
    let events = stream::unfold(stream, |mut stream| async {
        stream.next().await.map(|event| (Ok::<_, Infallible>(event), stream))
    });
    let events = Box::pin(events).take_until(Box::pin(end));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// Parses the tenant and the handles.
fn parse(query: Option<&str>) -> Result<(TenantId, Vec<String>), Problem> {
    let [tenant, handles] = query::parse(query.unwrap_or_default(), ["tenantId", "profileKeys"])?;
    let tenant = tenant.ok_or_else(|| Problem::bad_field("tenantId", "is missing"))?;
    let tenant = tenant.parse().map_err(|error| Problem::bad_field("tenantId", error))?;
    let handles = handles.iter().flat_map(|handles| handles.split(','));
    let handles: Vec<String> = handles.map(|handle| handle.trim().to_owned()).collect();
    if handles.len() > MAX_HANDLES || handles.iter().any(String::is_empty) {
        return Err(Problem::bad_field("profileKeys", "must be 1 to 100 values of X-Profile-Key, joined by commas"));
    }
    Ok((tenant, handles))
}

impl ChangeStream {
    /// Returns the next event; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        match self.state {
            StreamState::Ended => return None,
            StreamState::Opening { complete } => {
                self.state = StreamState::Open;
                let id = EventId(self.reader.position());
                // An id without data is no event, but a client that loses the stream at once resumes from here.
                return Some(if complete {
                    Event::default().id(id.to_string())
                } else {
                    reset(ResetReason::Resume, id)
                });
            }
            StreamState::Open => {}
        }
        loop {
            let Ok((item, position)) = self.reader.next().await else {
                self.state = StreamState::Ended;
                return Some(reset(ResetReason::Slow, EventId(self.reader.position())));
            };
            let id = EventId(position);
            let change = match item {
                FeedItem::Gap => return Some(reset(ResetReason::Gap, id)),
                FeedItem::Change(change) if change.key.tenant() == &self.tenant => change,
                FeedItem::Change(_) => continue,
            };
            let handle = self.api.auth.handles().of(&self.caller.name, &self.tenant, change.key.digest());
            if self.handles.is_empty() || self.handles.contains(&handle) {
                let kind = match change.kind {
                    Kind::Updated | Kind::Merged => Kind::Updated,
                    kind @ (Kind::Created | Kind::Deleted) => kind,
                };
                return Some(event("change", &Change { profile_key: &handle, kind: kind.as_str() }, id));
            }
        }
    }
}

fn reset(reason: ResetReason, id: EventId) -> Event {
    event("reset", &Reset { reason }, id)
}

fn event(name: &str, data: &impl Serialize, id: EventId) -> Event {
    // Names and texts always serialize, without line breaks.
    Event::default().event(name).id(id.to_string()).data(serde_json::to_string(data).unwrap_or_default())
}

/// The id of an event: the position after it, as two numbers in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EventId(FeedPosition);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.0.epoch, self.0.next)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, next) = text.split_once('-').ok_or(())?;
        let number = |digits| u64::from_str_radix(digits, 16).map_err(|_| ());
        Ok(Self(FeedPosition { epoch: number(epoch)?, next: number(next)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_is_parsed_as_it_was_written() {
        for (epoch, next) in [(0, 0), (u64::MAX, 7), (1, u64::MAX)] {
            let id = EventId(FeedPosition { epoch, next });
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "-", "1", "1-", "x-1", "1-2-3", "11111111111111111-1"] {
            assert_eq!(text.parse::<EventId>(), Err(()), "{text}");
        }
    }
}
