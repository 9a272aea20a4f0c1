//! `POST /oauth/token` and `POST /login/oauth/token`: exchanges a caller's name and key for a token.
//!
//! This is the client credentials grant of RFC 6749 (section 4.4) as Genesys' SDKs use it, so that an SDK can use this
//! service instead of Genesys: `client_id` is the caller's name and `client_secret` its key, in Basic authentication or in
//! the form. Errors are those of its section 5.2. A missing name, a wrong name and a wrong key get the same answer.
//!
//! `scope` (section 3.3) and `expires_in` narrow the token, for example for the page of a desktop: one tenant, some fields, a
//! short time. The answer names what was granted.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::{Audit, AuditRecord, DenialReason, DeniedToken};
use crate::authorization::{Authorization, InvalidAuthorization};
use crate::domain::Secret;

use crate::http::auth::authenticate::{CallerAuth, IssuedToken, RefusedToken, WantedToken};
use crate::http::request::body;
use crate::http::request::budget::ByteBudget;
use crate::http::response::headers::REQUEST_ID;

/// The maximum size of the form, in bytes.
const MAX_FORM: usize = 16 * 1024;

/// The state of the routes.
#[derive(Debug)]
pub(in crate::http) struct TokenApi {
    auth: Arc<CallerAuth>,
    audit: Audit,
    bodies: ByteBudget,
}

/// A token response (RFC 6749 section 5.1).
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct TokenBody {
    /// The token, for `Authorization: Bearer`.
    pub(in crate::http) access_token: String,
    /// Always `bearer`.
    pub(in crate::http) token_type: &'static str,
    /// The lifetime of the token, in seconds.
    pub(in crate::http) expires_in: u64,
    /// What the token may do, if a scope was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) scope: Option<String>,
}

/// An error response (RFC 6749 section 5.2).
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct RefusalBody {
    /// `invalid_request`, `invalid_client`, `invalid_scope` or `unsupported_grant_type`.
    pub(in crate::http) error: &'static str,
    /// What was expected.
    pub(in crate::http) error_description: &'static str,
}

/// The reason why no token is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenError {
    Unreadable(StatusCode),
    NotAForm,
    Repeated,
    NoGrant,
    OtherGrant,
    TwoCredentials,
    BadLifetime,
    BadScope,
    /// This caller may not have the scope.
    WiderScope(Arc<str>),
    WrongClient,
}

/// The parameters of the form.
#[derive(Debug, Default, PartialEq, Eq)]
struct TokenForm {
    grant_type: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret>,
    scope: Option<String>,
    expires_in: Option<String>,
}

/// Returns the routes.
pub fn routes(auth: Arc<CallerAuth>, audit: Audit, bodies: ByteBudget) -> Router {
    let api = Arc::new(TokenApi { auth, audit, bodies });
    Router::new().route("/oauth/token", post(token)).route("/login/oauth/token", post(gateway_token)).with_state(api)
}

