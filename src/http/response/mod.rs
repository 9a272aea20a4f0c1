//! Writes responses: problems, and the headers that describe a cached answer.

pub(super) mod cache_status;
pub mod problem;
