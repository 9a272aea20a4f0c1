//! Creates connections to Redis: for commands to one server, a node of a cluster, or the master that sentinels name, and
//! for subscriptions to whatever is configured.

use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, RedisError, RedisResult, TlsCertificates};

use crate::invalid::InvalidSetting;
use crate::store::Error;
use crate::supervise::blocking;

use super::cluster_map::NodeAddress;
use super::config::{Config, Endpoints, Mode};
use super::error::{explain, refused};
use super::sentinels::{Master, Sentinels, open};
use super::subscriber::{PubSubConnection, Subscription};

/// The longest time to connect to a server.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest time that the library's client of a cluster takes to connect to a node. A silent node can cost it twice: as
/// one of the configured addresses, and as a node that has slots.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The options that only the library's client of a cluster has.
type Configure = Box<dyn Fn(ClusterClientBuilder) -> ClusterClientBuilder + Send + Sync>;

/// What a connection needs; the files of the configuration were read.
pub(super) struct Settings {
    pub(super) endpoints: Endpoints,
    certificates: Option<TlsCertificates>,
}

/// Creates connections to whatever is configured.
pub(super) enum RedisClient {
    Server(Box<ServerClient>),
    Cluster(Box<LibraryCluster>),
}

/// Creates connections to one server.
pub(super) struct ServerClient {
    config: Config,
    /// The node of the configured cluster, if it is one.
    node: Option<NodeAddress>,
    kind: ServerKind,
}

enum ServerKind {
    Single(Box<Client>),
    Sentinel(Box<Sentinels>),
}

/// The library's client of a cluster.
pub(super) struct LibraryCluster {
    config: Config,
    configure: Configure,
    client: ClusterClient,
}

impl Settings {
    /// Reads the addresses, and the files of the configuration.
    pub(super) fn read(config: &Config) -> Result<Self, InvalidSetting> {
        Ok(Self { endpoints: config.endpoints()?, certificates: config.certificates()? })
    }

    /// Reads the files again if there are any: they may have changed since the last connection.
    async fn read_again(config: &Config) -> RedisResult<Option<Self>> {
        if !config.has_files() {
            return Ok(None);
        }
        let config = config.clone();
        let read = blocking(move || Self::read(&config)).await;
        read.map(Some).map_err(|error| RedisError::from(io::Error::other(error.within("store.redis").to_string())))
    }
}

impl RedisClient {
    /// Creates a client; `configure` adds the options that only the library's client of a cluster has.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, or one of its files cannot be read.
    pub(super) fn new(
        config: &Config,
        configure: impl Fn(ClusterClientBuilder) -> ClusterClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let settings = Settings::read(config).map_err(refused)?;
        let client = if config.mode == Some(Mode::Cluster) {
            let configure: Configure = Box::new(configure);
            let client = library_client(&settings, &configure);
            client.map(|client| Self::Cluster(Box::new(LibraryCluster { config: config.clone(), configure, client })))
        } else {
            ServerClient::new(config, &settings).map(|server| Self::Server(Box::new(server)))
        };
        client.map_err(|error| explain(&error))
    }

    /// Connects for subscriptions.
    pub(super) async fn connect_pubsub(&mut self) -> RedisResult<PubSubConnection> {
        match self {
            Self::Server(server) => server.subscription().await.map(PubSubConnection::Single),
            Self::Cluster(cluster) => cluster.connect().await.map(PubSubConnection::Cluster),
        }
    }
}

impl LibraryCluster {
    /// Connects to every node.
    pub(super) async fn connect(&mut self) -> RedisResult<ClusterConnection> {
        if let Some(settings) = Settings::read_again(&self.config).await? {
            self.client = library_client(&settings, &self.configure)?;
        }
        self.client.get_async_connection().await
    }
}

impl ServerClient {
    /// Creates the client of the configured server, or of the master that sentinels name.
    pub(super) fn new(config: &Config, settings: &Settings) -> RedisResult<Self> {
        Ok(Self { config: config.clone(), node: None, kind: ServerKind::new(settings, None)? })
    }

    /// Creates the client of a node of the configured cluster.
    pub(super) fn of_node(config: &Config, settings: &Settings, node: &NodeAddress) -> RedisResult<Self> {
        let kind = ServerKind::new(settings, Some(node))?;
        Ok(Self { config: config.clone(), node: Some(node.clone()), kind })
    }

    /// Returns its host and port, or the name of the master, for the log.
    pub(super) fn name(&self) -> String {
        match &self.kind {
            ServerKind::Single(client) => client.get_connection_info().addr().to_string(),
            ServerKind::Sentinel(sentinels) => sentinels.name().to_owned(),
        }
    }

