//! The sentinels of Redis, which name the master.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{Client, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode};
use tokio::time::{sleep, timeout};

use super::config::SentinelLogin;

/// The longest time to find the master.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the sentinels are asked whether the master has changed, and how long an answer may take.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The reason why a connection is not used any longer.
pub(super) const MOVED: &str = "the sentinels name another master";

/// The address of a master: its host, and its port.
pub(super) type Master = (String, u16);

/// The sentinels, and what they said last.
pub(super) struct Sentinels {
    /// Finds a server that one of them names, and that is a master.
    client: SentinelClient,
    /// Each of them.
    each: Vec<Client>,
    /// The one that is asked when the present one fails, in turn.
    next: usize,
    /// The name of the master.
    name: String,
    /// The connection on which one of them is asked again.
    link: Option<MultiplexedConnection>,
    /// The master to which the last connection was made.
    master: Option<Master>,
}

impl Sentinels {
    pub(super) fn new(
        nodes: &[ConnectionInfo],
        name: &str,
        login: &SentinelLogin,
        certificates: Option<&TlsCertificates>,
    ) -> RedisResult<Self> {
        let client = sentinel(nodes, name, login, certificates)?;
        let each = nodes.iter().map(|node| one(node, login, certificates)).collect::<RedisResult<_>>()?;
        Ok(Self { client, each, next: 0, name: name.to_owned(), link: None, master: None })
    }

    /// Returns the name of the master.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the library's client of the master that they name now.
    pub(super) async fn client(&mut self) -> RedisResult<Client> {
        self.client.async_get_client().await
    }

    /// Returns the master to which the last connection was made.
    pub(super) fn master(&self) -> Option<&Master> {
        self.master.as_ref()
    }

    /// Records the address of the master to which the last connection was made.
    pub(super) fn connected_to(&mut self, master: &ConnectionAddr) {
        self.master = address(master);
    }

    /// Replaces others, which named the master of the present connection.
    pub(super) fn replace(&mut self, others: &mut Self) {
        self.master = others.master.take();
    }

    /// Waits until they name another master than the last connection has. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        loop {
            sleep(ASK_EVERY).await;
            match timeout(ASK_EVERY, self.ask()).await {
                Ok(Ok(master)) if master.is_some() && master != self.master => {
                    // They may disagree. What counts is where the next connection would lead.
                    let next = timeout(FIND_TIMEOUT, self.client()).await;
                    if next.is_ok_and(|next| next.is_ok_and(|next| self.is_elsewhere(&next))) {
                        return;
                    }
                }
                Ok(Ok(_)) => {}
                // Another one is asked next, and the master goes on being used.
                Ok(Err(_)) | Err(_) => self.link = None,
            }
        }
    }

    fn is_elsewhere(&self, client: &Client) -> bool {
        address(client.get_connection_info().addr()) != self.master
    }

    /// Asks one of them for the address of the master.
    async fn ask(&mut self) -> RedisResult<Option<Master>> {
        let link = match &mut self.link {
            Some(link) => link,
            none => {
                let sentinel = &self.each[self.next % self.each.len()];
                self.next += 1;
                none.insert(sentinel.get_multiplexed_async_connection().await?)
            }
        };
        redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name).query_async(link).await
    }
}

fn address(address: &ConnectionAddr) -> Option<Master> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Creates a client of one sentinel.
fn one(node: &ConnectionInfo, login: &SentinelLogin, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
    // The user, the password and the database of the address are those of the servers.
    let mut settings = RedisConnectionInfo::default();
    if let Some(username) = &login.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password.expose());
    }
    open(node.clone().set_redis_settings(settings), certificates)
}

/// Creates a client of one server.
pub(super) fn open(server: ConnectionInfo, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
    match certificates {
        Some(certificates) => Client::build_with_tls(server, certificates.clone()),
        None => Client::open(server),
    }
}

/// Creates a client that asks sentinels for the master.
fn sentinel(
    sentinels: &[ConnectionInfo],
    name: &str,
    login: &SentinelLogin,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let addresses: Vec<ConnectionAddr> = sentinels.iter().map(|node| node.addr().clone()).collect();
    let tls = addresses.iter().any(|address| matches!(address, ConnectionAddr::TcpTls { .. }));
    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?;
    if tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(username) = &login.username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &login.password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    // The user and password of the addresses are those of the servers.
    if let Some(settings) = sentinels.first().map(ConnectionInfo::redis_settings) {
        if let Some(username) = settings.username() {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        builder = builder.set_client_to_redis_db(settings.db());
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates.clone());
    }
    builder.build()
}
