//! `[store.memcached]`: the servers and how to connect.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;
use crate::store::Lifetimes;
use crate::tls::TlsFiles;

use super::protocol::LONGEST_LIFETIME;

/// The most servers.
const MOST_SERVERS: usize = 64;

/// `[store.memcached]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The servers, as `host:port`. Each customer's keys are on one of them.
    pub servers: Vec<String>,
    /// The user, for servers that authenticate (`-Y`); needs `password_file`.
    #[serde(default)]
    pub username: Option<String>,
    /// The file with the password, read for each connection.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// `[store.memcached.tls]`; connections are encrypted if there is a `ca`.
    #[serde(default)]
    pub tls: TlsFiles,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
}

/// How to encrypt the connection to a server.
#[derive(Clone)]
pub(super) struct Encryption {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
}

impl Config {
    /// Checks the options together.
    ///
    /// # Errors
    ///
    /// The first option that is invalid.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |field, reason| Err(InvalidSetting::new(field, reason));
        for server in self.parsed()? {
            if server.is_configuration_endpoint() {
                let reason = format!(
                    "has {}, the configuration endpoint of an ElastiCache cluster, which leads to any of its nodes: auto-discovery is not \
                     used, so name the endpoint of each node",
                    server.host
                );
                return Err(InvalidSetting::new("servers", reason));
            }
            self.encryption(&server)?;
        }
        match (&self.username, &self.password_file) {
            (Some(_), None) => return refuse("password_file", "is missing: store.memcached.username needs it"),
            (None, Some(_)) => return refuse("username", "is missing: store.memcached.password_file needs it"),
            (Some(name), Some(_)) if name.is_empty() || name.contains([' ', ':', '\r', '\n']) => {
                return refuse("username", "must not be empty, nor contain a space, a colon or a line break");
            }
            (Some(_) | None, _) => {}
        }
        self.password().map(drop)
    }

    /// Checks that Memcached can keep what events write: it keeps nothing for more than 30 days.
    ///
    /// # Errors
    ///
    /// The option of `[consumer]` that is too long.
    pub fn check_lifetimes(lifetimes: Lifetimes) -> Result<(), InvalidSetting> {
        let named = [("dedup_window", lifetimes.dedup_window), ("tombstone_ttl", lifetimes.tombstone_ttl)];
        match named.into_iter().find(|(_, lifetime)| *lifetime >= LONGEST_LIFETIME) {
            Some((field, _)) => {
                Err(InvalidSetting::new(field, "must be shorter than 30d with store.kind = \"memcached\""))
            }
            None => Ok(()),
        }
    }

    /// Returns the servers as URLs, with the scheme `memcached`, or `memcacheds` where connections are encrypted.
    ///
    /// # Errors
    ///
    /// One is not `host:port`.
    pub fn addresses(&self) -> Result<Vec<Url>, InvalidSetting> {
        let scheme = if self.tls.is_any() { "memcacheds" } else { "memcached" };
        let url = |server: &String| {
            let url = Url::parse(&format!("{scheme}://{server}")).ok()?;
            let is_plain = url.path().is_empty() && url.query().is_none() && url.username().is_empty();
            (is_plain && url.has_host() && url.port().is_some_and(|port| port > 0)).then_some(url)
        };
        if self.servers.is_empty() || self.servers.len() > MOST_SERVERS {
            return Err(InvalidSetting::new("servers", "must have 1 to 64 servers"));
        }
        let urls = self.servers.iter().map(url).collect::<Option<Vec<_>>>();
        let urls =
            urls.ok_or_else(|| InvalidSetting::new("servers", "must be like [\"10.0.0.1:11211\", \"cache-2:11211\"]"))?;
        let is_repeated = |index: usize| urls[..index].contains(&urls[index]);
        if (0..urls.len()).any(is_repeated) {
            return Err(InvalidSetting::new("servers", "has a server twice"));
        }
        Ok(urls)
    }

    pub(super) fn parsed(&self) -> Result<Vec<Server>, InvalidSetting> {
        let server = |url: Url| {
            // A URL has brackets around an IPv6 address.
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            Server { host, port: url.port().unwrap_or_default() }
        };
        Ok(self.addresses()?.into_iter().map(server).collect())
    }

    /// Reads the password.
    pub(super) fn password(&self) -> Result<Option<Secret>, InvalidSetting> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let read = std::fs::read_to_string(path).map_err(|error| {
            InvalidSetting::new("password_file", format!("the file {} cannot be read: {error}", path.display()))
        })?;
        let password = read.trim_end_matches(['\r', '\n']);
        if password.is_empty() || password.contains(['\r', '\n']) {
            return Err(InvalidSetting::new("password_file", "must have one line, the password"));
        }
        Ok(Some(Secret::new(password)))
    }

    /// Reads the certificates, if connections are encrypted.
    pub(super) fn encryption(&self, server: &Server) -> Result<Option<Encryption>, InvalidSetting> {
        let files = &self.tls;
        if !files.is_any() {
            return Ok(None);
        }
        let refuse = |field: &'static str, reason: String| InvalidSetting::new(field, reason);
        let ca = files
            .ca
            .as_ref()
            .ok_or_else(|| refuse("tls.ca", "is missing: the other options of tls need it".to_owned()))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates("tls.ca", ca)? {
            roots.add(certificate).map_err(|error| refuse("tls.ca", format!("has no usable authority: {error}")))?;
        }
        // The provider is explicit: another part of the process may have changed the default one.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| refuse("tls", error.to_string()))?.with_root_certificates(roots);
        let config = match (&files.cert, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let unreadable = |_| refuse("tls.key", format!("the file {} has no readable key", key.display()));
                let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable)?;
                builder
                    .with_client_auth_cert(certificates("tls.cert", cert)?, key)
                    .map_err(|error| refuse("tls.key", format!("does not match the certificate: {error}")))?
            }
            (Some(_), None) => return Err(refuse("tls.key", "is missing: tls.cert needs it".to_owned())),
            (None, Some(_)) => return Err(refuse("tls.cert", "is missing: tls.key needs it".to_owned())),
        };
        let name = ServerName::try_from(server.host.clone());
        let name = name.map_err(|_| refuse("servers", "a host is no name for a certificate".to_owned()))?;
        Ok(Some(Encryption { connector: TlsConnector::from(Arc::new(config)), name }))
    }
}

