//! The doors: axum lives here and nowhere else.

pub mod body;
mod cache_status;
pub mod callers;
pub mod contacts;
pub mod door;
pub mod error;
pub mod front;
mod held;
pub mod json;
pub mod listener;
pub mod oauth;
pub mod openapi;
pub mod ops;
pub mod profiles;
pub mod query;
pub mod rate;
pub mod serve;
pub mod tls;
pub mod tokens;
mod trail;
pub mod webhooks;
