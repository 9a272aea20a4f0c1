//! Private servers for tests: each on a port and in a directory of its own, and gone when the test process
//! is, however it ends.

pub(crate) mod proxy;
pub(crate) mod rabbit;
pub(crate) mod redis;

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server process. It ends with this value, and with the test process even if that is killed: a shell
/// between the two kills the server when its standard input, which only the test process holds, closes.
pub(crate) struct Server {
    shell: Child,
    pid: String,
}

impl Server {
    /// Starts a program of this machine in a directory; what it prints goes to `log` there.
    ///
    /// # Panics
    ///
    /// The program is not installed.
    pub(crate) fn start(directory: &Path, program: &str, arguments: &[String]) -> Self {
        let script = "\"$@\" >> log 2>&1 & pid=$!; echo $pid > server.pid; read -r _; kill -9 $pid; wait $pid";
        let _ = std::fs::remove_file(directory.join("server.pid"));
        let shell = Command::new("sh")
            .args(["-c", script, "sh", program])
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = loop {
            match std::fs::read_to_string(directory.join("server.pid")) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => std::thread::yield_now(),
            }
        };
        Self { shell, pid }
    }

    /// Sends the server a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid]).stderr(Stdio::null()).status().unwrap();
        assert!(sent.success(), "{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The shell kills the server, as it does when this process dies.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
