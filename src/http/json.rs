use super::error::Problem;
pub fn parse<T: serde::de::DeserializeOwned>(b: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(b).map_err(|_| Problem::bad_field("body", "x"))
}
