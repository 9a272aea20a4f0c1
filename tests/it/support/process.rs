//! The real binary as a process of its own, to be signalled and killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PATIENCE, eventually};

/// A running profile-edge process.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the binary with these arguments and this environment, in a directory of its own.
    pub(crate) fn start(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_with(directory, arguments, environment, |_| true)
    }

    /// Starts it likewise, and hands each line of its log to `keep`, which tells whether it is kept.
    pub(crate) fn start_with(
        directory: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_profile-edge"))
            .args(arguments)
            .current_dir(directory)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (mut from, into) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&lines));
        tokio::spawn(async move {
            while let Ok(Some(line)) = from.next_line().await {
                if keep(&line) {
                    into.lock().push(line);
                }
            }
        });
        Self { child, lines }
    }

    /// Everything the process has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// Waits until a line of the log matches, and returns what follows the pattern in it.
    pub(crate) async fn says(&self, pattern: &str) -> String {
        eventually(pattern, || async {
            let lines = self.lines.lock();
            lines.iter().find_map(|line| line.split_once(pattern).map(|(_, rest)| rest.to_owned()))
        })
        .await
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end and returns the exit code; `None` when a signal ended it.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap().code()
    }
}

/// Writes a configuration file into a directory.
pub(crate) fn configuration(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("edge.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
