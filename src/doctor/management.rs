//! RabbitMQ's management API: reads what AMQP does not show.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::config::Config;
use crate::tls::is_loopback;

use super::ANSWER;

/// The name that connections of this service have.
const OURS: &str = "profile-edge";

/// A queue, as the management API shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ManagedQueue {
    pub(super) name: String,
    #[serde(default)]
    pub(super) policy: Option<String>,
    #[serde(default)]
    pub(super) effective_policy_definition: Option<Value>,
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
    pub(super) fn new(config: &Config, given: Option<&Url>) -> Option<Self> {
        let broker = config.queue.amqp.addresses().ok()?.into_iter().next()?;
        let is_encrypted = broker.scheme() == "amqps";
        let base = match given {
            Some(url) => url.clone(),
            None => {
                let (scheme, port) = if is_encrypted { ("https", 15_671) } else { ("http", 15_672) };
                Url::parse(&format!("{scheme}://{}:{port}", broker.host_str()?)).ok()?
            }
        };
        // The password must not travel in clear where the link to the broker does not.
        let is_safe = base.scheme() == "https" || is_loopback(&base) || !is_encrypted;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let vhost = broker.path().trim_start_matches('/');
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(ANSWER).no_proxy().redirect(reqwest::redirect::Policy::none());
        // Loading the CAs would fail on a machine that has none.
        let http = if base.scheme() == "http" { http.tls_certs_only([]) } else { http };
        Some(Self {
            vhost: if vhost.is_empty() { "%2F".to_owned() } else { vhost.to_owned() },
            username: decoded(broker.username()),
            password: decoded(broker.password().unwrap_or_default()),
            http: http.build().ok().filter(|_| is_safe)?,
            base,
        })
    }

    pub(super) async fn read(&self) -> Result<Managed, String> {
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

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let url = format!("{}/api/{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.http.get(url).basic_auth(&self.username, Some(&self.password));
        let answer =
            request.send().await.map_err(|error| if error.is_timeout() { "no answer" } else { "no connection" })?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        answer.json().await.map_err(|_| "not the answer of a RabbitMQ".to_owned())
    }
}
