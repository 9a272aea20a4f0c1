//! Private servers for tests. Each has its own ports and directory, and stops with the test process.
//!
//! A server is a process of this machine. [`SERVERS`] can name a directory of launchers, which replace its programs, or be
//! `containers`: then a server is a container on the engine of this machine, which shares its network and the directory of
//! temporary files. Containers that a test process leaves behind (the ones its tests share) carry [`LABEL`], by which
//! `tests/run` removes them.
//! A server that is already there can be named instead, for the tests that do not harm theirs: see
//! [`redis`] and [`rabbit`].

pub(crate) mod memcached;
pub(crate) mod proxy;
pub(crate) mod rabbit;
pub(crate) mod redis;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use testcontainers::core::{ExecCommand, Mount};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

/// The variable that selects the servers; see `tests/run`.
pub(crate) const SERVERS: &str = "PROFILE_EDGE_TEST_SERVERS";

/// The label of every container that a test starts.
const LABEL: (&str, &str) = ("profile-edge", "test");

/// A program of a server's image, and its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The image that has it, and its tag.
    pub(crate) image: (&'static str, &'static str),
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
}

/// A running server.
pub(crate) enum Server {
    /// A process. It ends with this value, and with the test process even if that is killed: a shell
    /// between the two kills the server when its standard input, which only the test process holds, closes.
    Process {
        shell: Child,
        pid: String,
    },
    Container(Box<ContainerAsync<GenericImage>>),
}

impl Server {
    /// Starts a program in a directory.
    ///
    /// # Panics
    ///
    /// The program is not installed, or the engine has no such image.
    pub(crate) async fn start(directory: &Path, program: &Program) -> Self {
        if std::env::var(SERVERS).is_ok_and(|servers| servers == "containers") {
            return Self::container(directory, program).await;
        }
        let script = "\"$@\" >> log 2>&1 & pid=$!; echo $pid > server.pid; read -r _; kill -9 $pid; wait $pid";
        let _ = std::fs::remove_file(directory.join("server.pid"));
        let shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .args(&program.command)
            .env("PATH", path())
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
        Self::Process { shell, pid }
    }

    async fn container(directory: &Path, program: &Program) -> Self {
        let path = directory.display().to_string();
        // The whole directory of temporary files, since certificates are in other directories.
        let mount = std::env::temp_dir().display().to_string();
        let (name, tag) = program.image;
        // The tests must be able to remove the files of the server.
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(directory).unwrap());
        let container = GenericImage::new(name, tag)
            .with_entrypoint("/usr/bin/env")
            .with_cmd(program.command.clone())
            .with_network("host")
            .with_label(LABEL.0, LABEL.1)
            .with_mount(Mount::bind_mount(mount.clone(), mount))
            .with_working_dir(path)
            .with_user(owner.to_string())
            .start();
        let container = container.await.unwrap_or_else(|error| panic!("no container of {name}:{tag}: {error}"));
        Self::Container(Box::new(container))
    }

    /// Pauses the server (SIGSTOP).
    pub(crate) async fn pause(&self) {
        match self {
            Self::Process { pid, .. } => signal("STOP", pid),
            Self::Container(container) => container.pause().await.unwrap(),
        }
    }

    /// Continues a paused server.
    pub(crate) async fn unpause(&self) {
        match self {
            Self::Process { pid, .. } => signal("CONT", pid),
            Self::Container(container) => container.unpause().await.unwrap(),
        }
    }

    /// Runs a command beside the server, and returns what it printed.
    ///
    /// # Panics
    ///
    /// It fails.
    pub(crate) async fn run(&self, command: &[String]) -> String {
        match self {
            Self::Process { .. } => {
                // The wait must not block other tasks of the test.
                let (program, arguments) = (&command[0], &command[1..]);
                let mut running = tokio::process::Command::new(program);
                let done = running.args(arguments).env("PATH", path()).output().await.unwrap();
                assert!(done.status.success(), "{command:?}: {done:?}");
                String::from_utf8(done.stdout).unwrap()
            }
            Self::Container(container) => {
                let shell = ["sh", "-c", "\"$@\" 2>&1 && echo it worked", "sh"].map(str::to_owned);
                let command = ExecCommand::new(shell.iter().chain(command));
                let mut done = container.exec(command).await.unwrap();
                let printed = String::from_utf8(done.stdout_to_vec().await.unwrap()).unwrap();
                assert!(printed.ends_with("it worked\n"), "{printed}");
                printed
            }
        }
    }

    /// Kills the server. It has ended when this returns.
    pub(crate) async fn kill(mut self) {
        match &mut self {
            Self::Process { .. } => {}
            Self::Container(container) => container.stop_with_timeout(Some(0)).await.unwrap(),
        }
    }
}

/// Returns where programs are searched: first among the launchers.
fn path() -> OsString {
    let launchers = std::env::var_os(SERVERS).unwrap_or_default();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(launchers.into()).chain(std::env::split_paths(&usual));
    std::env::join_paths(all.filter(|path| path.is_absolute())).unwrap()
}

fn signal(name: &str, pid: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), pid]).stderr(Stdio::null()).status().unwrap();
    assert!(sent.success(), "{name}");
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Self::Process { shell, .. } = self {
            // The shell kills the server, as it does when this process dies.
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}
