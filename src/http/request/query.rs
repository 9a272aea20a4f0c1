//! Query strings (`application/x-www-form-urlencoded`), parsed strictly.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use crate::http::response::problem::Problem;

/// Returns the values of the named parameters, in the order of `names`; other parameters are ignored.
///
/// # Errors
///
/// 400 for a named parameter that is repeated or is not UTF-8.
pub fn parse<'q, const N: usize>(
    query: &'q str,
    names: [&'static str; N],
) -> Result<[Option<Cow<'q, str>>; N], Problem> {
    let mut found = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = decode(name) else { continue };
        let Some(index) = names.iter().position(|known| *known == name) else { continue };
        let value = decode(value).ok_or_else(|| Problem::bad_field(names[index], "must be UTF-8"))?;
        if found[index].replace(value).is_some() {
            return Err(Problem::bad_field(names[index], "is given more than once"));
        }
    }
    Ok(found)
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).decode_utf8().ok();
    }
    let spaced = text.replace('+', " ");
    percent_decode(spaced.as_bytes()).decode_utf8().ok().map(|text| Cow::Owned(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["a", "b"];

    #[test]
    fn named_parameters_are_decoded_and_others_ignored() {
        let found = parse("a=x%20y+z&c=%ff&b=%C3%A9&&", NAMES).unwrap();
        assert_eq!(found.map(|value| value.unwrap().into_owned()), ["x y z", "é"]);
        assert_eq!(parse("b=", NAMES).unwrap(), [None, Some("".into())]);
    }

    #[test]
    fn a_repeated_or_non_utf8_parameter_is_named() {
        assert!(parse("a=1&a=1", NAMES).unwrap_err().detail().starts_with("a:"));
        assert!(parse("b=%ff", NAMES).unwrap_err().detail().starts_with("b:"));
    }
}
