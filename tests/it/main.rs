//! The integration tests: one binary over the real application.

#![expect(clippy::unwrap_used, reason = "in a test, an unwrap that fails is a failure with its location")]

mod audit;
mod authenticity;
mod bad_input;
mod canary;
mod config;
mod contacts;
mod contract;
mod dashboards;
mod documentation;
mod doors;
mod fuzz;
mod identifiers;
mod ingest;
mod interleavings;
mod laws;
mod losses;
mod main_job;
mod model;
mod operator;
mod oracle;
mod outages;
mod overload;
mod pairing;
mod privileges;
mod process;
mod protocol;
mod rabbitmq;
mod redis;
mod reload;
mod replay;
mod roles;
mod rotation;
mod sandbox;
mod sealing;
mod slow_clients;
mod stampede;
mod support;
mod tls;
mod traces;
mod upstream;
mod webhook_schemes;
