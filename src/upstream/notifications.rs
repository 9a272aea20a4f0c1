//! Channels of notifications at Genesys: requests for them, and their WebSockets.
//!
//! The requests have a share of the tenant's budget, as a caller has: while nothing is watched, lookups need many times as
//! much, so that they would leave nothing for what ends that. They are no evidence
//! about the contacts' service, so the breaker does not count them. A socket needs no token: the id of a channel is its
//! credential, so neither it nor the URL is ever printed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, StatusCode, header};
use reqwest::Upgraded;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use url::Url;

use crate::domain::{CustomerId, Modified, TenantId, Timestamp};

use super::exchange::{GenesysResponse, socket_client};
use super::genesys::Genesys;
use super::guard::Guard;
use super::privilege_gate::PrivilegeGate;
use super::tenants::TenantUpstreams;
use super::{Error, Requester};

/// How many contacts one channel can be subscribed to: the limit of Genesys for topics.
pub const MAX_TOPICS: usize = 1_000;

/// How long a request or a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest answer, in bytes: a thousand subscriptions with their links.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// The largest message of a socket, in bytes: a contact has half a megabyte at most.
const MAX_MESSAGE: usize = 2 * 1024 * 1024;

/// The liveness check of Genesys, which it answers with a message.
const PING: &str = "{\"message\":\"ping\"}";

/// The notifications of one tenant's Genesys. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Notifications {
    tenants: Arc<TenantUpstreams>,
    tenant: TenantId,
}

/// A channel. Whoever knows its id can read it, so it cannot be printed.
pub struct Channel {
    id: String,
    connect: Url,
    /// When it ends, by the clock of Genesys.
    pub expires: Timestamp,
    /// When the token that it was created with ends: nothing is promised for a channel after that.
    pub token_ends: Instant,
}

/// An open socket.
pub struct Socket(WebSocketStream<Upgraded>);

/// Why a socket gives no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketEnd {
    /// Genesys closed it.
    #[error("genesys closed the socket")]
    Closed,
    /// The connection broke.
    #[error("the connection of the socket broke")]
    Broken,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedChannel {
    id: String,
    connect_uri: Url,
    expires: String,
}

#[derive(Serialize)]
struct Topic {
    id: String,
}

/// Returns who spends the budget of channels. No caller has this name, because of its spaces.
fn requester() -> Requester {
    Requester::Caller("channels of notifications".into())
}

impl Notifications {
    pub(super) const fn new(tenants: Arc<TenantUpstreams>, tenant: TenantId) -> Self {
        Self { tenants, tenant }
    }

    fn guard(&self) -> Result<&Guard<Genesys>, Error> {
        self.tenants.of(&self.tenant).and_then(PrivilegeGate::admit)
    }

    /// Creates a channel.
    ///
    /// # Errors
    ///
    /// As a fetch; `Unusable` also for an answer without a channel, or with an unencrypted socket of an encrypted API.
    pub async fn create(&self) -> Result<Channel, Error> {
        let guard = self.guard()?;
        guard.aside(&requester(), PATIENCE, |genesys, deadline| Box::pin(genesys.create_channel(deadline))).await
    }

    /// Subscribes a channel to the changes of contacts; `replace` removes all that it had.
    ///
    /// # Errors
    ///
    /// As a fetch; `Unusable` also if the channel has expired, or for more than [`MAX_TOPICS`].
    pub async fn subscribe(&self, channel: &Channel, contacts: &[CustomerId], replace: bool) -> Result<(), Error> {
        let topic =
            |contact: &CustomerId| Topic { id: format!("v2.externalcontacts.contacts.{}", contact.hashed_form()) };
        let topics: Vec<_> = contacts.iter().map(topic).collect();
        let requester = requester();
        let subscribed = self.guard()?.aside(&requester, PATIENCE, |genesys, deadline| {
            Box::pin(genesys.subscribe_channel(&channel.id, &topics, replace, deadline))
        });
        subscribed.await
    }

