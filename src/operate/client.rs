//! The client of the admin listener, for the command line.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, redirect};
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Url;

use crate::domain::Secret;
use crate::tls::is_loopback;

pub use super::answer_text::{line, lines};
pub use super::client_error::Error;

use super::trust::Tls;

/// The deadline of an ordinary request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The deadline of a search through many dead letters, and of the start of a replay.
const LONG: Duration = Duration::from_secs(600);

/// A replay has no deadline of its own; only [`SILENCE`] ends the wait.
const NO_END: Duration = Duration::from_secs(30 * 86_400);

/// How long the service may send nothing during a replay.
const SILENCE: Duration = Duration::from_secs(15);

/// The longest line about a replay, in bytes.
const MAX_LINE: usize = 64 * 1024;

/// The HTTP client that this client uses.
pub type HttpClient = reqwest::Client;

/// A client of a running service's admin listener.
#[derive(Debug)]
pub struct Client {
    http: HttpClient,
    base: Url,
    key: Option<Secret>,
}

impl Client {
    /// Creates a client of the listener at `base`, which sends `key` if one is given; `tls` is used for https.
    ///
    /// # Errors
    ///
    /// `base` is not an HTTP URL, the key would be sent in clear to another machine, or a file of `tls` cannot be used.
    pub fn new(base: &str, key: Option<Secret>, tls: &Tls) -> Result<Self, Error> {
        let base: Url = base.parse().map_err(|_| Error::Url)?;
        if base.scheme() == "http" && key.is_some() && !is_loopback(&base) {
            return Err(Error::PlainKey);
        }
        let http = http_client(&base, tls)?;
        Ok(Self { http, base, key })
    }

    /// Succeeds if the service is ready; with `deep` also only if none of its dependencies is down.
    ///
    /// # Errors
    ///
    /// The service is not ready or cannot be reached, or something is down.
    pub async fn ready(&self, deep: bool) -> Result<(), Error> {
        let mut request = self.http.get(self.url("/readyz"));
        if let Some(key) = self.key.as_ref().filter(|_| deep) {
            request = request.bearer_auth(key.expose());
        }
        let answer = request.send().await.map_err(|_| self.unreachable())?;
        let is_ready = answer.status() == StatusCode::OK;
        if is_ready && !deep {
            return Ok(());
        }
        let body: Value = answer.json().await.unwrap_or_default();
        if !is_ready {
            let status = body["status"].as_str().unwrap_or("unknown");
            return Err(Error::Unavailable { reason: format!("not ready: {status}") });
        }
        let reasons = &body["reasons"];
        let describe = |name: &str| match reasons[name].as_str() {
            Some(reason) => format!("{name} ({reason})"),
            None => name.to_owned(),
        };
        let down = body["degraded"].as_array().into_iter().flatten().filter_map(Value::as_str);
        match down.map(describe).collect::<Vec<_>>() {
            down if down.is_empty() => Ok(()),
            down => Err(Error::Unavailable { reason: format!("degraded: {}", down.join(", ")) }),
        }
    }

    /// Requests the state of a customer's entry.
    ///
    /// # Errors
    ///
    /// The service cannot be reached, or refuses the command.
    pub async fn inspect(&self, tenant: &str, customer: &str) -> Result<Value, Error> {
        let body = json!({ "tenantId": tenant, "customerId": customer });
        self.post("/admin/inspect", &body).await
    }

    /// Requests that an event about a customer is published.
    ///
    /// # Errors
    ///
    /// The service cannot be reached, or refuses the command.
    pub async fn invalidate(&self, tenant: &str, customer: &str, force: bool) -> Result<Value, Error> {
        let body = json!({ "tenantId": tenant, "customerId": customer, "force": force });
        self.post("/admin/invalidate", &body).await
    }

    /// Requests that all records of a tenant count as due for refresh, or with `hard` as missing.
    ///
    /// # Errors
    ///
    /// The service cannot be reached, or refuses the command.
    pub async fn clear(&self, tenant: &str, hard: bool) -> Result<Value, Error> {
        self.post("/admin/clear", &json!({ "tenantId": tenant, "hard": hard })).await
    }

