//! The headers that identify a request; the answer repeats them.

use http::HeaderName;

/// Identifies a request in its answer, in the log and in the audit.
pub(in crate::http) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Genesys' own request id. A request to `/api/v1` may have one too.
pub(in crate::http) const CORRELATION_ID: HeaderName = HeaderName::from_static("inin-correlation-id");
