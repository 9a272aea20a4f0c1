//! The door of profile-edge; everything is behind [`profile_edge::cli`].

use std::process::ExitCode;

/// The system's allocator has one lock for each of its arenas, and what one thread frees another has often made: with
/// it a hit costs a fifth more (perf, glibc 2.36). mimalloc is as quick as this one, and takes 20 MiB more.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    profile_edge::cli::main().await
}
