//! Connects to a server, and checks that it does what the store needs.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::addresses::first_to_answer;
use crate::domain::Secret;
use crate::invalid::InvalidSetting;
use crate::supervise::blocking;
use crate::tls::with_advice;

use super::config::{Config, Encryption, Server};
use super::link::Link;
use super::protocol::{Answer, Condition, Requests};

/// What carries the bytes of a connection, until it ends.
pub(super) type Carrier = Pin<Box<dyn Future<Output = String> + Send>>;

/// A connection that is ready for use.
pub(super) struct Connected {
    pub(super) link: Link,
    pub(super) carrier: Carrier,
    /// The address of the server.
    pub(super) address: SocketAddr,
}

/// How to connect to a server.
pub(super) struct Connector {
    config: Config,
    server: Server,
    limit: Duration,
}

impl Connector {
    /// Creates a connector whose connections take at most this long.
    ///
    /// # Errors
    ///
    /// The certificates cannot be used.
    pub(super) fn new(config: &Config, server: &Server, limit: Duration) -> Result<Self, InvalidSetting> {
        config.encryption(server)?;
        Ok(Self { config: config.clone(), server: server.clone(), limit })
    }

    /// Connects to an address of the server, or where its name leads, and checks that the server does what the store needs.
    /// Returns why it does not.
    pub(super) async fn connect(&self, to: Option<SocketAddr>) -> Result<Connected, String> {
        let until = Instant::now() + self.limit;
        let connected = timeout_at(until, async {
            let mut connected = self.dial(to).await?;
            tokio::select! {
                greeted = self.greet(&connected.link) => greeted?,
                why = &mut connected.carrier => return Err(why),
            }
            Ok(connected)
        });
        connected.await.unwrap_or_else(|_elapsed| Err("no connection in time".to_owned()))
    }

    async fn dial(&self, to: Option<SocketAddr>) -> Result<Connected, String> {
        let Server { host, port } = &self.server;
        let stream = match to {
            Some(address) => TcpStream::connect(address).await,
            None => first_to_answer(host, *port, self.limit * 3 / 4, TcpStream::connect).await,
        };
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let address = stream.peer_addr().map_err(|error| error.to_string())?;
        Ok(match self.encryption().await? {
            None => {
                let (link, carrier) = Link::over(stream);
                Connected { link, carrier: Box::pin(carrier), address }
            }
            Some(Encryption { connector, name }) => {
                let encrypted = connector.connect(name.clone(), stream).await;
                let (link, carrier) = Link::over(encrypted.map_err(|error| with_advice(error.to_string()))?);
                Connected { link, carrier: Box::pin(carrier), address }
            }
        })
    }

    /// Logs in, and checks that the server compares versions.
    async fn greet(&self, link: &Link) -> Result<(), String> {
        let broken = || "the server closed the connection".to_owned();
        if let Some(password) = self.password().await? {
            let requests =
                Requests::default().log_in(self.config.username.as_deref().unwrap_or_default(), password.expose());
            let [Answer::LoggedIn] = link.run(requests).await.ok_or_else(broken)?[..] else {
                return Err("the server does not accept the user".to_owned());
            };
        }
        // With --disable-cas every version is zero, and a comparison compares nothing.
        let key = format!("cust:greeting:{}", hex::encode(rand::random::<[u8; 8]>()));
        let write = |condition| Requests::default().set(&key, b"", Some(2), condition);
        let written = link.run(write(Condition::Absent)).await.ok_or_else(broken)?;
        let version = match &written[..] {
            [Answer::Done(version)] if *version > 0 => *version,
            [Answer::Done(_)] => {
                return Err("the server does not compare versions (--disable-cas, or before 1.6)".to_owned());
            }
            [Answer::Failed(why)] => return Err(why.clone()),
            _ => return Err("the server is no memcached 1.6".to_owned()),
        };
        let refused = link.run(write(Condition::Unchanged(version.wrapping_add(1)))).await.ok_or_else(broken)?;
        let removed = link.run(Requests::default().delete(&key)).await.ok_or_else(broken)?;
        match (&refused[..], &removed[..]) {
            ([Answer::Refused], [Answer::Done(_)]) => Ok(()),
            _ => Err("the server does not compare versions".to_owned()),
        }
    }

    /// Reads the certificates again: they may have been renewed.
    async fn encryption(&self) -> Result<Option<Encryption>, String> {
        if !self.config.tls.is_any() {
            return Ok(None);
        }
        let server = self.server.clone();
        self.read(move |config| config.encryption(&server)).await
    }

    /// Reads the password again: it may have changed.
    async fn password(&self) -> Result<Option<Secret>, String> {
        if self.config.password_file.is_none() {
            return Ok(None);
        }
        self.read(Config::password).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Config) -> Result<T, InvalidSetting> + Send + 'static,
    ) -> Result<T, String> {
        let config = self.config.clone();
        blocking(move || read(&config)).await.map_err(|error| error.to_string())
    }
}
