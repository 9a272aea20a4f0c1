//! Survey: what Genesys reports about one tenant's OAuth client and about its events, for `profile-edge doctor`.
//!
//! It requests a token of its own and reads; it changes nothing, uses no budget, and sends six requests at most: the
//! token, the two documents about it, a contact that does not exist, the topics of notifications and the services of
//! audits. Nothing of the answers is kept but what [`Survey`] names.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::{CustomerId, TenantId, Timestamp};
use crate::invalid::InvalidSetting;

use super::audits::EXTERNAL_CONTACTS;
use super::endpoints::ProfileUrl;
use super::exchange::GenesysResponse;
use super::http_client::HttpClient;
use super::open::{TenantConfig, TenantSettings};
use super::privileges::PrivilegeVerifier;
use super::token::{ClientCredentials, Token};
use super::{Error, transport};

/// The topic of changed contacts.
const CONTACTS: &str = "v2.externalcontacts.contacts.{id}";

/// The largest document that is read, in bytes: the topics come with descriptions.
const MAX_DOCUMENT: usize = 8 * 1024 * 1024;

/// The headers of some gateways with the number of requests in the current minute, and the number allowed.
const RATE: [&str; 2] = ["inin-ratelimit-count", "inin-ratelimit-allowed"];

/// What was found about one tenant.
#[derive(Debug)]
pub struct Survey {
    /// The hosts of the API and of the token endpoint.
    pub hosts: [String; 2],
    /// What the token allowed to find, or why there is none.
    pub token: Result<TokenSurvey, Error>,
}

/// What was found with a token.
#[derive(Debug)]
pub struct TokenSurvey {
    /// How long the token is valid.
    pub lifetime: Duration,
    /// Whether its privileges are those of the configuration.
    pub privileges: Result<(), Error>,
    /// Whether contacts can be read.
    pub reading: Result<(), Error>,
    /// The transports of the topic of changed contacts; `None` if the organisation has no such topic.
    pub transports: Result<Option<Vec<String>>, Error>,
    /// Whether the realtime audits include external contacts.
    pub audits: Result<bool, Error>,
    /// How far the clock of Genesys is from ours (positive: ours is behind), if the answers have a `Date`.
    pub clock_offset_ms: Option<i64>,
    /// The number of requests in this minute and the number allowed, where the answers name them.
    pub rate: Option<(u64, u64)>,
}

#[derive(Deserialize)]
struct Topics {
    entities: Vec<Topic>,
}

#[derive(Deserialize)]
struct Topic {
    id: String,
    #[serde(default)]
    transports: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct AuditServices {
    services: Vec<AuditService>,
}

#[derive(Deserialize)]
struct AuditService {
    name: String,
}

/// Asks Genesys about a tenant; each request has `patience`.
///
/// # Errors
///
/// The configuration of the tenant is invalid, or this machine has no certificate authorities.
pub async fn survey(
    tenant: &TenantId,
    config: &TenantConfig,
    patience: Duration,
    clock: &SharedClock,
) -> Result<Survey, InvalidSetting> {
    let settings = TenantSettings::parse(config)?;
    let urls = config.base_urls()?;
    let client = HttpClient::new(settings.needs_tls)?;
    let hosts = [transport::host(&urls.api), transport::host(&urls.login)];
    let credentials = ClientCredentials {
        tenant: tenant.clone(),
        url: settings.token_url,
        client_id: config.client_id.clone(),
        client_secret: config.client_secret.clone(),
    };
    let verifier = PrivilegeVerifier::new(client.clone(), config.privilege_policy(), settings.introspection);
    let token = match credentials.request_token(&client, Instant::now() + patience).await {
        Ok(token) => token,
        Err(error) => return Ok(Survey { hosts, token: Err(error) }),
    };
    let lifetime = token.expires_at.saturating_duration_since(Instant::now());
    let session = Session { client, token, api: urls.api, deadline: Instant::now() + patience };
    let before = clock.now();
    let (privileges, reading, topics, audits) = tokio::join!(
        verifier.verify(&session.token, session.deadline),
        session.read_a_contact(&settings.profile_url),
        session.get("/api/v2/notifications/availabletopics?expand=transports"),
        session.get("/api/v2/audits/query/realtime/servicemapping"),
    );
    let headers = topics.as_ref().or(audits.as_ref()).map(|answer| &answer.headers).ok();
    Ok(Survey {
        hosts,
        token: Ok(TokenSurvey {
            lifetime,
            privileges,
            reading,
            clock_offset_ms: headers.and_then(|headers| offset(headers, before, clock.now())),
            rate: headers.and_then(rate),
            transports: topics.and_then(|answer| transports(&answer)),
            audits: audits.and_then(|answer| has_audits(&answer)),
        }),
    })
}

/// A token and where it is used.
struct Session {
    client: HttpClient,
    token: Token,
    api: Url,
    deadline: Instant,
}

impl Session {
    async fn get(&self, path: &str) -> Result<GenesysResponse, Error> {
        let url = format!("{}{path}", self.api.as_str().trim_end_matches('/'));
        self.send(Url::parse(&url).map_err(|_| Error::Unreachable(None))?).await
    }

