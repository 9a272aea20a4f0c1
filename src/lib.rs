//! profile-edge: an edge cache for Genesys Cloud customer profiles.
//!
//! Three flows (ingest, consumer, lookup) use three ports (queue, store, upstream) and one domain. Data flows in one
//! direction: `ingest → queue → consumer → store`, and `lookup → store → upstream → store`.

mod addresses;
pub mod app;
pub mod audit;
pub mod authorization;
mod breaker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consumer;
pub mod contact;
pub mod doctor;
pub mod domain;
pub mod faults;
pub mod http;
pub mod ingest;
pub mod invalid;
pub mod listen;
pub mod logging;
pub mod lookup;
pub mod max_age;
pub mod metrics;
pub mod operate;
mod patience;
mod private_files;
pub mod queue;
pub mod readiness;
pub mod reload;
pub mod request_context;
pub mod roles;
pub mod same_server;
pub mod sampled;
pub mod sandbox;
pub mod shares;
pub mod shutdown;
pub mod sources;
pub mod spans;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod tls;
pub mod upstream;

/// Architecture, the rules of the consistency protocol, and the words: the page `src/README.md`. Code cites a rule by the
/// name of its heading here.
#[doc = include_str!("README.md")]
pub mod rules {}
