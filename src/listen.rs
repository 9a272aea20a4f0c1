//! Listening for connections.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted; the system lowers it to `net.core.somaxconn`. The library's own value is
/// 128: of a burst of more connections, the others would be dropped and begin again after a second (RFC 6298 section 2).
const BACKLOG: u32 = 4_096;

/// Binds an address, and listens on it.
///
/// # Errors
///
/// The address is in use, or does not belong to this machine.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted process can bind although connections of the last one are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::try_join_all;
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_connections_waits_to_be_accepted_and_none_is_dropped() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let burst = try_join_all((0..400).map(|_| TcpStream::connect(addr)));
        // A dropped one waits for room for as long as nobody accepts.
        timeout(Duration::from_secs(20), burst).await.expect("all are connected").unwrap();
        drop(listener);
    }
}
