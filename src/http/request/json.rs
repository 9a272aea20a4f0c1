//! Reading JSON bodies: every fault is a 400 that names the field.

use serde::de::DeserializeOwned;

use crate::ingest::malformed;

use crate::http::response::problem::Problem;

/// Parses a JSON body.
///
/// # Errors
///
/// 400, naming the field and what was expected, with nothing of the body in it.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    malformed::parse(body, "").map_err(|malformed| Problem::bad_field(malformed.field, malformed.expected))
}