    /// Opens the socket of a channel.
    ///
    /// # Errors
    ///
    /// The status of the refusal as of a fetch, or no connection.
    pub async fn connect(&self, channel: &Channel) -> Result<Socket, Error> {
        let url = channel.connect.clone();
        let tls = url.scheme() == "wss";
        // It reads the certificate authorities from files. A panic there is reported where it happens.
        let client = spawn_blocking(move || socket_client(tls)).await;
        let client = client.ok().and_then(Result::ok).ok_or(Error::Unreachable(None))?;
        let deadline = Instant::now() + PATIENCE;
        timeout_at(deadline, handshake(&client, url, deadline)).await.unwrap_or(Err(Error::Timeout(None)))
    }
}

impl Genesys {
    async fn create_channel(&self, deadline: Instant) -> Result<Channel, Error> {
        let token_ends = self.tokens.get(deadline).await?.expires_at;
        let answer = self.ask(|| self.client.post(self.channels_url.clone()), MAX_ANSWER, deadline).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.error());
        }
        let unusable = Error::Unusable { reason: "not a channel of notifications" };
        let created: CreatedChannel = serde_json::from_slice(&answer.body).map_err(|_| unusable.clone())?;
        let expires = created.expires.parse::<Modified>().map_err(|_| unusable.clone())?;
        let is_plain_id = |id: &str| {
            (1..=200).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let scheme = created.connect_uri.scheme();
        if !is_plain_id(&created.id) || !(scheme == "wss" || (scheme == "ws" && self.channels_url.scheme() == "http")) {
            return Err(unusable);
        }
        Ok(Channel { id: created.id, connect: created.connect_uri, expires: expires.into(), token_ends })
    }

    async fn subscribe_channel(
        &self,
        channel: &str,
        topics: &[Topic],
        replace: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let url = format!("{}/{channel}/subscriptions", self.channels_url);
        let url = Url::parse(&url).map_err(|_| Error::Unreachable(None))?;
        let request = || {
            let request = if replace { self.client.put(url.clone()) } else { self.client.post(url.clone()) };
            request.json(topics)
        };
        let answer = self.ask(request, MAX_ANSWER, deadline).await?;
        if answer.status == StatusCode::OK { Ok(()) } else { Err(answer.error()) }
    }
}

/// Opens a WebSocket over HTTP/1.1 (RFC 6455 section 4.1), with the TLS and the proxy of the other requests.
async fn handshake(client: &reqwest::Client, mut url: Url, deadline: Instant) -> Result<Socket, Error> {
    let scheme = if url.scheme() == "wss" { "https" } else { "http" };
    url.set_scheme(scheme).map_err(|()| Error::Unreachable(None))?;
    let key = generate_key();
    let request = client
        .get(url)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    let response = GenesysResponse::open(request, deadline).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(GenesysResponse::of_status(response.status(), response.headers().clone()).error());
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(Error::Unusable { reason: "not a WebSocket" });
    }
    let upgraded = response.upgrade().await.map_err(|_| Error::Unreachable(None))?;
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(Socket(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await))
}

impl Socket {
    /// Waits for the next message. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The socket ended.
    pub async fn next(&mut self) -> Result<String, SocketEnd> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Close(_))) | None => return Err(SocketEnd::Closed),
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(_)) => return Err(SocketEnd::Broken),
            }
        }
    }

    /// Asks Genesys for a message, which shows that the socket works.
    ///
    /// # Errors
    ///
    /// The socket ended, or takes nothing.
    pub async fn ping(&mut self) -> Result<(), SocketEnd> {
        let sent = timeout_at(Instant::now() + PATIENCE, self.0.send(Message::text(PING))).await;
        sent.ok().and_then(Result::ok).ok_or(SocketEnd::Broken)
    }

    /// Closes the socket. What it would have received is lost.
    pub async fn close(mut self) {
        // It is not needed any more, so a failure does not matter.
        let _ = timeout_at(Instant::now() + Duration::from_secs(1), self.0.close(None)).await;
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel([redacted])")
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}
