//! `GET /api/v1/changes`: the applied invalidations of a tenant, as Server-Sent Events (WHATWG HTML, section 9.2).
//!
//! | event | means |
//! |---|---|
//! | `change` | `{"profileKey":"…","kind":"updated"}`: what is shown of this customer is out of date; look it up again |
//! | `reset` | `{"reason":"gap"}`: changes may be missing (`gap`, `resume`, `slow`); look everything up again |
//!
//! A client resumes with `Last-Event-ID` while the items after it are in the window of this process; otherwise the first event
//! is a `reset`. A client that reads too slowly gets a `reset`, and the stream ends. A stream also ends after an hour, so that a
//! caller that was removed hears nothing for longer, with its token, when that of an agent must be verified again, and when the
//! process stops; clients connect again by themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::sleep;

use crate::audit::DenialReason;
use crate::domain::TenantId;
use crate::metrics::{Metrics, in_progress};
use crate::shares::{FairShares, NoShare};
use crate::shutdown::Shutdown;
use crate::store::changes::ChangeFeed;

use crate::http::auth::authenticate::Admitted;
use crate::http::request::query;
use crate::http::response::dialect::Dialect;
use crate::http::response::problem::{Problem, ProblemBody};
use crate::http::routes::change_stream::{ChangeStream, RenderedChanges, Subscription};
use crate::http::routes::lookup_api::LookupApi;
use crate::http::routes::lookup_audit::LookupAudit;

/// The longest time of a stream.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long a stream waits until the store delivers changes: the first one has the process subscribe. A browser does not
/// connect again after a refusal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most handles that one stream may ask for.
const MAX_HANDLES: usize = 100;

/// The state of the route.
#[derive(Debug)]
pub struct ChangesApi {
    /// Authenticates callers and records refusals.
    pub lookups: Arc<LookupApi>,
    /// What was applied to the store.
    pub feed: ChangeFeed,
    /// The changes as each caller hears them.
    pub rendered: Arc<RenderedChanges>,
    /// The streams that may be open, shared by callers.
    pub streams: Arc<FairShares>,
    /// The metrics to update.
    pub metrics: Arc<Metrics>,
    /// Ends the streams.
    pub shutdown: Shutdown,
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
        (status = 503, description = "Too many streams, of all callers or of this one, or the store does not deliver changes now", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn changes(State(api): State<Arc<ChangesApi>>, request: Request) -> Response {
    let (headers, query) = (request.headers(), request.uri().query());
    let mut audit = api.lookups.begin_audit(headers);
    let opened = match audit.admit(&api.lookups.auth, query).await {
        Ok(admitted) => open(&api, admitted, headers, query, &mut audit).await,
        Err(problem) => Err(problem),
    };
    audit.end(opened, &Dialect::Problem).await
}

async fn open(
    api: &Arc<ChangesApi>,
    admitted: Admitted,
    headers: &HeaderMap,
    query: Option<&str>,
    audit: &mut LookupAudit<'_>,
) -> Result<Response, Problem> {
    let Admitted { caller, valid_for, .. } = admitted;
    let (tenant, handles) = parse(query)?;
    if !caller.may_read(&tenant) || !api.lookups.lookup.knows(&tenant) {
        audit.denied_tenant(DenialReason::Tenant, &tenant);
        let detail = "tenantId: not allowed for this caller";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).field("tenantId"));
    }
    let unavailable =
        |code, detail| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(Duration::from_secs(2));
    let share = api.streams.take(&caller.share(), 1).map_err(|refused| match refused {
        NoShare::AllInUse => unavailable("shed", "too many streams of changes"),
        NoShare::OwnPart => {
            unavailable("shed", "too many streams of changes of this caller; the others are for other callers")
        }
    })?;
    if !api.feed.hears(PATIENCE, &api.shutdown).await {
        return Err(unavailable("changes_unavailable", "the store does not deliver changes now"));
    }
    let last = headers.get("last-event-id");
    let resumed = last.and_then(|id| {
        let position = api.rendered.position(id.to_str().ok()?, api.feed.epoch())?;
        api.feed.resume(position).ok()
    });
    let complete = last.is_none() || resumed.is_some();
    let reader = resumed.unwrap_or_else(|| api.feed.read());
    let (subscription, counted) = (Subscription { caller, tenant, handles }, in_progress(&api.metrics.change_streams));
    let rendered = Arc::clone(&api.rendered);
    let stream = ChangeStream::new(rendered, subscription, reader, complete, (share, counted));
    let shutdown = api.shutdown.clone();
    let longest = valid_for.map_or(LONGEST, |valid_for| valid_for.min(LONGEST));
    let end = async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = sleep(longest) => {}
        }
    };
    let events = stream::unfold(stream, |mut stream| async {
        stream.next().await.map(|events| (Ok::<_, Infallible>(events), stream))
    });
    let mut response = Response::new(Body::from_stream(Box::pin(events).take_until(Box::pin(end))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
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
