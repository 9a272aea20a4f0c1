//! Requests: bodies within their limits, query strings, JSON, demands on the age of an answer.

pub mod body;
pub mod budget;
pub mod cache_control;
pub mod json;
pub mod query;
