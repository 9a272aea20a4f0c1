//! The HTTP clients that tenants share, each replaced from time to time.
//!
//! A client keeps its connections for as long as they are in use, so a name that moved to another address would never be
//! noticed. After [`MaxAge`] the next requests use a new client, with new connections; requests in progress keep the old one.

use reqwest::{Client, RequestBuilder};
use tokio::task::spawn_blocking;
use url::Url;

use crate::invalid::InvalidSetting;
use crate::max_age::MaxAge;
use crate::reload::Reloadable;
use crate::shutdown::Shutdown;

use super::exchange::client;

/// An HTTP client; cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct HttpClient(Reloadable<Client>);

impl HttpClient {
    /// Creates a client, which is not replaced.
    ///
    /// # Errors
    ///
    /// This machine has no certificate authorities.
    pub(super) fn new(tls: bool) -> Result<Self, InvalidSetting> {
        let first = client(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            InvalidSetting::new("tenant.upstream", format!("cannot create an HTTP client: {cause}"))
        })?;
        Ok(Self(Reloadable::new(first)))
    }

    /// Starts to build a GET request.
    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.0.load().get(url)
    }

    /// Starts to build a PUT request.
    pub(super) fn put(&self, url: Url) -> RequestBuilder {
        self.0.load().put(url)
    }

    /// Starts to build a POST request.
    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.0.load().post(url)
    }
}

/// The clients that tenants share. Each is created when the first tenant needs it: the one for TLS needs a machine with
/// certificate authorities, and a sandbox on loopback does not need TLS.
pub(super) struct HttpClients {
    plain: Option<HttpClient>,
    tls: Option<HttpClient>,
    max_age: MaxAge,
    shutdown: Shutdown,
}

impl HttpClients {
    /// Creates the set; `shutdown` ends the tasks that replace clients.
    pub(super) fn new(max_age: MaxAge, shutdown: Shutdown) -> Self {
        Self { plain: None, tls: None, max_age, shutdown }
    }

    /// Returns the client of links with or without TLS.
    ///
    /// # Errors
    ///
    /// This machine has no certificate authorities.
    pub(super) fn get(&mut self, tls: bool) -> Result<HttpClient, InvalidSetting> {
        let slot = if tls { &mut self.tls } else { &mut self.plain };
        if let Some(client) = slot {
            return Ok(client.clone());
        }
        let client = HttpClient::new(tls)?;
        self.shutdown.spawn(replace(client.0.clone(), tls, self.max_age, self.shutdown.clone()));
        Ok(slot.insert(client).clone())
    }
}

/// Replaces a client each time it has reached its age, until shutdown.
async fn replace(current: Reloadable<Client>, tls: bool, max_age: MaxAge, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = max_age.reached() => {}
        }
        // It reads the certificate authorities from files.
        match spawn_blocking(move || client(tls)).await {
            Ok(Ok(next)) => current.replace(next),
            Ok(Err(error)) => {
                tracing::warn!(%error, "could not create an HTTP client for genesys, keeping the old one")
            }
            // A panic is reported where it happens.
            Err(_) => {}
        }
    }
}
