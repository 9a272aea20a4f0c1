//! Commands of the binary against a running application.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::PATIENCE;
use super::edge::Edge;

/// The output and exit code of a command.
pub(crate) struct CommandOutput {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl CommandOutput {
    /// Returns the last line that a successful command printed.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(self.out.lines().next_back().unwrap()).unwrap()
    }
}

/// Creates a command for an application, with pipes.
pub(crate) fn command(edge: &Edge, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    command.args(arguments).args(["--admin", &format!("http://{}", edge.admin)]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command with empty standard input.
pub(crate) async fn run(edge: &Edge, arguments: &[&str]) -> CommandOutput {
    run_with(edge, arguments, "").await
}

/// Runs a command with this standard input.
pub(crate) async fn run_with(edge: &Edge, arguments: &[&str], input: &str) -> CommandOutput {
    let mut child = command(edge, arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    ended(child).await
}

/// Waits until a command has ended.
pub(crate) async fn ended(child: Child) -> CommandOutput {
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    CommandOutput { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}
