//! Picks the upstream adapter of each tenant.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::domain::Secret;

/// `[upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The longest that one fetch may take, retries included; below `lookup.lease_ttl`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How many requests may be under way at once, per tenant.
    pub max_in_flight: usize,
}

/// `[tenant.upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// A Genesys region such as `us_east_1`; instead of the two URLs.
    #[serde(default)]
    pub region: Option<String>,
    /// The base URL of the API.
    #[serde(default)]
    pub api_url: Option<Url>,
    /// The base URL of the token endpoint.
    #[serde(default)]
    pub login_url: Option<Url>,
    /// The OAuth client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// The path of a profile; `{customer_id}` is replaced by the percent-encoded id.
    #[serde(default = "default_profile_path")]
    pub profile_path: String,
    /// The budget of requests, per process.
    #[serde(default = "default_requests_per_minute")]
    pub requests_per_minute: u32,
}

fn default_profile_path() -> String {
    "/api/v2/externalcontacts/contacts/{customer_id}".to_owned()
}

const fn default_requests_per_minute() -> u32 {
    300
}
