//! The doors: axum lives here and nowhere else.

pub mod callers;
pub mod error;
pub mod json;
pub mod openapi;
pub mod ops;
pub mod profiles;
pub mod serve;
pub mod webhooks;
