//! The integration tests: one binary over the real application.

mod contract;
mod sandbox;
mod support;
mod upstream;