/// Issues a token to a caller.
#[utoipa::path(
    post, path = "/oauth/token", tag = "lookup",
    request_body(content = ref("#/components/schemas/TokenRequest"), content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "A token", body = TokenBody),
        (status = 400, description = "`invalid_request`, `invalid_scope` or `unsupported_grant_type`", body = RefusalBody),
        (status = 401, description = "`invalid_client`", body = RefusalBody),
        (status = 408, description = "The form did not arrive in time", body = RefusalBody),
        (status = 413, description = "The form is too large", body = RefusalBody),
        (status = 503, description = "Too many bytes of requests in progress; retry", body = RefusalBody),
    ),
)]
pub(in crate::http) async fn token(State(api): State<Arc<TokenApi>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match issue(&api, &parts.headers, body).await {
        Ok(issued) => {
            let IssuedToken { token, expires_in, scope } = issued;
            let (access_token, scope) = (token.expose().to_owned(), scope.map(|scope| scope.to_string()));
            Json(TokenBody { access_token, token_type: "bearer", expires_in, scope }).into_response()
        }
        Err(error) => {
            let denied = match &error {
                TokenError::WrongClient => Some((None, DenialReason::Unauthorized)),
                TokenError::WiderScope(caller) => Some((Some(Arc::clone(caller)), DenialReason::Scope)),
                TokenError::Unreadable(_)
                | TokenError::NotAForm
                | TokenError::Repeated
                | TokenError::NoGrant
                | TokenError::OtherGrant
                | TokenError::TwoCredentials
                | TokenError::BadLifetime
                | TokenError::BadScope => None,
            };
            if let Some((caller, reason)) = denied {
                let request = parts.headers.get(REQUEST_ID).cloned();
                api.audit.record(AuditRecord::Token(DeniedToken { request, caller, reason }));
            }
            error.into_response()
        }
    };
    // Required by RFC 6749 section 5.1 for tokens; added to errors too, so that no cache stores them.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Issues a token to a caller, for SDKs that call a gateway with its login below `/login`.
#[utoipa::path(
    post, path = "/login/oauth/token", tag = "lookup",
    request_body(content = ref("#/components/schemas/TokenRequest"), content_type = "application/x-www-form-urlencoded"),
)]
pub(in crate::http) async fn gateway_token(state: State<Arc<TokenApi>>, request: Request) -> Response {
    token(state, request).await
}

async fn issue(api: &TokenApi, headers: &HeaderMap, body: Body) -> Result<IssuedToken, TokenError> {
    let TokenApi { auth, bodies, .. } = api;
    let body = body::read_any(headers, body, MAX_FORM, bodies).await;
    let body = body.map_err(|problem| TokenError::Unreadable(problem.status()))?;
    let form = TokenForm::parse(headers, &body.bytes)?;
    match form.grant_type.as_deref() {
        None | Some("") => return Err(TokenError::NoGrant),
        Some("client_credentials") => {}
        Some(_) => return Err(TokenError::OtherGrant),
    }
    let wanted = form.wanted()?;
    let issued = match (Authorization::of(headers), form.client_id, form.client_secret) {
        // A client may repeat its id in the form (RFC 6749 section 3.2.1), not its secret.
        (Ok(Some(Authorization::Basic(pair))), id, None)
            if id.as_ref().is_none_or(|id| id.as_bytes() == pair.user()) =>
        {
            auth.issue_token(Some((pair.user(), pair.password())), wanted)
        }
        (Ok(Some(Authorization::Basic(_))), _, _) => return Err(TokenError::TwoCredentials),
        (Ok(None), Some(id), Some(secret)) => {
            auth.issue_token(Some((id.as_bytes(), secret.expose().as_bytes())), wanted)
        }
        (Ok(None | Some(Authorization::Bearer(_))) | Err(InvalidAuthorization), _, _) => auth.issue_token(None, wanted),
    };
    issued.map_err(|refused| match refused {
        RefusedToken::WrongClient => TokenError::WrongClient,
        RefusedToken::WiderScope(caller) => TokenError::WiderScope(caller),
    })
}

impl TokenForm {
    /// Returns what the token shall be; an empty scope is none.
    fn wanted(&self) -> Result<WantedToken, TokenError> {
        let scope = self.scope.as_deref().filter(|scope| !scope.is_empty());
        let seconds = |text: &str| text.parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(WantedToken {
            scope: scope.map(str::parse).transpose().map_err(|_| TokenError::BadScope)?,
            lifetime: match &self.expires_in {
                Some(text) => Some(seconds(text).ok_or(TokenError::BadLifetime)?),
                None => None,
            },
        })
    }

    fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Self, TokenError> {
        let media_type = body::media_type(headers);
        if !media_type.is_empty() && media_type != b"application/x-www-form-urlencoded" {
            return Err(TokenError::NotAForm);
        }
        let mut form = Self::default();
        for (name, value) in url::form_urlencoded::parse(body) {
            let value = value.into_owned();
            let repeated = match name.as_ref() {
                "grant_type" => form.grant_type.replace(value).is_some(),
                "client_id" => form.client_id.replace(value).is_some(),
                "client_secret" => form.client_secret.replace(Secret::new(value)).is_some(),
                "scope" => form.scope.replace(value).is_some(),
                "expires_in" => form.expires_in.replace(value).is_some(),
                // Unknown parameters are ignored (RFC 6749 section 3.2).
                _ => false,
            };
            if repeated {
                return Err(TokenError::Repeated);
            }
        }
        Ok(form)
    }
}

impl TokenError {
    const fn body(&self) -> (StatusCode, RefusalBody) {
        let (status, error, error_description) = match self {
            Self::Unreadable(status) => (*status, "invalid_request", "the form could not be read"),
            Self::NotAForm => {
                (StatusCode::BAD_REQUEST, "invalid_request", "expected application/x-www-form-urlencoded")
            }
            Self::Repeated => (StatusCode::BAD_REQUEST, "invalid_request", "a parameter is given more than once"),
            Self::NoGrant => (StatusCode::BAD_REQUEST, "invalid_request", "grant_type is missing"),
            Self::TwoCredentials => (
                StatusCode::BAD_REQUEST,
                "invalid_request",
                "send the credentials in Authorization or in the form, not in both",
            ),
            Self::OtherGrant => {
                (StatusCode::BAD_REQUEST, "unsupported_grant_type", "the only grant type is client_credentials")
            }
            Self::BadLifetime => {
                (StatusCode::BAD_REQUEST, "invalid_request", "expires_in must be a number of seconds, at least 1")
            }
            Self::BadScope => (
                StatusCode::BAD_REQUEST,
                "invalid_scope",
                "the scope must be at most 1024 bytes, with tenant:ID and fields:NAME,NAME at most once each",
            ),
            Self::WiderScope(_) => {
                (StatusCode::BAD_REQUEST, "invalid_scope", "the scope is wider than what this caller may do")
            }
            Self::WrongClient => {
                (StatusCode::UNAUTHORIZED, "invalid_client", "a caller's name and its valid key are needed")
            }
        };
        (status, RefusalBody { error, error_description })
    }
}

impl IntoResponse for TokenError {
    fn into_response(self) -> Response {
        let (status, body) = self.body();
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

    fn read(content_type: &'static str, body: &'static str) -> Result<TokenForm, TokenError> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        TokenForm::parse(&headers, &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn a_form_is_parsed_and_unknown_parameters_are_ignored() {
        let posted = "client_id=a+b&audience=x&client_secret=%2B";
        let form = read("Application/X-www-form-urlencoded; charset=utf-8", posted).unwrap();
        assert_eq!((form.client_id.as_deref(), form.client_secret), (Some("a b"), Some(Secret::new("+"))));
        assert_eq!(read("", "").unwrap(), TokenForm::default());
        assert_eq!(read("application/json", "{}").unwrap_err(), TokenError::NotAForm);
        assert_eq!(read("", "grant_type=a&grant_type=a").unwrap_err(), TokenError::Repeated);
        assert_eq!(read("", "scope=&scope=").unwrap_err(), TokenError::Repeated);
        let wanted = |body| read("", body).and_then(|form| form.wanted());
        let wider = wanted("scope=tenant:a+fields:b&expires_in=7").unwrap();
        assert_eq!(wider.scope.unwrap().to_string(), "tenant:a fields:b");
        assert_eq!(wider.lifetime, Some(Duration::from_secs(7)));
        assert!(wanted("scope=").unwrap().scope.is_none());
        assert_eq!(wanted("scope=read").unwrap_err(), TokenError::BadScope);
        for lifetime in ["0", "", "-1", "1.5", "1h", "99999999999999999999"] {
            let body = format!("expires_in={lifetime}").leak();
            assert_eq!(wanted(body).unwrap_err(), TokenError::BadLifetime, "{lifetime}");
        }
    }
}
