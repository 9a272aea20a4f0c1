//! The OpenAPI 3.1 document: generated from the handlers, and completed where the generator is not enough.
//!
//! `schemas.json` has the exact forms of requests that the parsers accept: a request of that form is never refused for its
//! form, and any other is. `tests/schemathesis` checks this.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{bulk_contacts, changes, contact, identifier, oauth_token, profile, profiles, webhook};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "profile-edge",
        description = "Edge cache for Genesys Cloud customer profiles with event-driven invalidation.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        webhook::customer_updated,
        webhook::tenant_webhook,
        profile::profile,
        profile::post_profile,
        profiles::profiles,
        profiles::prefetch,
        changes::changes,
        contact::contact,
        bulk_contacts::bulk_contacts,
        identifier::lookup,
        identifier::old_lookup,
        identifier::reverse,
        identifier::contacts,
        oauth_token::token,
        oauth_token::gateway_token,
        openapi,
    ),
    tags(
        (name = "lookup", description = "For Architect flows and agent desktops."),
        (name = "genesys", description = "For Genesys' SDKs and data actions, with the same answers as Genesys."),
        (name = "document", description = "This document."),
        (name = "events", description = "For Genesys and services that forward its events."),
    ),
    modifiers(&SecuritySchemes),
)]
struct ApiDocument;

/// The content of `X-Hub-Signature-256`.
const HUB_SIGNATURE: &str = "sha256= and HMAC-SHA-256 of the raw body under the source's secret, in base64 or hex";

/// The content of `webhook-signature`.
const STANDARD_WEBHOOKS: &str =
    "Standard Webhooks, version v1: signs webhook-id, webhook-timestamp (within 5 minutes) and the raw body";

struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let api_key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        let http = |scheme| SecurityScheme::Http(HttpBuilder::new().scheme(scheme).build());
        components.add_security_scheme("apiKey", api_key);
        components.add_security_scheme("bearer", http(HttpAuthScheme::Bearer));
        components.add_security_scheme("basic", http(HttpAuthScheme::Basic));
        // The configuration of the tenant selects one or more of these.
        let header = |name, description: &str| {
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, description)))
        };
        let credential = |scheme, description: &str| {
            SecurityScheme::Http(HttpBuilder::new().scheme(scheme).description(Some(description)).build())
        };
        for (name, scheme) in [
            ("sourceKey", header("X-API-Key", "The source's secret; the tenant may name another header")),
            ("sourceBasic", credential(HttpAuthScheme::Basic, "The source's user name and secret")),
            ("sourceBearer", credential(HttpAuthScheme::Bearer, "The source's secret")),
            ("hubSignature", header("X-Hub-Signature-256", HUB_SIGNATURE)),
            ("standardWebhooks", header("webhook-signature", STANDARD_WEBHOOKS)),
        ] {
            components.add_security_scheme(name, scheme);
        }
    }
}

/// The forms of requests.
const SCHEMAS: &str = include_str!("schemas.json");

/// The parameters that use one of the schemas.
const PARAMETERS: [(&str, &str); 9] = [
    ("customerId", "CustomerId"),
    ("tenantId", "TenantId"),
    ("tenant_id", "TenantId"),
    ("X-Tenant-Id", "TenantId"),
    ("fields", "Fields"),
    ("phone", "Phone"),
    ("email", "Email"),
    ("externalId", "ExternalText"),
    ("externalSource", "ExternalText"),
];

/// The lookup of an identifier, whose answers similar routes have.
const IDENTIFIER: &str = "/api/v2/externalcontacts/identifierlookup/contacts";

/// Operations with the answers of another one and possibly more: path and method of both.
const ALIKE: [[(&str, &str); 2]; 6] = [
    [("/webhooks/{tenant_id}", "post"), ("/webhook/customer-updated", "post")],
    [("/api/v1/profile", "post"), ("/api/v1/profile", "get")],
    [("/api/v2/externalcontacts/identifierlookup", "post"), (IDENTIFIER, "post")],
    [("/api/v2/externalcontacts/reversewhitepageslookup", "get"), (IDENTIFIER, "post")],
    [("/api/v2/externalcontacts/contacts", "get"), (IDENTIFIER, "post")],
    [("/login/oauth/token", "post"), ("/oauth/token", "post")],
];

/// The answers that every route may give.
const ANYWHERE: [(&str, &str); 2] = [("500", "Internal error"), ("503", "Too many requests in progress")];

/// Returns the document as indented JSON.
#[must_use]
pub fn document() -> String {
    // The document has only strings and maps with string keys, which always serialize.
    let mut document = serde_json::to_value(ApiDocument::openapi()).unwrap_or_default();
    complete(&mut document);
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

fn complete(document: &mut Value) {
    // A test checks that the schemas are valid JSON.
    let schemas: Map<String, Value> = serde_json::from_str(SCHEMAS).unwrap_or_default();
    if let Some(known) = document["components"]["schemas"].as_object_mut() {
        known.extend(schemas);
    }
    for [(path, method), (other_path, other_method)] in ALIKE {
        let mut responses = document["paths"][other_path][other_method]["responses"].clone();
        let own = &mut document["paths"][path][method]["responses"];
        if let (Some(all), Some(own)) = (responses.as_object_mut(), own.as_object_mut()) {
            all.append(own);
        }
        *own = responses;
    }
    let paths = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for operation in paths.filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        if let Some(body) = operation.get_mut("requestBody") {
            body["required"] = true.into();
        }
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            let schema = PARAMETERS.iter().find(|(name, _)| parameter["name"] == *name);
            if let Some((_, schema)) = schema {
                parameter["schema"] = reference(schema);
            }
        }
        for (status, description) in ANYWHERE {
            if operation["responses"].get(status).is_none() {
                let content = json!({ "application/problem+json": { "schema": reference("ProblemBody") } });
                operation["responses"][status] = json!({ "description": description, "content": content });
            }
        }
    }
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// The document, generated once.
struct ServedDocument(Bytes);

/// Returns this document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "document",
    responses((status = 200, description = "An OpenAPI 3.1 document", body = serde_json::Value)),
)]
async fn openapi(State(document): State<Arc<ServedDocument>>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document.0.clone()).into_response()
}

/// Returns the route that serves the document.
pub fn routes() -> Router {
    Router::new().route("/openapi.json", get(openapi)).with_state(Arc::new(ServedDocument(document().into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_route_with_authentication_lists_its_security_schemes() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let schemes = document["components"]["securitySchemes"].as_object().unwrap();
        let mut asking = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                // OpenAPI has no scheme for the credentials of OAuth's token routes.
                if operation["responses"].get("401").is_none() || path.ends_with("/oauth/token") {
                    continue;
                }
                asking.push(path.as_str());
                let ways = operation["security"].as_array().unwrap_or_else(|| panic!("{method} {path} names none"));
                assert!(ways.len() >= 3, "{method} {path}");
                for way in ways.iter().flat_map(|way| way.as_object().unwrap().keys()) {
                    assert!(schemes.contains_key(way), "{way}");
                }
            }
        }
        for path in ["/webhooks/{tenant_id}", "/webhook/customer-updated", "/api/v1/profile"] {
            assert!(asking.contains(&path), "{path}");
        }
    }

    #[test]
    fn every_reference_in_the_document_resolves() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}
