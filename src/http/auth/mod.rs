//! Who calls, and what it may: credentials, tokens, rates, and the fields that a caller may read.

pub mod authenticate;
pub mod callers;
pub mod field_set;
pub mod jwt;
pub mod rate_limit;
