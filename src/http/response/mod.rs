//! Responses: problems, and the headers that describe a cached answer.

pub(super) mod batch_body;
pub(super) mod cache_status;
pub mod dialect;
pub(super) mod etag;
pub(super) mod headers;
pub mod problem;
pub mod rate_limit_headers;
