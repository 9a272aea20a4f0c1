//! Connects to a name that has several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

/// Connects to the addresses of a host in turn, by `connect`, and returns the first connection. Each address gets an equal part
/// of the time that is left, so that a silent one hides no other.
///
/// # Errors
///
/// The name has no address, or the failure of the last address.
pub(crate) async fn first_to_answer<T, F>(
    host: &str,
    port: u16,
    within: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    first_of(lookup_host((host, port)).await?.collect(), within, connect).await
}

async fn first_of<T, F>(
    addresses: Vec<SocketAddr>,
    within: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let (until, mut left) = (Instant::now() + within, u32::try_from(addresses.len()).unwrap_or(u32::MAX));
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        let patience = until.saturating_duration_since(Instant::now()) / left;
        left -= 1;
        match timeout(patience, connect(address)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_hides_no_other() {
        let addresses: Vec<SocketAddr> = [1, 2, 3].map(|host| ([10, 0, 0, host], 5672).into()).to_vec();
        let second = addresses[1];
        let connect = async |address: SocketAddr| {
            if address == second { Ok(address) } else { std::future::pending().await }
        };
        assert_eq!(first_of(addresses.clone(), WITHIN, connect).await.unwrap(), second);
        let refused = async |address: SocketAddr| {
            if address == second { std::future::pending().await } else { Err(io::ErrorKind::ConnectionRefused.into()) }
        };
        let began = Instant::now();
        let error = first_of::<(), _>(addresses.clone(), WITHIN, refused).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::ConnectionRefused, WITHIN / 2));
        let nobody = async |_address| std::future::pending::<io::Result<()>>().await;
        let refused = first_of(addresses, WITHIN, nobody).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    }
}