    /// Requests the oldest dead letters.
    ///
    /// # Errors
    ///
    /// The service cannot be reached, or refuses the command.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<Value>, Error> {
        let request = self.http.get(self.url("/admin/dead-letters")).timeout(LONG).query(&[("limit", limit)]);
        let mut answer = self.ask(request).await?;
        Ok(answer["deadLetters"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Requests one dead letter.
    ///
    /// # Errors
    ///
    /// There is no dead letter with this id, or the service cannot be reached or refuses the command.
    pub async fn dead_letter(&self, id: &str) -> Result<Value, Error> {
        let mut url = self.url("/admin/dead-letters");
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(id);
        }
        self.ask(self.http.get(url).timeout(LONG)).await
    }

    /// Requests that dead letters are put back: those with these ids, or all if there are none.
    ///
    /// # Errors
    ///
    /// An id is unknown or holds no event, or the service cannot be reached or refuses the command.
    pub async fn redrive(&self, ids: &[String]) -> Result<Value, Error> {
        self.post_long("/admin/dead-letters/redrive", &selection(ids)).await
    }

    /// Requests that dead letters are removed permanently: those with these ids, or all if there are none.
    ///
    /// # Errors
    ///
    /// An id is unknown, or the service cannot be reached or refuses the command.
    pub async fn purge(&self, ids: &[String]) -> Result<Value, Error> {
        self.post_long("/admin/dead-letters/purge", &selection(ids)).await
    }

    /// Requests what the outbox holds.
    ///
    /// # Errors
    ///
    /// The service has no outbox, or cannot be reached.
    pub async fn outbox(&self) -> Result<Value, Error> {
        self.ask(self.http.get(self.url("/admin/outbox"))).await
    }

    /// Requests that the outbox is handed on, within `patience`, and returns what it holds afterwards.
    ///
    /// # Errors
    ///
    /// The service has no outbox, or cannot be reached.
    pub async fn drain_outbox(&self, patience: Duration) -> Result<Value, Error> {
        let body = json!({ "timeoutSeconds": patience.as_secs() });
        self.ask(self.http.post(self.url("/admin/outbox/drain")).timeout(patience + TIMEOUT).json(&body)).await
    }

    /// Requests a replay and returns its last progress; `report` is called with the progress about twice a second.
    ///
    /// # Errors
    ///
    /// The request is invalid, or the service cannot be reached, refuses it or closes the connection before the end.
    pub async fn replay(&self, request: &Value, mut report: impl FnMut(&Value)) -> Result<Value, Error> {
        let request = self.http.post(self.url("/admin/replay")).timeout(NO_END).json(request);
        let mut answer = timeout(LONG, self.send(request)).await.unwrap_or_else(|_elapsed| Err(self.late()))?;
        if !answer.status().is_success() {
            return self.read(answer).await;
        }
        let (mut text, mut last) = (Vec::new(), Value::Null);
        let gone = || Error::Unavailable {
            reason: "the service closed the connection before the end of the replay".to_owned(),
        };
        loop {
            let chunk = timeout(SILENCE, answer.chunk()).await;
            let Some(bytes) = chunk.ok().and_then(Result::ok).ok_or_else(gone)? else { break };
            text.extend_from_slice(&bytes);
            if text.len() > MAX_LINE {
                return Err(gone());
            }
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                last = serde_json::from_slice(&line).map_err(|_| gone())?;
                report(&last);
            }
        }
        match last["status"].as_str() {
            Some("done" | "stopped" | "failed") => Ok(last),
            Some(_) | None => Err(gone()),
        }
    }

    async fn post_long(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.ask(self.http.post(self.url(path)).timeout(LONG).json(body)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.ask(self.http.post(self.url(path)).json(body)).await
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Value, Error> {
        let answer = self.send(request).await?;
        self.read(answer).await
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, Error> {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        request
            .send()
            .await
            .map_err(|error| if error.is_timeout() && !error.is_connect() { self.late() } else { self.unreachable() })
    }

    async fn read(&self, answer: Response) -> Result<Value, Error> {
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        let detail = body["detail"].as_str().unwrap_or("no details were given");
        let reason = format!("refused with status {}: {detail}", status.as_u16());
        Err(if status.is_server_error() { Error::Unavailable { reason } } else { Error::Refused { reason } })
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    fn late(&self) -> Error {
        Error::Unavailable { reason: format!("profile-edge at {} did not answer in time", self.base) }
    }

    fn unreachable(&self) -> Error {
        let reason = format!("no profile-edge answers at {}", self.base);
        Error::Unavailable { reason }
    }
}

/// Creates an HTTP client for the service at `base`; `tls` is used for https.
///
/// # Errors
///
/// `base` is not an HTTP URL, or a file of `tls` cannot be used.
pub fn http_client(base: &Url, tls: &Tls) -> Result<HttpClient, Error> {
    // Fails if a provider is installed already, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A redirect would take a key to another service.
    let http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy().redirect(redirect::Policy::none());
    let http = match base.scheme() {
        // Loading the CAs would fail on a machine that has none.
        "http" => http.tls_certs_only([]),
        "https" => tls.apply(http)?,
        _ => return Err(Error::Url),
    };
    http.build().map_err(|error| Error::Unavailable { reason: error.to_string() })
}

fn selection(ids: &[String]) -> Value {
    if ids.is_empty() { json!({ "all": true }) } else { json!({ "ids": ids }) }
}
