//! The doors: axum lives here and nowhere else.

pub mod body;
pub mod callers;
pub mod error;
pub mod json;
pub mod openapi;
pub mod ops;
pub mod profiles;
pub mod query;
pub mod serve;
pub mod webhooks;
