//! Query strings: `application/x-www-form-urlencoded`, strictly.

use std::collections::HashMap;

use percent_encoding::percent_decode;

use super::error::Problem;

/// Returns the named parameters of a query; others are ignored.
///
/// # Errors
///
/// 400 for a named parameter that is given twice or is not UTF-8.
pub fn parse(query: &str, names: &[&'static str]) -> Result<HashMap<&'static str, String>, Problem> {
    let mut found = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = decode(name).and_then(|name| names.iter().copied().find(|known| *known == name)) else {
            continue;
        };
        let value = decode(value).ok_or_else(|| Problem::bad_field(name, "must be UTF-8"))?;
        if found.insert(name, value).is_some() {
            return Err(Problem::bad_field(name, "is given more than once"));
        }
    }
    Ok(found)
}

fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a", "b"];

    #[test]
    fn named_parameters_are_decoded_and_others_ignored() {
        let found = parse("a=x%20y+z&c=%ff&b=%C3%A9&&", &NAMES).unwrap();
        assert_eq!(found["a"], "x y z");
        assert_eq!(found["b"], "é");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_parameter_that_is_given_twice_or_is_not_text_is_named() {
        assert!(parse("a=1&a=1", &NAMES).unwrap_err().detail().starts_with("a:"));
        assert!(parse("b=%ff", &NAMES).unwrap_err().detail().starts_with("b:"));
    }
}
