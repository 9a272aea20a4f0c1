//! Genesys' routes that find contacts by something else than their id, for SDKs and data actions.
//!
//! The lookup of an identifier is answered from the store, like a lookup on `/api/v1`. The two searches return lists, which no
//! event could invalidate: they are passed on to Genesys, within the budget of the tenant. As on the route of a contact, only a
//! caller that may read every field is answered, and the tenant is its only one or that of `X-Tenant-Id`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::HeaderMap;
use serde::Deserialize;
use tracing::Instrument;

use crate::audit::DenialReason;
use crate::domain::{CustomerQuery, LookupBy, QueryFields, TenantId};
use crate::http::auth::field_set::FieldSet;
use crate::lookup::LookupAnswer;
use crate::metrics::LookupResult;
use crate::spans;
use crate::upstream::{Search, SearchQuery};

use crate::http::auth::callers::Caller;
use crate::http::request::{body, json};
use crate::http::response::cache_status;
use crate::http::response::dialect::{Dialect, ErrorBody};
use crate::http::response::problem::Problem;
use crate::http::routes::lookup_api::{LookupApi, not_authorized, shown, tenant_of, verbatim};
use crate::http::routes::lookup_audit::LookupAudit;

const LOOKUP: &str = "/api/v2/externalcontacts/identifierlookup/contacts";
const OLD_LOOKUP: &str = "/api/v2/externalcontacts/identifierlookup";
const REVERSE: &str = "/api/v2/externalcontacts/reversewhitepageslookup";
const CONTACTS: &str = "/api/v2/externalcontacts/contacts";

/// Genesys' `ContactIdentifier`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContactIdentifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
    #[serde(default)]
    external_source: Option<ExternalSource>,
}

#[derive(Deserialize)]
struct ExternalSource {
    id: String,
}

/// Returns the routes.
pub fn routes(api: Arc<LookupApi>) -> Router {
    Router::new()
        .route(LOOKUP, post(lookup))
        .route(OLD_LOOKUP, post(old_lookup))
        .route(REVERSE, get(reverse))
        .route(CONTACTS, get(contacts))
        .with_state(api)
}

/// Returns the contact that has an identifier, as Genesys does.
#[utoipa::path(
    post, path = "/api/v2/externalcontacts/identifierlookup/contacts", tag = "genesys",
    params(("X-Tenant-Id" = Option<String>, Header, description = "The tenant; a caller with one tenant may omit it")),
    request_body(content = ref("#/components/schemas/ContactIdentifier"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
    responses(
        (status = 200, description = "The contact as JSON, as Genesys returns it", content_type = "application/json"),
        (status = 400, description = "Malformed request", body = ErrorBody),
        (status = 401, description = "Missing or wrong credential", body = ErrorBody),
        (status = 403, description = "The caller may not read every field of this tenant, or not look up by this", body = ErrorBody),
        (status = 404, description = "Nobody has the identifier", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is not JSON", body = ErrorBody),
        (status = 429, description = "The caller's rate limit is reached; or, with `Retry-After`, that of Genesys", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 502, description = "Genesys sent an unusable answer or refused our credentials", body = ErrorBody),
        (status = 503, description = "Genesys or this service cannot answer now", body = ErrorBody),
    ),
)]
pub(in crate::http) async fn lookup(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    let dialect = Dialect::of(&request);
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let answer =
        async |caller: &Caller, audit: &mut LookupAudit<'_>| api.identifier(caller, headers, body, audit).await;
    api.audited(headers, parts.uri.query(), &dialect, answer).await
}

/// Returns the contact that has an identifier, under Genesys' deprecated path.
#[utoipa::path(
    post, path = "/api/v2/externalcontacts/identifierlookup", tag = "genesys",
    params(("X-Tenant-Id" = Option<String>, Header, description = "The tenant; a caller with one tenant may omit it")),
    request_body(content = ref("#/components/schemas/ContactIdentifier"), content_type = "application/json"),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
)]
pub(in crate::http) async fn old_lookup(state: State<Arc<LookupApi>>, request: Request) -> Response {
    lookup(state, request).await
}

/// Returns the contacts with a phone number or an address; asked from Genesys each time.
#[utoipa::path(
    get, path = "/api/v2/externalcontacts/reversewhitepageslookup", tag = "genesys",
    params(
        ("lookupVal" = Option<String>, Query, description = "A phone number in E.164, or an address"),
        ("X-Tenant-Id" = Option<String>, Header, description = "The tenant; a caller with one tenant may omit it"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
)]
pub(in crate::http) async fn reverse(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    passed_on(&api, request, Search::ReverseWhitePages).await
}

