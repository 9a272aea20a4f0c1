//! Creates connections to Redis: for commands and for subscriptions, to one server, a cluster, or the master that
//! sentinels name.

use std::io;
use std::panic::resume_unwind;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode,
};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::invalid::InvalidSetting;
use crate::store::Error;

use super::command::CommandConnection;
use super::config::{Config, Endpoints, SentinelLogin};
use super::error::{explain, refused};
use super::subscriber::PubSubConnection;

/// The longest time to connect to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest time to connect to a node of a cluster. A silent node can cost it twice: as one of the configured
/// addresses, and as a node that has slots.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time to connect to a whole cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the sentinels are asked whether the master has changed, and how long an answer may take.
const ASK_SENTINELS_EVERY: Duration = Duration::from_secs(1);

/// The options that only a cluster's client has.
type Configure = Box<dyn Fn(ClusterClientBuilder) -> ClusterClientBuilder + Send + Sync>;

/// Creates connections.
pub(super) struct RedisClient {
    config: Config,
    configure: Configure,
    kind: ClientKind,
}

enum ClientKind {
    Single(Box<Client>),
    Sentinel(Box<Sentinels>),
    Cluster(Box<ClusterClient>),
}

/// The sentinels, and what they said last.
struct Sentinels {
    client: SentinelClient,
    /// The name of the master.
    name: String,
    /// The connection on which one of them is asked again.
    link: Option<MultiplexedConnection>,
    /// The address of the master to which the last connection was made.
    master: Option<(String, u16)>,
}

impl RedisClient {
    /// Creates a client; `configure` adds the options that only a cluster's client has.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, or one of its files cannot be read.
    pub(super) fn new(
        config: &Config,
        configure: impl Fn(ClusterClientBuilder) -> ClusterClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let endpoints = config.endpoints().map_err(refused)?;
        let certificates = config.certificates().map_err(refused)?;
        let configure: Configure = Box::new(configure);
        let kind = ClientKind::new(&endpoints, certificates.as_ref(), &configure).map_err(|error| explain(&error))?;
        Ok(Self { config: config.clone(), configure, kind })
    }

    /// Reads the files of the configuration, which may have changed since the last connection.
    async fn read_files(&mut self) -> RedisResult<()> {
        if !self.config.has_files() {
            return Ok(());
        }
        let config = self.config.clone();
        let read = spawn_blocking(move || Ok((config.endpoints()?, config.certificates()?))).await;
        let read = read.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()));
        let (endpoints, certificates) = read.map_err(|error: InvalidSetting| {
            RedisError::from(io::Error::other(error.within("store.redis").to_string()))
        })?;
        self.kind = ClientKind::new(&endpoints, certificates.as_ref(), &self.configure)?;
        Ok(())
    }

    /// Returns the longest time that [`connect`](Self::connect) may take.
    pub(super) const fn connect_timeout(&self) -> Duration {
        match self.kind {
            ClientKind::Single(_) | ClientKind::Sentinel(_) => CONNECT_TIMEOUT,
            ClientKind::Cluster(_) => CLUSTER_TIMEOUT,
        }
    }

    /// Connects for commands. The connection has answered once: that of a primary a `PING`, that of a cluster the query for
    /// its slots.
    ///
    /// # Errors
    ///
    /// Also `READONLY`: the server is a replica.
    pub(super) async fn connect(&mut self) -> RedisResult<CommandConnection> {
        self.read_files().await?;
        // Each command has the store's own deadline; a second timer for it would only cost.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let client = match &mut self.kind {
            ClientKind::Single(client) => client.as_ref().clone(),
            ClientKind::Sentinel(sentinels) => {
                let client = sentinels.client.async_get_client().await?;
                sentinels.master = address(client.get_connection_info().addr());
                client
            }
            ClientKind::Cluster(client) => {
                return client.get_async_connection().await.map(CommandConnection::Cluster);
            }
        };
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut connection = CommandConnection::Single(connection);
        let (_, has_role) = connection.one_of_primary(&redis::cmd("PING")).await?;
        if !has_role {
            tracing::warn!("redis does not name its role (HELLO), so it is not noticed if it becomes a replica");
        }
        Ok(connection)
    }

    /// Waits until the sentinels name another master than the last connection has. Without sentinels, for ever. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        let ClientKind::Sentinel(sentinels) = &mut self.kind else { return std::future::pending().await };
        loop {
            sleep(ASK_SENTINELS_EVERY).await;
            match timeout(ASK_SENTINELS_EVERY, sentinels.ask()).await {
                Ok(Ok(master)) if master.is_some() && master != sentinels.master => return,
                Ok(Ok(_)) => {}
                // Another one is asked next, and the master goes on being used.
                Ok(Err(_)) | Err(_) => sentinels.link = None,
            }
        }
    }

    /// Connects for subscriptions.
    pub(super) async fn connect_pubsub(&mut self) -> RedisResult<PubSubConnection> {
        self.read_files().await?;
        let client = match &mut self.kind {
            ClientKind::Single(client) => client.as_ref().clone(),
            ClientKind::Sentinel(sentinels) => sentinels.client.async_get_client().await?,
            ClientKind::Cluster(client) => return client.get_async_connection().await.map(PubSubConnection::Cluster),
        };
        let (sink, stream) = client.get_async_pubsub().await?.split();
        Ok(PubSubConnection::Single(sink, stream))
    }
}

impl ClientKind {
    fn new(endpoints: &Endpoints, certificates: Option<&TlsCertificates>, configure: &Configure) -> RedisResult<Self> {
        // The library takes the process-wide TLS provider. An error says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match endpoints {
            Endpoints::Single(node) => {
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
                    None => Client::open(node.clone()),
                };
                client.map(|client| Self::Single(Box::new(client)))
            }
            Endpoints::Cluster(nodes) => {
                let mut builder =
                    configure(ClusterClientBuilder::new(nodes.iter().cloned()).connection_timeout(NODE_TIMEOUT));
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.build().map(|client| Self::Cluster(Box::new(client)))
            }
            Endpoints::Sentinel { nodes, name, login } => {
                let client = sentinel(nodes, name, login, certificates)?;
                Ok(Self::Sentinel(Box::new(Sentinels { client, name: name.clone(), link: None, master: None })))
            }
        }
    }
}

impl Sentinels {
    /// Asks one of them for the address of the master.
    async fn ask(&mut self) -> RedisResult<Option<(String, u16)>> {
        let link = match &mut self.link {
            Some(link) => link,
            none => {
                let sentinel = self.client.async_get_sentinel_client().await?;
                none.insert(sentinel.get_multiplexed_async_connection().await?)
            }
        };
        redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name).query_async(link).await
    }
}

fn address(address: &ConnectionAddr) -> Option<(String, u16)> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
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
