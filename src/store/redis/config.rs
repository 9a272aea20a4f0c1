//! `[store.redis]`: the addresses of Redis and how to connect.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::{ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use serde::Deserialize;
use url::Url;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;
use crate::max_age::MaxAge;
use crate::tls::TlsFiles;

/// `[store.redis]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The one server: `redis://[user:password@]host:port[/db]`, or `rediss://` for TLS.
    pub url: Secret,
    /// Some nodes of a cluster, or the sentinels. If there are any, `url` is not used.
    #[serde(default)]
    pub urls: Vec<Secret>,
    /// A file with the password at the servers, in place of one in the addresses. It is read again for each connection, so
    /// that a password that changes all the time, such as a token of a managed service, needs no restart.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// What `urls` are.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// The name of the master, as configured in the sentinels.
    #[serde(default)]
    pub master_name: Option<String>,
    /// The user at the sentinels; needs `sentinel_password`.
    #[serde(default)]
    pub sentinel_username: Option<String>,
    /// The password at the sentinels.
    #[serde(default)]
    pub sentinel_password: Option<Secret>,
    /// The age at which a connection is replaced, where `url` or `urls` contains a name.
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Duration,
    /// `[store.redis.tls]`, for `rediss://` addresses.
    #[serde(default)]
    pub tls: TlsFiles,
    /// How many replicas must confirm an invalidation before its event is acknowledged.
    pub min_replicas: u32,
}

/// What several addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nodes of a Redis Cluster.
    Cluster,
    /// Sentinels, which name the master.
    Sentinel,
}

/// The parsed addresses of Redis.
#[derive(Debug)]
pub(super) enum Endpoints {
    Single(ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
    Sentinel { nodes: Vec<ConnectionInfo>, name: String, login: SentinelLogin },
}

impl Endpoints {
    /// Returns the number of the database in use.
    pub(super) fn database(&self) -> i64 {
        match self {
            Self::Single(node) => node.redis_settings().db(),
            Self::Cluster(nodes) | Self::Sentinel { nodes, .. } => {
                nodes.first().map_or(0, |node| node.redis_settings().db())
            }
        }
    }
}

/// How to log in at the sentinels.
#[derive(Clone, Debug)]
pub(super) struct SentinelLogin {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

impl Config {
    /// Checks the options together.
    ///
    /// # Errors
    ///
    /// The first option that is invalid.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.endpoints().map(drop)?;
        if self.max_connection_age < Duration::from_secs(1) {
            return Err(InvalidSetting::new("max_connection_age", "must be 1s or longer"));
        }
        self.certificates().map(drop)
    }

    /// Returns the age at which connections are replaced.
    pub(super) fn max_age(&self) -> Result<MaxAge, InvalidSetting> {
        let urls = self.addresses()?;
        Ok(MaxAge::new(self.max_connection_age, urls.iter().filter_map(Url::host_str)))
    }

    /// Returns the addresses in use.
    ///
    /// # Errors
    ///
    /// An address is not a `redis://` or `rediss://` URL, or has a query that has no effect.
    pub fn addresses(&self) -> Result<Vec<Url>, InvalidSetting> {
        let field = if self.urls.is_empty() { "url" } else { "urls" };
        let all = if self.urls.is_empty() { std::slice::from_ref(&self.url) } else { &self.urls };
        let parse = |secret: &Secret| {
            let url = Url::parse(secret.expose()).ok().filter(|url| matches!(url.scheme(), "redis" | "rediss"));
            url.filter(Url::has_host)
                .ok_or_else(|| InvalidSetting::new(field, "must be redis://host:port or rediss://"))
        };
        let urls = all.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if urls.iter().any(|url| url.query_pairs().any(|(name, _)| name != "protocol")) {
            let reason = "must have no query: the number of the database is a path, as in redis://host:port/3";
            return Err(InvalidSetting::new(field, reason));
        }
        Ok(urls)
    }

    /// Returns whether a file may change what a connection needs.
    pub(super) const fn has_files(&self) -> bool {
        self.password_file.is_some() || self.tls.ca.is_some() || self.tls.cert.is_some()
    }

