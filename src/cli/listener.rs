//! The listeners of the running service, as commands reach them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use url::Url;

use crate::domain::Secret;
use crate::operate::client::{self, Client};
use crate::operate::trust::{Tls, Trust};

use super::{Exit, complain, load};

/// The running service that a command is sent to.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ServiceArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The URL of the admin listener; the configured one by default.
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<String>,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// One JSON object on a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// How to connect to an admin listener that uses TLS.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// The CA bundle (PEM) that verifies the admin listener; by default the CAs of this machine, or for the configured
    /// listener its own certificate.
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The client certificate (PEM), if the listener asks for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// The private key (PEM) of --cert.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "PROFILE_EDGE_CONFIG")]
    config: Option<String>,
}

impl ConfigArgs {
    /// Returns the configuration file. An empty variable names no file.
    pub(super) fn file(&self) -> Option<&Path> {
        self.config.as_deref().filter(|file| !file.is_empty()).map(Path::new)
    }
}

/// Creates a client of the service that a command is sent to.
pub(super) fn client_of(service: ServiceArgs) -> Result<Client, Exit> {
    admin_client(&service.config, service.admin, service.tls, admin_key(), Trust::Certificate)
}

/// Creates a client for the question whether the service is ready; only a `deep` one may present the key.
pub(super) fn probe_of(config: &ConfigArgs, admin: Option<String>, tls: TlsArgs, deep: bool) -> Result<Client, Exit> {
    if deep {
        admin_client(config, admin, tls, admin_key(), Trust::Certificate)
    } else {
        admin_client(config, admin, tls, None, |_| Trust::Any)
    }
}

fn admin_key() -> Option<Secret> {
    std::env::var("PROFILE_EDGE_ADMIN_KEY").ok().filter(|key| !key.is_empty()).map(Secret::new)
}

/// Creates a client of the admin listener: of the given URL, or of the configured listener, whose certificate is trusted
/// as `own` says.
fn admin_client(
    config: &ConfigArgs,
    admin: Option<String>,
    tls: TlsArgs,
    key: Option<Secret>,
    own: impl FnOnce(PathBuf) -> Trust,
) -> Result<Client, Exit> {
    let (url, trust) = match admin {
        Some(url) => (url, Trust::System),
        None => {
            let admin = load(config, None)?.config.admin;
            (url_of(admin.listen, admin.tls.is_on()), admin.tls.cert.map_or(Trust::System, own))
        }
    };
    Client::new(&url, key, &tls_with(tls, trust)).map_err(unusable)
}

/// Returns the URL of the public listener and an HTTP client that trusts it: the given one, or the configured one.
pub(super) fn public_client(
    given: Option<Url>,
    listen: SocketAddr,
    certificate: Option<PathBuf>,
    tls: TlsArgs,
) -> Result<(Url, client::HttpClient), Exit> {
    let (url, trust) = match given {
        Some(url) => (url, Trust::System),
        None => {
            let url = url_of(listen, certificate.is_some()).parse();
            (url.map_err(|_| unusable(client::Error::Url))?, certificate.map_or(Trust::System, Trust::Certificate))
        }
    };
    let http = client::http_client(&url, &tls_with(tls, trust)).map_err(unusable)?;
    Ok((url, http))
}

fn tls_with(tls: TlsArgs, trust: Trust) -> Tls {
    Tls { trust: tls.ca.map_or(trust, Trust::Authority), identity: tls.cert.zip(tls.key) }
}

fn url_of(mut listen: SocketAddr, is_tls: bool) -> String {
    if listen.ip().is_unspecified() {
        // A listener on [::] may accept IPv6 only.
        let is_v4 = listen.is_ipv4();
        listen.set_ip(if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{listen}")
}

fn unusable(error: client::Error) -> Exit {
    complain(&error.to_string());
    Exit::Usage
}