    /// Connects for commands. The server has not answered yet.
    pub(super) async fn connect(&mut self) -> RedisResult<MultiplexedConnection> {
        // Each command has the store's own deadline; a second timer for it would only cost.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        self.connect_by(async |client| client.get_multiplexed_async_connection_with_config(&config).await).await
    }

    /// Connects for subscriptions.
    pub(super) async fn subscription(&mut self) -> RedisResult<Subscription> {
        let (sink, stream) = self.connect_by(async |client| client.get_async_pubsub().await).await?.split();
        Ok(Subscription { sink, stream })
    }

    /// Connects, and takes note of the master that the sentinels named.
    async fn connect_by<T>(&mut self, connect: impl AsyncFnOnce(&Client) -> RedisResult<T>) -> RedisResult<T> {
        let (client, sentinels) = self.client().await?;
        let connection = connect(&client).await?;
        if let Some(sentinels) = sentinels {
            sentinels.connected_to(client.get_connection_info().addr());
        }
        Ok(connection)
    }

    /// Returns the library's client of the server, after it has read the files of the configuration; and the sentinels that
    /// named the server.
    async fn client(&mut self) -> RedisResult<(Client, Option<&mut Sentinels>)> {
        if let Some(settings) = Settings::read_again(&self.config).await? {
            self.kind.renew(ServerKind::new(&settings, self.node.as_ref())?);
        }
        match &mut self.kind {
            ServerKind::Single(client) => Ok((client.as_ref().clone(), None)),
            ServerKind::Sentinel(sentinels) => Ok((sentinels.client().await?, Some(sentinels.as_mut()))),
        }
    }

    /// Returns the master that the sentinels named for the last connection, if there are any.
    pub(super) fn master(&self) -> Option<&Master> {
        match &self.kind {
            ServerKind::Single(_) => None,
            ServerKind::Sentinel(sentinels) => sentinels.master(),
        }
    }

    /// Waits until the sentinels name another master than the last connection has. Without sentinels, for ever. Cancel-safe.
    pub(super) async fn moved(&mut self) {
        match &mut self.kind {
            ServerKind::Single(_) => std::future::pending().await,
            ServerKind::Sentinel(sentinels) => sentinels.moved().await,
        }
    }
}

impl ServerKind {
    fn new(settings: &Settings, node: Option<&NodeAddress>) -> RedisResult<Self> {
        install_tls_provider();
        let certificates = settings.certificates.as_ref();
        let server = match &settings.endpoints {
            Endpoints::Sentinel { nodes, name, login } => {
                let sentinels = Sentinels::new(nodes, name, login, certificates)?;
                return Ok(Self::Sentinel(Box::new(sentinels)));
            }
            Endpoints::Single(server) => Some(server.clone()),
            // The user, the password and TLS are those of the configured addresses.
            Endpoints::Cluster(seeds) => seeds.first().zip(node).map(|(seed, node)| {
                let address = beside(seed.addr(), node);
                seed.clone().set_addr(address)
            }),
        };
        let server = server.ok_or((ErrorKind::InvalidClientConfig, "no node of the cluster is named"))?;
        open(server, certificates).map(|client| Self::Single(Box::new(client)))
    }

    /// Uses other settings from now on. The sentinels are still compared with the present connection.
    fn renew(&mut self, mut new: Self) {
        if let (Self::Sentinel(old), Self::Sentinel(new)) = (&mut *self, &mut new) {
            new.replace(old);
        }
        *self = new;
    }
}

/// Creates the library's client of a cluster.
fn library_client(settings: &Settings, configure: &Configure) -> RedisResult<ClusterClient> {
    install_tls_provider();
    let seeds = match &settings.endpoints {
        Endpoints::Cluster(seeds) => seeds.as_slice(),
        Endpoints::Single(_) | Endpoints::Sentinel { .. } => &[],
    };
    let mut builder = configure(ClusterClientBuilder::new(seeds.iter().cloned()).connection_timeout(NODE_TIMEOUT));
    if let Some(certificates) = &settings.certificates {
        builder = builder.certs(certificates.clone());
    }
    builder.build()
}

fn install_tls_provider() {
    // The library takes the process-wide TLS provider. An error says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns the address of a node with the transport of another.
fn beside(configured: &ConnectionAddr, node: &NodeAddress) -> ConnectionAddr {
    let NodeAddress { host, port } = node.clone();
    match configured {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}
