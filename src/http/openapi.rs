//! The OpenAPI 3.1 document, generated from the handlers.

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{HeaderValue, header};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{profiles, webhooks};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "profile-edge",
        description = "Edge cache for Genesys Cloud customer profiles with event-driven invalidation.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        webhooks::customer_updated,
        webhooks::tenant_webhook,
        profiles::profile,
        profiles::post_profile,
    ),
    tags(
        (name = "lookup", description = "For Architect flows and agent desktops."),
        (name = "events", description = "For Genesys and whatever passes its events on."),
    ),
    modifiers(&Security),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let api_key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        let http = |scheme| SecurityScheme::Http(HttpBuilder::new().scheme(scheme).build());
        components.add_security_scheme("apiKey", api_key);
        components.add_security_scheme("bearer", http(HttpAuthScheme::Bearer));
        components.add_security_scheme("basic", http(HttpAuthScheme::Basic));
    }
}

/// Returns the document as indented JSON.
#[must_use]
pub fn document() -> String {
    // The document is made of strings and maps with string keys, which always serialize.
    Document::openapi().to_pretty_json().unwrap_or_default()
}

/// Makes the route that serves the document.
pub fn routes() -> Router {
    let document = bytes::Bytes::from(document());
    Router::new().route(
        "/openapi.json",
        get(move || async move {
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document).into_response()
        }),
    )
}
