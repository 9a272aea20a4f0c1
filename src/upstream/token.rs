//! A bearer token, and the request for it: client credentials (RFC 6749 section 4.4).

use std::fmt;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::domain::{Secret, TenantId};

use super::Error;
use super::exchange::GenesysResponse;
use super::http_client::HttpClient;

/// A token is renewed when its remaining lifetime is below this.
const AHEAD: Duration = Duration::from_secs(60);

/// The lifetime in seconds if the response names none (it should, RFC 6749 section 5.1): the shortest that Genesys can
/// be configured with.
const DEFAULT_LIFETIME: u64 = 300;

/// The longest accepted lifetime in seconds. The longest of Genesys is two days.
const MAX_LIFETIME: u64 = 7 * 24 * 60 * 60;

/// The largest response of a token endpoint, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// A bearer token (RFC 6750). It cannot be printed.
pub(super) struct Token {
    header: HeaderValue,
    /// When it is to be renewed.
    pub(super) renew_at: Instant,
    /// When it expires.
    pub(super) expires_at: Instant,
    scope: Box<str>,
}

impl Token {
    /// Returns the scopes that the token response named.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.split_ascii_whitespace()
    }

    /// Returns the value of an `Authorization` header, marked as sensitive.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// The OAuth client of a tenant, and its token endpoint.
#[derive(Debug)]
pub(super) struct ClientCredentials {
    /// The tenant of the client, for the log.
    pub(super) tenant: TenantId,
    /// The token endpoint.
    pub(super) url: Url,
    /// The id of the client.
    pub(super) client_id: String,
    /// The secret of the client.
    pub(super) client_secret: Secret,
}

impl ClientCredentials {
    /// Requests a token until `deadline`.
    pub(super) async fn request_token(&self, client: &HttpClient, deadline: Instant) -> Result<Token, Error> {
        // The SDKs of Genesys do not form-encode id and secret first, as RFC 6749 section 2.3.1 says. For the
        // characters that Genesys issues there is no difference.
        let request = client
            .post(self.url.clone())
            .basic_auth(&self.client_id, Some(self.client_secret.expose()))
            .form(&[("grant_type", "client_credentials")]);
        let requested_at = Instant::now();
        let response = GenesysResponse::receive(request, MAX_RESPONSE, deadline).await?;
        match response.status {
            StatusCode::OK => read_token(&response.body, requested_at),
            StatusCode::BAD_REQUEST => Err(Error::Denied { status: response.status.as_u16() }),
            _ => Err(response.error()),
        }
    }
}

/// An access token response (RFC 6749 section 5.1).
#[derive(Deserialize)]
struct TokenResponse {
    access_token: String,
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<Lifetime>,
    #[serde(default)]
    scope: Option<String>,
}

/// `expires_in`, in seconds. RFC 6749 wants an integer; some gateways send a fraction or a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lifetime {
    Number(f64),
    Text(String),
}

impl Lifetime {
    /// Returns the whole seconds; `None` for what is not a number of seconds.
    fn seconds(&self) -> Option<u64> {
        let seconds = match self {
            Self::Number(seconds) => *seconds,
            Self::Text(text) => text.trim().parse().ok()?,
        };
        if seconds.is_nan() {
            return None;
        }
        let seconds = Duration::try_from_secs_f64(seconds.min(Duration::from_secs(MAX_LIFETIME).as_secs_f64()));
        seconds.ok().map(|seconds| seconds.as_secs())
    }
}

/// Parses an access token response. The lifetime counts from the request, the earliest moment at which it can have
/// started.
fn read_token(body: &[u8], requested_at: Instant) -> Result<Token, Error> {
    const UNUSABLE: Error = Error::Unusable { reason: "not a bearer token" };
    let response: TokenResponse = serde_json::from_slice(body).map_err(|_| UNUSABLE)?;
    let is_bearer = response.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    if !is_bearer || response.access_token.is_empty() {
        return Err(UNUSABLE);
    }
    let mut header = HeaderValue::try_from(format!("Bearer {}", response.access_token)).map_err(|_| UNUSABLE)?;
    header.set_sensitive(true);
    let lifetime = match response.expires_in {
        Some(lifetime) => lifetime.seconds().ok_or(UNUSABLE)?,
        None => DEFAULT_LIFETIME,
    };
    let lifetime = Duration::from_secs(lifetime.clamp(1, MAX_LIFETIME));
    let expires_at = requested_at + lifetime;
    let scope = response.scope.unwrap_or_default().into_boxed_str();
    Ok(Token { header, renew_at: expires_at - AHEAD.min(lifetime / 2), expires_at, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Token, Error> {
        read_token(body.as_bytes(), Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_a_minute_ahead_or_at_half_its_lifetime() {
        let renewed_after = |expires_in: &str| {
            let token = read(&format!(r#"{{"access_token":"t"{expires_in}}}"#)).unwrap();
            (token.renew_at - Instant::now()).as_secs()
        };
        assert_eq!(renewed_after(r#","expires_in":86399"#), 86399 - 60);
        for ninety in [r#","expires_in":90"#, r#","expires_in":90.5"#, r#","expires_in":"90""#] {
            assert_eq!(renewed_after(ninety), 45, "{ninety}");
        }
        assert_eq!(renewed_after(r#","expires_in":2"#), 1);
        assert_eq!(renewed_after(""), 240);
        assert_eq!(renewed_after(&format!(r#","expires_in":{}"#, u64::MAX)), MAX_LIFETIME - 60);
    }

    #[test]
    fn a_response_without_a_bearer_token_is_unusable() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
            r#"{"access_token":"t","expires_in":-1}"#,
            r#"{"access_token":"t","expires_in":"soon"}"#,
            r#"{"access_token":"t","expires_in":"NaN"}"#,
        ] {
            assert!(matches!(read(body), Err(Error::Unusable { .. })), "{body}");
        }
    }

    #[test]
    fn the_scopes_of_a_response_are_parsed() {
        let scopes = |body: &str| read(body).unwrap().scopes().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(scopes(r#"{"access_token":"t","scope":"a b:c"}"#), ["a", "b:c"]);
        for none in
            [r#"{"access_token":"t"}"#, r#"{"access_token":"t","scope":""}"#, r#"{"access_token":"t","scope":null}"#]
        {
            assert!(scopes(none).is_empty(), "{none}");
        }
        assert!(read(r#"{"access_token":"t","scope":["cloud.cust.write"]}"#).is_err(), "scopes that cannot be checked");
    }

    #[test]
    fn a_token_cannot_be_printed() {
        let token = read(r#"{"access_token":"planted","token_type":"Bearer"}"#).unwrap();
        assert_eq!(token.header(), "Bearer planted");
        assert!(!format!("{token:?} {:?}", token.header()).contains("planted"));
    }
}
