//! JSON request bodies: every fault is a 400 that names the field.

use serde::de::DeserializeOwned;

use crate::ingest::malformed;

use crate::http::response::problem::Problem;

/// Parses a body that is a JSON object.
///
/// # Errors
///
/// 400 with the field and what was expected; it does not repeat the body.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    malformed::check_depth(body, "")
        .and_then(|()| malformed::parse(body, ""))
        .map_err(|malformed| Problem::bad_field(malformed.field, malformed.expected))
}