    /// Returns a configuration for each server that the addresses name, as the only one; behind sentinels for their master.
    pub(super) fn of_each_node(&self) -> Vec<Self> {
        if self.mode != Some(Mode::Cluster) {
            return vec![self.clone()];
        }
        let only = |url: &Secret| Self { url: url.clone(), urls: Vec::new(), mode: None, ..self.clone() };
        self.urls.iter().map(only).collect()
    }

    /// Returns the addresses with what is needed to log in; reads the password file.
    pub(super) fn endpoints(&self) -> Result<Endpoints, InvalidSetting> {
        let password = self.password()?;
        let mut nodes = Vec::new();
        for address in self.addresses()? {
            let info = address.into_connection_info();
            let mut node = info.map_err(|error| InvalidSetting::new("url", error.category().to_owned()))?;
            if let Some(password) = &password {
                if node.redis_settings().password().is_some() {
                    let reason = "replaces the password in url or urls: remove that one";
                    return Err(InvalidSetting::new("password_file", reason));
                }
                let settings = node.redis_settings().clone().set_password(password.expose());
                node = node.set_redis_settings(settings);
            }
            nodes.push(node);
        }
        let login =
            SentinelLogin { username: self.sentinel_username.clone(), password: self.sentinel_password.clone() };
        if self.mode != Some(Mode::Sentinel) && (login.username.is_some() || login.password.is_some()) {
            return Err(InvalidSetting::new("sentinel_password", "belongs to mode \"sentinel\" only"));
        }
        if login.username.is_some() && login.password.is_none() {
            return Err(InvalidSetting::new("sentinel_password", "is missing: sentinel_username needs it"));
        }
        match (self.mode, self.urls.is_empty(), &self.master_name) {
            (None, true, None) => Ok(Endpoints::Single(nodes.swap_remove(0))),
            (None, false, _) => Err(InvalidSetting::new("mode", "is missing: must be \"cluster\" or \"sentinel\"")),
            (Some(_), true, _) => Err(InvalidSetting::new("urls", "is missing: store.redis.mode needs it")),
            (Some(Mode::Cluster), false, None) => Ok(Endpoints::Cluster(nodes)),
            (Some(Mode::Sentinel), false, Some(name)) => Ok(Endpoints::Sentinel { nodes, name: name.clone(), login }),
            (Some(Mode::Sentinel), false, None) => {
                Err(InvalidSetting::new("master_name", "is missing: mode \"sentinel\" needs it"))
            }
            (None | Some(Mode::Cluster), _, Some(_)) => {
                Err(InvalidSetting::new("master_name", "belongs to mode \"sentinel\" only"))
            }
        }
    }

    /// Reads the password file, if there is one; a line end after the password is not part of it.
    fn password(&self) -> Result<Option<Secret>, InvalidSetting> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let text = String::from_utf8(read("password_file", path)?);
        let text = text.map_err(|_| InvalidSetting::new("password_file", "must be a file with UTF-8 text"))?;
        let password = Secret::new(text.trim_end_matches(['\r', '\n']));
        if password.is_empty() {
            return Err(InvalidSetting::new("password_file", format!("the file {} is empty", path.display())));
        }
        Ok(Some(password))
    }

    /// Reads the certificates, if any are configured.
    pub(super) fn certificates(&self) -> Result<Option<TlsCertificates>, InvalidSetting> {
        let client_tls = match (&self.tls.cert, &self.tls.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read("tls.cert", cert)?, client_key: read("tls.key", key)? })
            }
            (Some(_), None) => return Err(InvalidSetting::new("tls.key", "is missing: tls.cert needs it")),
            (None, Some(_)) => return Err(InvalidSetting::new("tls.cert", "is missing: tls.key needs it")),
        };
        let root_cert = self.tls.ca.as_ref().map(|ca| read("tls.ca", ca)).transpose()?;
        let any = client_tls.is_some() || root_cert.is_some();
        if any && !self.addresses()?.iter().all(|url| url.scheme() == "rediss") {
            return Err(InvalidSetting::new("tls", "needs rediss:// addresses"));
        }
        Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
    }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, InvalidSetting> {
    std::fs::read(path)
        .map_err(|error| InvalidSetting::new(field, format!("the file {} cannot be read: {error}", path.display())))
}
