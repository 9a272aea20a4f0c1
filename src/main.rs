//! The door of profile-edge; everything is behind [`profile_edge::cli`].

use std::process::ExitCode;

/// A sixth of a hit's time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    profile_edge::cli::main().await
}
