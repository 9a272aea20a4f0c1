//! The doors: axum lives here and nowhere else.

pub mod body;
pub mod callers;
pub mod error;
mod held;
pub mod json;
pub mod listener;
pub mod openapi;
pub mod ops;
pub mod profiles;
pub mod query;
pub mod serve;
pub mod tls;
pub mod webhooks;
