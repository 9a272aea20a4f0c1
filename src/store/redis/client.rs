//! Source: where connections to Redis come from, and how long making one may take.

use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisResult, TlsCertificates, TlsMode};

use super::config::Place;
use super::connection::To;

/// The longest that making a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that making a connection to a node of a cluster may take. A silent one is waited for twice: as one of
/// the addresses given, and as one that has slots.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest that making a connection to a whole cluster may take.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where connections come from.
pub(super) enum Source {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl Source {
    pub(super) fn of(place: &Place, certificates: Option<&TlsCertificates>, timeout: Duration) -> RedisResult<Self> {
        // A library that speaks TLS takes the process' provider; another may have been there first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match place {
            Place::Single(node) => match certificates {
                Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone())
                    .map(|client| Self::Single(Box::new(client))),
                None => Client::open(node.clone()).map(|client| Self::Single(Box::new(client))),
            },
            Place::Cluster(nodes) => {
                // The client's own retries send a command again whose fate is unknown.
                let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
                    .retries(0)
                    .connection_timeout(NODE_TIMEOUT)
                    .response_timeout(timeout);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.build().map(|client| Self::Cluster(Box::new(client)))
            }
            Place::Sentinel(sentinels, name) => {
                sentinel(sentinels, name, certificates).map(|client| Self::Sentinel(Box::new(client)))
            }
        }
    }

    /// The longest that making a connection may take.
    pub(super) const fn patience(&self) -> Duration {
        match self {
            Self::Single(_) | Self::Sentinel(_) => CONNECT_TIMEOUT,
            Self::Cluster(_) => CLUSTER_TIMEOUT,
        }
    }

    /// Makes a connection over which something was answered: a `PING`, or the question which node has which slots.
    pub(super) async fn connect(&mut self) -> RedisResult<To> {
        // Each command has the store's own deadline; a second timer for it would only cost.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let connection = match self {
            Self::Single(client) => client.get_multiplexed_async_connection_with_config(&config).await?,
            Self::Sentinel(client) => client.get_async_connection_with_config(&config).await?,
            Self::Cluster(client) => return Ok(To::Cluster(client.get_async_connection().await?)),
        };
        let mut to = To::One(connection);
        to.ping().await?;
        Ok(to)
    }
}

/// Makes a client that asks sentinels for the master.
pub(in crate::store::redis) fn sentinel(
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
    // The addresses' user and password are the servers'; sentinels are asked without.
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
