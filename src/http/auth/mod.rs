//! Callers: their credentials, tokens and rate limits, and the fields that each may read; agents with their own tokens.

mod agent_request;
pub mod agents;
pub mod authenticate;
mod caller_share;
pub mod callers;
pub mod field_set;
pub mod jwt;
pub mod profile_handles;
pub mod rate_limit;
pub mod scope;
