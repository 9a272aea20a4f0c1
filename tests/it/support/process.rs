//! The real binary as its own process, which tests can signal and kill.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, customer, eventually};

/// The binary under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_profile-edge");

/// A running profile-edge process.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the binary with these arguments and this environment, in its own directory.
    pub(crate) fn start(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_with(directory, arguments, environment, |_| true)
    }

    /// Starts it in the same way, and keeps the lines of its log for which `keep` returns true.
    pub(crate) fn start_with(
        directory: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        Self::start_with_stdout(directory, arguments, environment, Stdio::null(), keep)
    }

    /// Starts it in the same way, with this standard output.
    pub(crate) fn start_with_stdout(
        directory: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        stdout: Stdio,
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        Self::start_program(PROGRAM.as_ref(), directory, arguments, environment, stdout, keep)
    }

    /// Starts another build of the binary in the same way.
    pub(crate) fn start_program(
        program: &Path,
        directory: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        stdout: Stdio,
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        let mut child = spawn(program, directory, arguments, environment, stdout);
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

    /// Starts it in the same way, with a small disk of its own, of this many MiB, mounted at a directory. The disk contains
    /// what the directory `{disk}.kept` contains, if there is one.
    pub(crate) fn start_on_small_disk(directory: &Path, disk: &Path, mib: u32, environment: &[(&str, &str)]) -> Self {
        let copy = "{ [ ! -d \"$0.kept\" ] || cp -a \"$0.kept/.\" \"$0\"; }";
        let mount = format!("mount -t tmpfs -o size={mib}m none \"$0\" && {copy} && exec \"$@\"");
        let disk = disk.display().to_string();
        // The mount is visible to this process alone, and ends with it.
        let arguments = ["--map-root-user", "--mount", "sh", "-c", &mount, &disk, PROGRAM];
        Self::start_program("unshare".as_ref(), directory, &arguments, environment, Stdio::null(), |_| true)
    }

    /// Everything the process has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// Waits until a line of the log matches, and returns what follows the pattern in it.
    pub(crate) async fn wait_for_log(&self, pattern: &str) -> String {
        eventually(pattern, || async {
            let lines = self.lines.lock();
            lines.iter().find_map(|line| line.split_once(pattern).map(|(_, rest)| rest.to_owned()))
        })
        .await
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns how much time of a processor the process has used so far (`proc_pid_stat(5)`: utime and stime).
    pub(crate) fn processor_time(&self) -> Duration {
        /// Linux counts hundredths of a second here (`USER_HZ`).
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id().unwrap())).unwrap();
        // The second field is the program's name in brackets, which may hold any character. utime is the fourteenth.
        let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
        fields.skip(11).take(2).map(|ticks| TICK * ticks.parse::<u32>().unwrap()).sum()
    }

    /// Returns the resident memory, in MiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Takes half of the processor time from the process for a while (SIGSTOP and SIGCONT).
    pub(crate) async fn starve(&self, time: Duration) {
        let (began, period) = (Instant::now(), Duration::from_millis(200));
        while began.elapsed() < time {
            self.signal("STOP");
            sleep(period).await;
            self.signal("CONT");
            sleep(period).await;
        }
    }

    /// Waits for the end and returns the exit code; `None` after a signal.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap().code()
    }
}

/// Starts the binary, without the delay of its shutdown unless the environment sets one.
fn spawn(program: &Path, directory: &Path, arguments: &[&str], environment: &[(&str, &str)], stdout: Stdio) -> Child {
    Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env_remove("RUST_LOG")
        .env("PROFILE_EDGE__SHUTDOWN__DELAY", "0s")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The ports of the real binary, chosen before it starts.
pub(crate) struct Ports {
    pub(crate) public: u16,
    pub(crate) admin: u16,
    pub(crate) sandbox: u16,
}

impl Ports {
    pub(crate) fn draw() -> Self {
        Self { public: free_port(), admin: free_port(), sandbox: free_port() }
    }

    /// Starts it with a small disk of its own, see [`Process::start_on_small_disk`].
    pub(crate) fn start_on_small_disk(
        &self,
        directory: &Path,
        disk: &Path,
        mib: u32,
        more: &[(&str, &str)],
    ) -> Process {
        self.start_as(more, |environment| Process::start_on_small_disk(directory, disk, mib, environment))
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("PROFILE_EDGE__HTTP__LISTEN".to_owned(), format!("127.0.0.1:{}", self.public)),
            ("PROFILE_EDGE__ADMIN__LISTEN".to_owned(), format!("127.0.0.1:{}", self.admin)),
            ("PROFILE_EDGE__SANDBOX__LISTEN".to_owned(), format!("127.0.0.1:{}", self.sandbox)),
            ("PROFILE_EDGE__SANDBOX__LATENCY".to_owned(), "0ms".to_owned()),
        ]
    }

    pub(crate) fn start(&self, directory: &Path, more: &[(&str, &str)]) -> Process {
        self.start_with_stdout(directory, more, Stdio::null())
    }

    /// Starts it in the same way, with this standard output.
    pub(crate) fn start_with_stdout(&self, directory: &Path, more: &[(&str, &str)], stdout: Stdio) -> Process {
        self.start_as(more, |environment| Process::start_with_stdout(directory, &[], environment, stdout, |_| true))
    }

    /// Starts it in the same way; nobody reads its standard error until the caller does.
    pub(crate) fn start_unread(&self, directory: &Path, more: &[(&str, &str)]) -> (Process, ChildStderr) {
        self.start_as(more, |environment| {
            let mut child = spawn(PROGRAM.as_ref(), directory, &[], environment, Stdio::null());
            let unread = child.stderr.take().unwrap();
            (Process { child, lines: Arc::default() }, unread)
        })
    }

    fn start_as<T>(&self, more: &[(&str, &str)], start: impl FnOnce(&[(&str, &str)]) -> T) -> T {
        let environment = self.environment();
        let own = environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        start(&own.chain(more.iter().copied()).collect::<Vec<_>>())
    }

    pub(crate) async fn ready(&self, client: &reqwest::Client) -> Value {
        eventually("readiness", || async {
            let answer = client.get(format!("http://127.0.0.1:{}/readyz", self.admin)).send().await.ok()?;
            if answer.status() == 200 { answer.json().await.ok() } else { None }
        })
        .await
    }

    pub(crate) async fn metric(&self, client: &reqwest::Client, series: &str) -> f64 {
        let text = client.get(format!("http://127.0.0.1:{}/metrics", self.admin)).send().await.unwrap();
        let text = text.text().await.unwrap();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub(crate) async fn post(&self, client: &reqwest::Client, n: u32) -> u16 {
        let event = json!({ "tenantId": "10001", "customerId": customer(n), "eventId": event_id(n) });
        let url = format!("http://127.0.0.1:{}/webhook/customer-updated", self.public);
        client.post(url).header("X-API-Key", "demo-secret").json(&event).send().await.unwrap().status().as_u16()
    }
}

/// The id of the event that [`Ports::post`] posts for customer `n`: a UUID, which is shown as it is.
pub(crate) fn event_id(n: u32) -> String {
    format!("4cbedb0f-4dfd-4c8e-9e57-{n:012}")
}

/// Writes a configuration file into a directory.
pub(crate) fn configuration(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("edge.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Returns a port that was free a moment ago and that no other program gets by chance: it is outside the ephemeral range
/// of the system and was not returned before. The same holds for the port 10,000 above it, which is the bus port of a
/// Redis Cluster node.
pub(crate) fn free_port() -> u16 {
    static RETURNED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(12_000..22_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() && RETURNED.lock().insert(port) {
            return port;
        }
    }
}