impl Server {
    /// Returns whether the name is that of a whole cluster at AWS (`….cfg.<region>.cache.amazonaws.com`): each connection to it
    /// may reach another node.
    fn is_configuration_endpoint(&self) -> bool {
        let host = self.host.to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        let cluster = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".cache.amazonaws.com");
        cluster.is_some_and(|cluster| cluster.split('.').any(|part| part == "cfg"))
    }
}

fn certificates(field: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, InvalidSetting> {
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    let found = read.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| InvalidSetting::new(field, format!("the file {} has no readable certificates", path.display())))
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryption").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str]) -> Config {
        let servers = servers.iter().map(|server| (*server).to_owned()).collect();
        Config { servers, username: None, password_file: None, tls: TlsFiles::default() }
    }

    #[test]
    fn servers_are_hosts_with_ports() {
        let servers = config(&["127.0.0.1:11211", "cache-2:1", "[::1]:11211"]).parsed().unwrap();
        let shown: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:11211", "cache-2:1", "[::1]:11211"]);
        assert_eq!(servers[2].host, "::1");
        let no =
            ["", "cache", "cache:", "cache:0", "cache:70000", "cache:1/2", "u@cache:1", "memcached://cache:1", "a b:1"];
        for server in no {
            assert!(config(&[server]).validate().is_err(), "{server:?}");
        }
        assert!(config(&[]).validate().is_err());
        assert!(config(&["a:1", "b:1", "a:1"]).validate().is_err());
    }

    #[test]
    fn a_configuration_endpoint_is_no_server() {
        for host in [
            "edge.fnjyzo.cfg.use1.cache.amazonaws.com",
            "Edge.Fnjyzo.CFG.use1.cache.amazonaws.com.",
            "edge.fnjyzo.cfg.cnn1.cache.amazonaws.com.cn",
        ] {
            let error = config(&[&format!("{host}:11211")]).validate().unwrap_err().to_string();
            assert!(error.contains("configuration endpoint"), "{host}: {error}");
        }
        for host in ["edge.fnjyzo.0001.use1.cache.amazonaws.com", "edge.cfg.example.com", "cfg", "cfg.local"] {
            assert!(config(&[&format!("{host}:11211")]).validate().is_ok(), "{host}");
        }
    }

    #[test]
    fn a_password_needs_its_user_and_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let with = |username: Option<&str>, text: Option<&str>| {
            let password_file = text.map(|text| {
                std::fs::write(&file, text).unwrap();
                file.clone()
            });
            let config = Config { username: username.map(str::to_owned), password_file, ..config(&["a:1"]) };
            config.validate().map(|()| config.password().unwrap().map(|password| password.expose().to_owned()))
        };
        assert_eq!(with(None, None).unwrap(), None);
        assert_eq!(with(Some("edge"), Some("p w\n")).unwrap().as_deref(), Some("p w"));
        for (username, text) in [
            (Some("edge"), None),
            (None, Some("x")),
            (Some("edge"), Some("")),
            (Some("e d"), Some("x")),
            (Some("e"), Some("x\ny")),
        ] {
            assert!(with(username, text).is_err(), "{username:?} {text:?}");
        }
    }
}
