//! RabbitMQ's management API: reads what AMQP does not show.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use reqwest::{Certificate, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;

use crate::queue::amqp::Config;
use crate::tls::is_loopback;

use super::ANSWER;

/// The name that connections of this service have.
const OURS: &str = "profile-edge";

/// The parts of a policy that remove events, or limit how often they may be delivered.
const HARMFUL: [&str; 7] = [
    "message-ttl",
    "expires",
    "max-length",
    "max-length-bytes",
    "dead-letter-exchange",
    "dead-letter-routing-key",
    "delivery-limit",
];

/// Why the management API cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{0}")]
    Unusable(&'static str),
    #[error("status {}", .0.as_u16())]
    Status(StatusCode),
}

impl ApiError {
    /// Returns whether the API refuses the user.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

impl From<&'static str> for ApiError {
    fn from(why: &'static str) -> Self {
        Self::Unusable(why)
    }
}

/// A queue, as the management API shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ManagedQueue {
    pub(super) name: String,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: Option<Value>,
}

impl ManagedQueue {
    /// Returns what the policy of the queue does to our events, if that is harmful.
    pub(super) fn harm(&self) -> Option<String> {
        let harmful = harmful(self.effective_policy_definition.as_ref()?.as_object()?);
        let policy = self.policy.as_deref().unwrap_or("an operator policy");
        (!harmful.is_empty()).then(|| format!("the policy {policy} sets {}", harmful.join(", ")))
    }
}

fn harmful(rules: &Map<String, Value>) -> Vec<&'static str> {
    // A delivery limit of -1 means that there is no limit.
    let is_set = |name: &&str| rules.get(*name).is_some_and(|value| value.as_i64().is_none_or(|limit| limit >= 0));
    HARMFUL.into_iter().filter(is_set).collect()
}

/// A consumer, as the management API shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ManagedConsumer {
    pub(super) queue: Named,
    #[serde(default)]
    pub(super) channel_details: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ManagedConnection {
    pub(super) name: String,
    #[serde(default)]
    user_provided_name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Overview {
    #[serde(default)]
    rabbitmq_version: Option<String>,
}

/// What the management API shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed {
    pub(super) version: Option<String>,
    pub(super) queues: Vec<ManagedQueue>,
    pub(super) consumers: Vec<ManagedConsumer>,
    /// The connections of this service.
    pub(super) ours: HashSet<String>,
}

/// The management API of the broker.
pub(super) struct Api {
    pub(super) base: Url,
    vhost: String,
    username: String,
    password: String,
    http: reqwest::Client,
}

impl Api {
    /// Creates a client of the API at the `given` address, or the configured one, or the one that a node of the broker has by
    /// default. It reads a file.
    pub(super) fn new(config: &Config, given: Option<&Url>, node: usize) -> Result<Self, ApiError> {
        const UNKNOWN: &str = "its address is not known";
        let brokers = config.addresses().map_err(|_| UNKNOWN)?;
        let broker = brokers.get(node % brokers.len().max(1)).ok_or(UNKNOWN)?;
        let host = broker.host_str().ok_or(UNKNOWN)?;
        let is_encrypted = broker.scheme() == "amqps";
        let base = match given.or(config.management_url.as_ref()) {
            Some(url) => url.clone(),
            None => {
                let (scheme, port) = if is_encrypted { ("https", 15_671) } else { ("http", 15_672) };
                Url::parse(&format!("{scheme}://{host}:{port}")).map_err(|_| UNKNOWN)?
            }
        };
        if is_encrypted && base.scheme() != "https" && !is_loopback(&base) {
            return Err("it would get the password in clear, unlike the broker".into());
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let vhost = broker.path().trim_start_matches('/');
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(ANSWER).no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = match &config.tls.ca {
            // Loading the authorities of the machine would fail where it has none.
            _ if base.scheme() == "http" => http.tls_certs_only([]),
            Some(file) if base.host_str() == Some(host) => {
                let unreadable = "the authorities in queue.amqp.tls.ca cannot be read";
                let found = std::fs::read(file).map_err(|_| unreadable)?;
                http.tls_certs_only(Certificate::from_pem_bundle(&found).map_err(|_| unreadable)?)
            }
            _ => http,
        };
        Ok(Self {
            vhost: if vhost.is_empty() { "%2F".to_owned() } else { vhost.to_owned() },
            username: decoded(broker.username()),
            password: decoded(broker.password().unwrap_or_default()),
            http: http.build().map_err(|_| "this machine has no certificate authorities")?,
            base,
        })
    }

    pub(super) async fn read(&self) -> Result<Managed, ApiError> {
        let (queues, consumers) = (format!("queues/{}", self.vhost), format!("consumers/{}", self.vhost));
        let (overview, queues, consumers, connections) = tokio::join!(
            self.get::<Overview>("overview"),
            self.get::<Vec<ManagedQueue>>(&queues),
            self.get::<Vec<ManagedConsumer>>(&consumers),
            self.get::<Vec<ManagedConnection>>("connections"),
        );
        let ours = connections?.into_iter().filter(|one| one.user_provided_name.as_deref() == Some(OURS));
        Ok(Managed {
            version: overview?.rabbitmq_version,
            queues: queues?,
            consumers: consumers?,
            ours: ours.map(|connection| connection.name).collect(),
        })
    }

    /// Returns a queue, if it exists.
    pub(super) async fn queue(&self, name: &str) -> Result<Option<ManagedQueue>, ApiError> {
        let answer = self.send(&format!("queues/{}/{name}", self.vhost)).await?;
        if answer.status() == StatusCode::NOT_FOUND { Ok(None) } else { read(answer).await.map(Some) }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        read(self.send(path).await?).await
    }

    async fn send(&self, path: &str) -> Result<Response, &'static str> {
        let url = format!("{}/api/{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.http.get(url).basic_auth(&self.username, Some(&self.password));
        request.send().await.map_err(|error| if error.is_timeout() { "no answer" } else { "no connection" })
    }
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, ApiError> {
    if !answer.status().is_success() {
        return Err(ApiError::Status(answer.status()));
    }
    answer.json().await.map_err(|_| "not the answer of a RabbitMQ".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_of_a_policy_that_remove_events_are_named() {
        let harm = |rules: Value| {
            let queue = json!({ "name": "ours", "policy": "strict", "effective_policy_definition": rules });
            serde_json::from_value::<ManagedQueue>(queue).unwrap().harm()
        };
        let text = harm(json!({ "message-ttl": 60_000, "ha-mode": "all" }));
        assert_eq!(text.as_deref(), Some("the policy strict sets message-ttl"));
        let text = harm(json!({ "dead-letter-exchange": "dlx", "delivery-limit": 5 }));
        assert_eq!(text.as_deref(), Some("the policy strict sets dead-letter-exchange, delivery-limit"));
        assert_eq!(harm(json!({ "delivery-limit": -1 })), None);
        // A queue without policies has an empty list.
        assert_eq!(harm(json!([])), None);
    }
}
