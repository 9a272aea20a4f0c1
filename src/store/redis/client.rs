//! Creates connections to Redis: for commands and for subscriptions, to one server, a cluster, or the master that
//! sentinels name.

use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisResult, TlsCertificates, TlsMode};

use super::command::CommandConnection;
use super::config::Endpoints;
use super::subscriber::PubSubConnection;

/// The longest time to connect to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest time to connect to a node of a cluster. A silent node can cost it twice: as one of the configured
/// addresses, and as a node that has slots.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time to connect to a whole cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Creates connections.
pub(super) enum RedisClient {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl RedisClient {
    /// Creates a client; `configure` adds the options that only a cluster's client has.
    pub(super) fn new(
        endpoints: &Endpoints,
        certificates: Option<&TlsCertificates>,
        configure: impl FnOnce(ClusterClientBuilder) -> ClusterClientBuilder,
    ) -> RedisResult<Self> {
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
            Endpoints::Sentinel(sentinels, name) => {
                sentinel(sentinels, name, certificates).map(|client| Self::Sentinel(Box::new(client)))
            }
        }
    }

    /// Returns the longest time that [`connect`](Self::connect) may take.
    pub(super) const fn connect_timeout(&self) -> Duration {
        match self {
            Self::Single(_) | Self::Sentinel(_) => CONNECT_TIMEOUT,
            Self::Cluster(_) => CLUSTER_TIMEOUT,
        }
    }

    /// Connects for commands. The connection has answered once: a `PING`, or the query for the cluster's slots.
    pub(super) async fn connect(&mut self) -> RedisResult<CommandConnection> {
        // Each command has the store's own deadline; a second timer for it would only cost.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let connection = match self {
            Self::Single(client) => client.get_multiplexed_async_connection_with_config(&config).await?,
            Self::Sentinel(client) => client.get_async_connection_with_config(&config).await?,
            Self::Cluster(client) => return client.get_async_connection().await.map(CommandConnection::Cluster),
        };
        let mut connection = CommandConnection::Single(connection);
        connection.ping().await?;
        Ok(connection)
    }

    /// Connects for subscriptions.
    pub(super) async fn connect_pubsub(&mut self) -> RedisResult<PubSubConnection> {
        let client = match self {
            Self::Single(client) => client.as_ref().clone(),
            Self::Sentinel(client) => client.async_get_client().await?,
            Self::Cluster(client) => return client.get_async_connection().await.map(PubSubConnection::Cluster),
        };
        let (sink, stream) = client.get_async_pubsub().await?.split();
        Ok(PubSubConnection::Single(sink, stream))
    }
}

/// Creates a client that asks sentinels for the master.
fn sentinel(
    sentinels: &[ConnectionInfo],
    name: &str,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let addresses: Vec<ConnectionAddr> = sentinels.iter().map(|node| node.addr().clone()).collect();
    let tls = addresses.iter().any(|address| matches!(address, ConnectionAddr::TcpTls { .. }));
    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?;
    if tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    // The user and password of the addresses are those of the servers; sentinels are queried without.
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