    /// Reads a contact that nobody has: no profile is transferred.
    async fn read_a_contact(&self, profile: &ProfileUrl) -> Result<(), Error> {
        // A UUID is a valid id.
        let nobody: CustomerId = Uuid::new_v4().to_string().parse().map_err(|_| Error::Unreachable(None))?;
        let answer = self.send(profile.of(&nobody, None)?).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::GONE => Ok(()),
            _ => Err(answer.error()),
        }
    }

    async fn send(&self, url: Url) -> Result<GenesysResponse, Error> {
        let request = self.client.get(url).header(header::AUTHORIZATION, self.token.header());
        GenesysResponse::receive(request.header(header::ACCEPT, "application/json"), MAX_DOCUMENT, self.deadline).await
    }
}

fn parse<T: for<'de> Deserialize<'de>>(answer: &GenesysResponse, unusable: &'static str) -> Result<T, Error> {
    if answer.status != StatusCode::OK {
        return Err(answer.error());
    }
    serde_json::from_slice(&answer.body).map_err(|_| Error::Unusable { reason: unusable })
}

fn transports(answer: &GenesysResponse) -> Result<Option<Vec<String>>, Error> {
    let topics: Topics = parse(answer, "not a list of topics")?;
    let contacts = topics.entities.into_iter().find(|topic| topic.id == CONTACTS);
    Ok(contacts.map(|topic| topic.transports.unwrap_or_default()))
}

fn has_audits(answer: &GenesysResponse) -> Result<bool, Error> {
    let services: AuditServices = parse(answer, "not a list of audited services")?;
    Ok(services.services.iter().any(|service| service.name == EXTERNAL_CONTACTS))
}

/// Returns how far the `Date` of an answer, which has whole seconds, lies outside the time between request and answer.
fn offset(headers: &HeaderMap, before: Timestamp, after: Timestamp) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let date = i64::try_from(date.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()?;
    let (before, after) = (before.as_millis(), after.as_millis());
    Some(if date > after { date - after } else { (date + 1_000 - before).min(0) })
}

fn rate(headers: &HeaderMap) -> Option<(u64, u64)> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    Some((number(RATE[0])?, number(RATE[1])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_only_outside_the_time_of_the_exchange() {
        let headers = |date: &str| HeaderMap::from_iter([(header::DATE, date.parse().unwrap())]);
        let at = |seconds: i64| Timestamp::from_millis(784_111_777_000 + seconds * 1_000);
        let date = headers("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(offset(&date, at(-5), at(5)), Some(0));
        assert_eq!(offset(&date, at(0), at(0)), Some(0));
        assert_eq!(offset(&date, at(-20), at(-10)), Some(10_000));
        assert_eq!(offset(&date, at(601), at(602)), Some(-600_000));
        assert_eq!(offset(&HeaderMap::new(), at(0), at(1)), None);
    }
}
