//! The age at which a connection to a named host is replaced, so that its name is resolved again.
//!
//! A name that moves to another server changes nothing for the connections that exist. So they are replaced from time to
//! time, each a little earlier than the limit, at random, so that those of many processes are not replaced together.

use std::net::IpAddr;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

/// How much earlier than its limit a connection may be replaced: by a fifth.
const JITTER: f64 = 0.2;

/// The age at which connections are replaced; none where only addresses are configured.
#[derive(Clone, Copy, Debug)]
pub struct MaxAge(Option<Duration>);

impl MaxAge {
    /// Creates the limit of connections to these hosts.
    pub fn new<'a>(limit: Duration, hosts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(hosts.into_iter().any(is_name).then_some(limit))
    }

    /// Returns the limit of the connections to one of the hosts.
    pub(crate) fn of_host(self, host: &str) -> Self {
        Self(self.0.filter(|_| is_name(host)))
    }

    /// Returns whether connections are replaced at all.
    #[must_use]
    pub const fn is_limited(self) -> bool {
        self.0.is_some()
    }

    /// Waits until a connection that is opened now has reached its age. Cancel-safe, but each call starts anew.
    pub async fn reached(self) {
        match self.0 {
            Some(limit) => {
                let earlier = rand::rng().random_range(0.0..JITTER);
                sleep(limit.mul_f64(1.0 - earlier)).await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Returns whether a host is a name, and no address.
fn is_name(host: &str) -> bool {
    // A URL has brackets around an IPv6 address.
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn a_connection_to_a_name_is_replaced_before_its_limit() {
        for _ in 0..20 {
            let began = Instant::now();
            MaxAge::new(LIMIT, ["10.0.0.1", "redis.example"]).reached().await;
            let age = began.elapsed();
            assert!(age > LIMIT.mul_f64(0.79) && age <= LIMIT + Duration::from_millis(1), "{age:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_to_an_address_is_not_replaced() {
        let never = MaxAge::new(LIMIT, ["127.0.0.1", "[::1]", "::1"]);
        assert!(timeout(LIMIT * 100, never.reached()).await.is_err());
    }
}
