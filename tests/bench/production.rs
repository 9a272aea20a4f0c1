//! profile-edge as it runs in production, on Redis and RabbitMQ, against bare programs of the same libraries.
//!
//! Run with `cargo bench --bench production`; with `hits`, `memcached`, `identifiers`, `batches`, `changes`, `pipeline`, `outbox`, `protocol`,
//! `protections`, `overload` or `watched` after a `--`, only that one runs. Every server is a separate process: the service (the
//! real binary), its Genesys, the bare programs, Redis and RabbitMQ. The load comes from this process, on one thread. The rounds
//! of both sides alternate in one run and medians are compared, so that a ratio depends neither on the machine nor on its other work. It is not a
//! test: nothing here fails because a machine is slow.

mod bare;
mod batches;
mod changes;
mod figures;
mod identifiers;
mod load;
mod memcached_hits;
mod outbox;
mod overload;
mod pipeline;
mod protections;
mod protocol;
mod redis_hits;
mod service;
#[expect(dead_code, clippy::unwrap_used, reason = "the support of the tests; this needs only its servers")]
#[path = "../it/support/mod.rs"]
mod support;
mod watched;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument.starts_with("bare-")) {
        // All cores, like the service.
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        return runtime.block_on(bare::run(&arguments));
    }
    // `cargo test --benches` also runs this binary, to check that it starts; only `cargo bench` creates load.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("production: run with cargo bench --bench production");
        return;
    }
    let only = |name: &str| {
        let mut names = arguments.iter().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|argument| argument == name)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        if only("hits") {
            redis_hits::compare().await;
        }
        if only("memcached") {
            memcached_hits::compare().await;
        }
        if only("identifiers") {
            identifiers::compare().await;
        }
        if only("batches") {
            batches::compare().await;
        }
        if only("changes") {
            changes::measure().await;
        }
        if only("pipeline") {
            pipeline::compare().await;
        }
        if only("outbox") {
            outbox::compare().await;
        }
        if only("protocol") {
            protocol::measure().await;
        }
        if only("protections") {
            protections::compare().await;
        }
        if only("overload") {
            overload::measure().await;
        }
        if only("watched") {
            watched::measure().await;
        }
    });
}
