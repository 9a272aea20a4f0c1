//! The request directives of `Cache-Control` (RFC 9111 section 5.2.1): how old an answer may be.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

/// Returns the greatest age of an acceptable answer, if the client demands one: `no-cache` (zero) or `max-age` in seconds.
/// Other directives are ignored, and so is a value that is no number.
pub fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    let directives = values.flat_map(|value| value.split(',')).map(str::trim);
    directives
        .filter_map(|directive| {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            if name.eq_ignore_ascii_case("no-cache") {
                Some(Duration::ZERO)
            } else if name.eq_ignore_ascii_case("max-age") {
                value.trim_matches('"').parse().ok().map(Duration::from_secs)
            } else {
                None
            }
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<u64> {
        let headers = [(header::CACHE_CONTROL, value.parse().unwrap())].into_iter().collect();
        max_age(&headers).map(|age| age.as_secs())
    }

    #[test]
    fn the_strictest_directive_counts_and_others_do_not() {
        assert_eq!(of("no-cache"), Some(0));
        assert_eq!(of("max-age=30"), Some(30));
        assert_eq!(of("Max-Age=\"7\" , no-store"), Some(7));
        assert_eq!(of("max-age=30, No-Cache"), Some(0));
        for other in ["", "no-store", "max-age", "max-age=-1", "max-age=x", "max-stale=5", "only-if-cached"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