/// Returns the contacts that a text finds; asked from Genesys each time.
#[utoipa::path(
    get, path = "/api/v2/externalcontacts/contacts", tag = "genesys",
    params(
        ("q" = Option<String>, Query, description = "The text"),
        ("X-Tenant-Id" = Option<String>, Header, description = "The tenant; a caller with one tenant may omit it"),
    ),
    security(("apiKey" = []), ("bearer" = []), ("basic" = [])),
)]
pub(in crate::http) async fn contacts(State(api): State<Arc<LookupApi>>, request: Request) -> Response {
    passed_on(&api, request, Search::Contacts).await
}

async fn passed_on(api: &LookupApi, request: Request, search: fn(SearchQuery) -> Search) -> Response {
    let dialect = Dialect::of(&request);
    let (parts, _) = request.into_parts();
    let (headers, query) = (&parts.headers, parts.uri.query());
    let answer =
        async |caller: &Caller, audit: &mut LookupAudit<'_>| api.list(caller, headers, query, search, audit).await;
    api.audited(headers, query, &dialect, answer).await
}

impl LookupApi {
    async fn identifier(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let body = body::read(headers, body, self.max_body, &self.bodies).await?;
        let asked: ContactIdentifier = json::parse(&body.bytes)?;
        drop(body);
        let tenant = tenant_of(caller, headers)?;
        let query = self.query_of(caller, &tenant, &asked)?;
        if let Err(reason) = may(caller, &tenant, query.by()) {
            audit.denied(reason, &tenant, &query);
            return Err(not_authorized());
        }
        self.answer_verbatim(caller, headers, &tenant, &query, audit).await
    }

    fn query_of(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        asked: &ContactIdentifier,
    ) -> Result<CustomerQuery, Problem> {
        let mut fields = QueryFields::default();
        match asked.kind.as_str() {
            "Phone" => fields.phone = Some(&asked.value),
            "Email" => fields.email = Some(&asked.value),
            "ExternalId" => {
                fields.external_id = Some(&asked.value);
                fields.external_source = asked.external_source.as_ref().map(|source| source.id.as_str());
            }
            _ => return Err(Problem::bad_field("type", "must be Phone, Email or ExternalId")),
        }
        let region = self.region_for(caller, tenant);
        let field = |field| if field == "externalSource" { "externalSource" } else { "value" };
        CustomerQuery::parse(&fields, region)
            .map_err(|invalid| Problem::bad_field(field(invalid.field), invalid.reason))
    }

    async fn list(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        query: Option<&str>,
        search: fn(SearchQuery) -> Search,
        audit: &mut LookupAudit<'_>,
    ) -> Result<Response, Problem> {
        let query =
            SearchQuery::parse(query.unwrap_or_default()).map_err(|error| Problem::bad_field("query", error))?;
        let tenant = tenant_of(caller, headers)?;
        // A search may find by anything.
        let all = [LookupBy::CustomerId, LookupBy::Phone, LookupBy::Email, LookupBy::ExternalId];
        if let Some(reason) = all.into_iter().find_map(|by| may(caller, &tenant, by).err()) {
            audit.denied_tenant(reason, &tenant);
            return Err(not_authorized());
        }
        let span = spans::lookup(headers, &tenant, &caller.name);
        let answer = self.lookup.search(&tenant, &search(query), &caller.requester()).instrument(span).await;
        let answer = answer.ok_or_else(not_authorized)?;
        let result = answer.as_ref().map_or(LookupResult::Error, LookupAnswer::result);
        audit.searched(result, shown(&answer), &tenant);
        let answer = answer.map_err(|failure| self.log_failed_search(&failure, &tenant, caller))?;
        let mut response = verbatim(&answer, headers);
        cache_status::write_headers(response.headers_mut(), &answer, self.clock.now());
        Ok(response)
    }
}

fn may(caller: &Caller, tenant: &TenantId, by: LookupBy) -> Result<(), DenialReason> {
    match caller.fields {
        FieldSet::All if !caller.may_read(tenant) => Err(DenialReason::Tenant),
        FieldSet::All if !caller.may_look_up_by(by) => Err(DenialReason::LookupBy),
        FieldSet::All => Ok(()),
        FieldSet::Only(_) => Err(DenialReason::Fields),
    }
}
