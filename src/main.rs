//! The door of profile-edge; everything is behind [`profile_edge::cli`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    profile_edge::cli::main().await
}
