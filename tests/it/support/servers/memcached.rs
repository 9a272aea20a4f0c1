//! Private Memcached servers.

use std::collections::BTreeSet;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Program, Server};
use crate::support::eventually;
use crate::support::process::free_port;

/// One Memcached server.
pub(crate) struct MemcachedServer {
    pub(crate) port: u16,
    directory: TempDir,
    arguments: Vec<String>,
    server: Option<Server>,
}

impl MemcachedServer {
    /// Starts a server that ends with the test process.
    pub(crate) async fn start_for_the_process() -> &'static Self {
        Box::leak(Box::new(Self::start(&[]).await))
    }

    /// Starts a server.
    pub(crate) async fn start(more: &[&str]) -> Self {
        let port = free_port();
        let mut arguments =
            ["-l", "127.0.0.1", "-p", &port.to_string(), "-c", "4096", "-t", "2"].map(str::to_owned).to_vec();
        // As root it needs a user.
        arguments.extend(["-u", "nobody"].map(str::to_owned));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let mut server = Self { port, directory: tempfile::tempdir().unwrap(), arguments, server: None };
        server.restart().await;
        server
    }

    /// Kills it and starts it again, empty.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        let command = std::iter::once("memcached".to_owned()).chain(self.arguments.clone()).collect();
        let program = Program { image: ("memcached", "1.6"), command };
        self.server = Some(Server::start(self.directory.path(), &program).await);
        eventually("memcached accepts connections; is it installed?", || async {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill().await;
        }
    }

    /// Pauses it (SIGSTOP).
    pub(crate) async fn pause(&self) {
        self.server.as_ref().unwrap().pause().await;
    }

    /// Continues it.
    pub(crate) async fn unpause(&self) {
        self.server.as_ref().unwrap().unpause().await;
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends a command, and returns its one line of answer.
    pub(crate) async fn command(&self, command: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// Returns the keys that contain a text, each once.
    pub(crate) async fn keys(&self, text: &str) -> BTreeSet<String> {
        // A server answers one such request at a time.
        eventually("the server lists its keys", async || {
            let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap());
            stream.write_all(b"lru_crawler metadump hash\r\n").await.unwrap();
            let (mut keys, mut line) = (BTreeSet::new(), String::new());
            loop {
                line.clear();
                assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "the server has closed the connection");
                let Some(fields) = line.strip_prefix("key=") else { return line.starts_with("END").then_some(keys) };
                let key = fields.split(' ').next().unwrap().replace("%3A", ":");
                if key.contains(text) {
                    keys.insert(key);
                }
            }
        })
        .await
    }

    /// Writes this many items of another program, from the size of a mark to more than that of a record.
    pub(crate) async fn crowd(&self, items: usize) {
        let mut commands = String::new();
        for _ in 0..items {
            let (key, length) = (rand::random::<u64>(), rand::random_range(100..2_500));
            commands += &format!("ms other:{key} {length} q\r\n{}\r\n", "x".repeat(length));
        }
        assert_eq!(self.command(&(commands + "mn")).await, "MN");
    }

    /// Returns a number of its statistics.
    pub(crate) async fn statistic(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(b"stats\r\nquit\r\n").await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        let line =
            all.lines().find_map(|line| line.strip_prefix("STAT ")?.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.trim().parse().unwrap()
    }
}

/// Returns the settings of a store on these servers.
pub(crate) fn on_memcached(servers: &[&MemcachedServer]) -> String {
    let addresses: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.address())).collect();
    format!("[store]\nkind = \"memcached\"\n[store.memcached]\nservers = [{}]\n", addresses.join(", "))
}
