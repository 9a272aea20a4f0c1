//! `POST /oauth/token` and `POST /login/oauth/token`: a token for a caller's name and key.
//!
//! The client credentials grant of RFC 6749 (section 4.4), as Genesys' SDKs use it, so that an SDK can be
//! pointed here in place of Genesys: `client_id` is a caller's name and `client_secret` its key, in Basic
//! authentication or in the form. Errors are those of its section 5.2; a wrong name, a wrong key and none at
//! all are told in the same words.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::Secret;

use crate::http::auth::authenticate::{self, CallerAuth, Granted, NotBasic, Pair};
use crate::http::request::body;
use crate::http::response::problem::Problem;

/// The largest form, in bytes.
const MAX_FORM: usize = 16 * 1024;

/// A token, as RFC 6749 section 5.1 has it.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct TokenBody {
    /// To be sent as `Authorization: Bearer …`.
    pub(in crate::http) access_token: String,
    /// Always `bearer`.
    pub(in crate::http) token_type: &'static str,
    /// For how many seconds it is valid.
    pub(in crate::http) expires_in: u64,
}

/// No token, as RFC 6749 section 5.2 has it.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct RefusalBody {
    /// `invalid_request`, `invalid_client` or `unsupported_grant_type`.
    pub(in crate::http) error: &'static str,
    /// What was expected.
    pub(in crate::http) error_description: &'static str,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Unreadable(StatusCode),
    NotAForm,
    Repeated,
    NoGrant,
    OtherGrant,
    TwoCredentials,
    WrongClient,
}

/// What the form holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Form {
    grant_type: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret>,
}

/// Makes the routes.
pub fn routes(door: Arc<CallerAuth>) -> Router {
    Router::new().route("/oauth/token", post(token)).route("/login/oauth/token", post(gateway_token)).with_state(door)
}

/// Gives a caller a token.
#[utoipa::path(
    post, path = "/oauth/token", tag = "lookup",
    request_body(content = ref("#/components/schemas/TokenRequest"), content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "A token", body = TokenBody),
        (status = 400, description = "`invalid_request` or `unsupported_grant_type`", body = RefusalBody),
        (status = 401, description = "`invalid_client`", body = RefusalBody),
        (status = 408, description = "The form did not arrive in time", body = RefusalBody),
        (status = 413, description = "The form is too large", body = RefusalBody),
    ),
)]
pub(in crate::http) async fn token(State(door): State<Arc<CallerAuth>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match grant(&door, &parts.headers, body).await {
        Ok(granted) => {
            let Granted { token, expires_in } = granted;
            Json(TokenBody { access_token: token.expose().to_owned(), token_type: "bearer", expires_in })
                .into_response()
        }
        Err(refusal) => refusal.into_response(),
    };
    // RFC 6749 section 5.1; errors too, so that no cache ever holds one.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Gives a caller a token; for SDKs whose gateway has its login below `/login`.
#[utoipa::path(
    post, path = "/login/oauth/token", tag = "lookup",
    request_body(content = ref("#/components/schemas/TokenRequest"), content_type = "application/x-www-form-urlencoded"),
)]
pub(in crate::http) async fn gateway_token(state: State<Arc<CallerAuth>>, request: Request) -> Response {
    token(state, request).await
}

async fn grant(door: &CallerAuth, headers: &HeaderMap, body: Body) -> Result<Granted, Refusal> {
    let body = body::read_any(headers, body, MAX_FORM).await.map_err(|problem| Refusal::unreadable(&problem))?;
    let form = Form::read(headers, &body)?;
    match form.grant_type.as_deref() {
        None | Some("") => return Err(Refusal::NoGrant),
        Some("client_credentials") => {}
        Some(_) => return Err(Refusal::OtherGrant),
    }
    let granted = match (authenticate::basic(headers), form.client_id, form.client_secret) {
        // A client may repeat its id in the form (RFC 6749 section 3.2.1), not its secret.
        (Ok(Some(Pair { name, key })), id, None) if id.as_ref().is_none_or(|id| id.as_bytes() == name) => {
            door.grant(Some((&name, &key)))
        }
        (Ok(Some(_)), _, _) => return Err(Refusal::TwoCredentials),
        (Ok(None), Some(id), Some(secret)) => door.grant(Some((id.as_bytes(), secret.expose().as_bytes()))),
        (Ok(None), _, _) | (Err(NotBasic), _, _) => door.grant(None),
    };
    granted.ok_or(Refusal::WrongClient)
}

impl Form {
    fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, Refusal> {
        let essence = body::essence(headers);
        if !essence.is_empty() && essence != b"application/x-www-form-urlencoded" {
            return Err(Refusal::NotAForm);
        }
        let mut form = Self::default();
        for (name, value) in url::form_urlencoded::parse(body) {
            let value = value.into_owned();
            let repeated = match name.as_ref() {
                "grant_type" => form.grant_type.replace(value).is_some(),
                "client_id" => form.client_id.replace(value).is_some(),
                "client_secret" => form.client_secret.replace(Secret::new(value)).is_some(),
                // RFC 6749 section 3.2: what is not understood is ignored.
                _ => false,
            };
            if repeated {
                return Err(Refusal::Repeated);
            }
        }
        Ok(form)
    }
}

impl Refusal {
    fn unreadable(problem: &Problem) -> Self {
        Self::Unreadable(problem.status())
    }

    const fn row(self) -> (StatusCode, RefusalBody) {
        let (status, error, error_description) = match self {
            Self::Unreadable(status) => (status, "invalid_request", "the form could not be read"),
            Self::NotAForm => {
                (StatusCode::BAD_REQUEST, "invalid_request", "expected application/x-www-form-urlencoded")
            }
            Self::Repeated => (StatusCode::BAD_REQUEST, "invalid_request", "a parameter is given more than once"),
            Self::NoGrant => (StatusCode::BAD_REQUEST, "invalid_request", "grant_type is missing"),
            Self::TwoCredentials => {
                (StatusCode::BAD_REQUEST, "invalid_request", "credentials belong into Authorization or into the form")
            }
            Self::OtherGrant => {
                (StatusCode::BAD_REQUEST, "unsupported_grant_type", "the one grant is client_credentials")
            }
            Self::WrongClient => {
                (StatusCode::UNAUTHORIZED, "invalid_client", "a caller's name and its valid key are needed")
            }
        };
        (status, RefusalBody { error, error_description })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, body) = self.row();
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"profile-edge\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &'static str, body: &'static str) -> Result<Form, Refusal> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        Form::read(&headers, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn a_form_is_read_and_what_is_unknown_ignored() {
        let posted = "client_id=a+b&scope=x&client_secret=%2B";
        let form = read("Application/X-www-form-urlencoded; charset=utf-8", posted).unwrap();
        assert_eq!((form.client_id.as_deref(), form.client_secret), (Some("a b"), Some(Secret::new("+"))));
        assert_eq!(read("", "").unwrap(), Form::default());
        assert_eq!(read("application/json", "{}").unwrap_err(), Refusal::NotAForm);
        assert_eq!(read("", "grant_type=a&grant_type=a").unwrap_err(), Refusal::Repeated);
    }
}
