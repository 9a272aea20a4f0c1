//! The entry point; see [`profile_edge::cli`].

use std::process::ExitCode;

/// The allocator of the system has one lock for each arena, and memory is often freed by another thread: with it a hit costs
/// a fifth more (perf, glibc 2.36). mimalloc is as fast as jemalloc, and uses 20 MiB more.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    profile_edge::cli::main()
}
