//! Callers: their credentials, tokens and rate limits, and the fields that each may read.

pub mod authenticate;
pub mod callers;
pub mod field_set;
pub mod jwt;
pub mod profile_handles;
pub mod rate_limit;
