//! The dependencies that the start waits for, and what is reported if they do not answer.

use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::queue::open::{OpenQueue, QueueKind};
use crate::shutdown::Shutdown;
use crate::store::Lifetimes;
use crate::store::open::OpenStore;
use crate::{queue, store};

use super::Error;
use super::reload::AccessControl;

/// How long an address of a silent dependency may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens the queue, if a role of this process uses it. A local file is not waited for, but checked, for as long as it takes;
/// with an outbox the broker is not waited for either.
pub(super) async fn queue(
    config: &Config,
    clock: &SharedClock,
    tasks: &Shutdown,
    metrics: &Arc<Metrics>,
    until: Instant,
) -> Result<Option<OpenQueue>, Error> {
    if !config.roles.use_the_queue() {
        return Ok(None);
    }
    let mut settings = config.queue.clone();
    // The other roles publish nothing that is not on the broker already.
    settings.outbox.enabled &= config.roles.ingest;
    let opening = queue::open::open(&settings, Arc::clone(clock), tasks, Arc::clone(metrics));
    if settings.kind == QueueKind::Embedded || settings.outbox.enabled {
        return Ok(Some(opening.await?));
    }
    let addresses = || config.queue.amqp.addresses().unwrap_or_default();
    Ok(Some(answered("the queue (RabbitMQ)", config, until, opening, addresses).await??))
}

/// Opens the store, and waits for it if a role of this process uses it.
pub(super) async fn store(
    config: &Config,
    access: &AccessControl,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
    until: Instant,
) -> Result<OpenStore, Error> {
    let lifetimes =
        Lifetimes { dedup_window: config.consumer.dedup_window, tombstone_ttl: config.consumer.tombstone_ttl };
    let opening = store::open::open(&config.store, &access.keyring, lifetimes, clock, metrics, shutdown, config.roles);
    let addresses = || config.store.redis.addresses().unwrap_or_default();
    Ok(answered("the store (Redis)", config, until, opening, addresses).await??)
}

/// Waits for a dependency; on a timeout, reports what each of its addresses answers.
async fn answered<T>(
    dependency: &'static str,
    config: &Config,
    until: Instant,
    opening: impl Future<Output = T>,
    addresses: impl FnOnce() -> Vec<Url>,
) -> Result<T, Error> {
    if let Ok(opened) = timeout_at(until, opening).await {
        return Ok(opened);
    }
    let mut cause = String::new();
    for url in addresses() {
        let separator = if cause.is_empty() { "" } else { "; " };
        // The host and the port only: the rest of the URL may hold a password.
        let (scheme, host, port) = (url.scheme(), url.host_str().unwrap_or_default(), port_of(&url));
        // Writing to a string does not fail.
        let _ = write!(cause, "{separator}{scheme}://{host}:{port}: {}", reachability(host, port).await);
    }
    Err(Error::NoAnswer { dependency, limit: config.startup_timeout, cause })
}

/// Returns why an address cannot be connected to, or what to look at if it can.
async fn reachability(host: &str, port: u16) -> String {
    // A URL has brackets around an IPv6 address.
    let host = host.trim_matches(['[', ']']);
    match timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => {
            "accepts connections, but the handshake fails (TLS, credentials or another protocol); the warnings \
                      in the log name the cause"
                .to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => "no answer".to_owned(),
    }
}

fn port_of(url: &Url) -> u16 {
    url.port().unwrap_or(match url.scheme() {
        "redis" | "rediss" => 6379,
        "amqps" => 5671,
        _ => 5672,
    })
}
