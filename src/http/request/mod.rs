//! Requests: bodies within their limits, query strings, JSON.

pub mod body;
pub mod budget;
pub mod json;
pub mod query;
