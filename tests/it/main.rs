//! The integration tests: one binary over the real application.

#![expect(clippy::unwrap_used, reason = "in a test, an unwrap that fails is a failure that says where")]

mod bad_input;
mod canary;
mod config;
mod contract;
mod fuzz;
mod ingest;
mod laws;
mod main_job;
mod operator;
mod privileges;
mod process;
mod rabbitmq;
mod redis;
mod roles;
mod sandbox;
mod support;
mod upstream;
mod webhook_schemes;
