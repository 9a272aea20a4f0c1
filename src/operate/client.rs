//! The command line's client of the admin listener.

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Url;

use crate::domain::Secret;

use super::trust::Tls;

/// The longest that an operator waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that looking through many dead letters takes, or until a replay begins.
const LONG: Duration = Duration::from_secs(600);

/// A replay takes as long as it takes: it is silence that ends the wait.
const NO_END: Duration = Duration::from_secs(30 * 86_400);

/// The longest silence of a service that answers.
const SILENCE: Duration = Duration::from_secs(15);

/// The longest line about a replay, in bytes.
const MAX_LINE: usize = 64 * 1024;

/// A client of a running service's admin listener.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<Secret>,
}

/// A command got no answer that it could use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The admin URL is not one.
    #[error("--admin: expected a URL such as http://127.0.0.1:8081")]
    Url,
    /// What TLS needs is not there.
    #[error("{reason}")]
    Tls {
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// The service is not there, or not able to answer now.
    #[error("{reason}")]
    Unavailable {
        /// What happened, in plain words.
        reason: String,
    },
    /// The service refused the command.
    #[error("{reason}")]
    Refused {
        /// What the service said.
        reason: String,
    },
}

impl Client {
    /// Makes a client of the listener at `base`, presenting `key` if one is given; `tls` is for an https one.
    ///
    /// # Errors
    ///
    /// `base` is not an HTTP URL, or what an https one needs cannot be used.
    pub fn new(base: &str, key: Option<Secret>, tls: &Tls) -> Result<Self, Error> {
        let base: Url = base.parse().map_err(|_| Error::Url)?;
        // Another provider may have been installed before; either serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder().timeout(TIMEOUT).no_proxy();
        match base.scheme() {
            // A machine without any root certificates can still speak to its own loopback.
            "http" => http = http.tls_certs_only([]),
            "https" => http = tls.apply(http)?,
            _ => return Err(Error::Url),
        }
        let http = http.build().map_err(|error| Error::Unavailable { reason: error.to_string() })?;
        Ok(Self { http, base, key })
    }

    /// Answers if the service is ready.
    ///
    /// # Errors
    ///
    /// It is not, or is not there.
    pub async fn ready(&self) -> Result<(), Error> {
        let answer = self.http.get(self.url("/readyz")).send().await.map_err(|_| self.nobody())?;
        if answer.status() == StatusCode::OK {
            return Ok(());
        }
        let body: Value = answer.json().await.unwrap_or_default();
        let status = body["status"].as_str().unwrap_or("unknown");
        Err(Error::Unavailable { reason: format!("not ready: {status}") })
    }

    /// Asks for the state of a customer's key.
    ///
    /// # Errors
    ///
    /// The service is not there, or refuses.
    pub async fn inspect(&self, tenant: &str, customer: &str) -> Result<Value, Error> {
        let body = json!({ "tenantId": tenant, "customerId": customer });
        self.post("/admin/inspect", &body).await
    }

    /// Asks to publish an event about a customer.
    ///
    /// # Errors
    ///
    /// The service is not there, or refuses.
    pub async fn invalidate(&self, tenant: &str, customer: &str, force: bool) -> Result<Value, Error> {
        let body = json!({ "tenantId": tenant, "customerId": customer, "force": force });
        self.post("/admin/invalidate", &body).await
    }

    /// Asks for the oldest dead letters.
    ///
    /// # Errors
    ///
    /// The service is not there, or refuses.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<Value>, Error> {
        let request = self.http.get(self.url("/admin/dead-letters")).timeout(LONG).query(&[("limit", limit)]);
        let mut answer = self.ask(request).await?;
        Ok(answer["deadLetters"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Asks for one dead letter.
    ///
    /// # Errors
    ///
    /// There is none of this id, the service is not there, or refuses.
    pub async fn dead_letter(&self, id: &str) -> Result<Value, Error> {
        let mut url = self.url("/admin/dead-letters");
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(id);
        }
        self.ask(self.http.get(url).timeout(LONG)).await
    }

    /// Asks to put dead letters back: those of these ids, or all.
    ///
    /// # Errors
    ///
    /// One of the ids is not there or no event, the service is not there, or refuses.
    pub async fn redrive(&self, ids: &[String]) -> Result<Value, Error> {
        self.post_long("/admin/dead-letters/redrive", &letters(ids)).await
    }

    /// Asks to remove dead letters for good: those of these ids, or all.
    ///
    /// # Errors
    ///
    /// One of the ids is not there, the service is not there, or refuses.
    pub async fn purge(&self, ids: &[String]) -> Result<Value, Error> {
        self.post_long("/admin/dead-letters/purge", &letters(ids)).await
    }

    /// Asks for a replay, and returns how it ended; `told` is called with how far it is, about twice a second.
    ///
    /// # Errors
    ///
    /// The order is not in order, the service is not there, refuses, or goes away meanwhile.
    pub async fn replay(&self, order: &Value, mut told: impl FnMut(&Value)) -> Result<Value, Error> {
        let request = self.http.post(self.url("/admin/replay")).timeout(NO_END).json(order);
        let mut answer = timeout(LONG, self.send(request)).await.unwrap_or_else(|_elapsed| Err(self.late()))?;
        if !answer.status().is_success() {
            return self.read(answer).await;
        }
        let (mut text, mut last) = (Vec::new(), Value::Null);
        let gone = || Error::Unavailable { reason: "the service went away before the replay was done".to_owned() };
        loop {
            let said = timeout(SILENCE, answer.chunk()).await;
            let Some(bytes) = said.ok().and_then(Result::ok).ok_or_else(gone)? else { break };
            text.extend_from_slice(&bytes);
            if text.len() > MAX_LINE {
                return Err(gone());
            }
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                last = serde_json::from_slice(&line).map_err(|_| gone())?;
                told(&last);
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
            .map_err(|error| if error.is_timeout() && !error.is_connect() { self.late() } else { self.nobody() })
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

    fn nobody(&self) -> Error {
        let reason = format!("no profile-edge answers at {}", self.base);
        Error::Unavailable { reason }
    }
}

fn letters(ids: &[String]) -> Value {
    if ids.is_empty() { json!({ "all": true }) } else { json!({ "ids": ids }) }
}

/// Formats an answer for people: a line for each value, named by its path.
#[must_use]
pub fn lines(answer: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", answer, &mut lines);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Formats one dead letter for people, on one line.
#[must_use]
pub fn line(letter: &Value) -> String {
    let text = |name: &str| letter[name].as_str().unwrap_or("-");
    let what = match (letter["eventId"].as_str(), letter["length"].as_u64()) {
        (Some(event), _) => format!("{} of tenant {}, event {event}", text("kind"), text("tenantId")),
        (None, Some(length)) => format!("{length} bytes that are no event, SHA-256 {}", text("sha256")),
        (None, None) => "-".to_owned(),
    };
    format!("{}  {}  {}  {what}\n", text("id"), text("since"), text("reason"))
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&below, member, lines);
            }
        }
        Value::String(text) => lines.push((path.to_owned(), text.clone())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            lines.push((path.to_owned(), value.to_string()));
        }
    }
}
