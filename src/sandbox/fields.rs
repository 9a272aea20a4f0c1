//! The fields of a contact: which are writable, their maximum size, and how a patch applies.

use serde_json::{Map, Value};

use super::errors::ApiError;

/// The maximum size of a contact (its writable fields) and of a request body, in bytes: `request.bytes.max` of Genesys.
pub(super) const MAX_BYTES: usize = 512_000;

/// The fields that Genesys sets itself; values in a request are ignored.
const READ_ONLY: [&str; 13] = [
    "id",
    "division",
    "type",
    "createDate",
    "modifyDate",
    "selfUri",
    "canonicalContact",
    "mergeSet",
    "mergedFrom",
    "mergedTo",
    "mergeOperation",
    "externalDataSources",
    "identifiers",
];

/// The JSON fields of a contact.
pub(super) type Fields = Map<String, Value>;

/// Refuses fields above [`MAX_BYTES`] with 413.
pub(super) fn fits(fields: Fields) -> Result<Fields, ApiError> {
    match serde_json::to_vec(&fields) {
        Ok(json) if json.len() <= MAX_BYTES => Ok(fields),
        _ => Err(ApiError::too_large()),
    }
}

/// Removes the read-only fields.
pub(super) fn writable(mut fields: Fields) -> Fields {
    fields.retain(|name, _| !READ_ONLY.contains(&name.as_str()));
    fields
}

/// Applies a JSON merge patch (RFC 7396).
pub(super) fn patch(target: &mut Fields, changes: Fields) {
    for (name, change) in changes {
        match change {
            Value::Null => {
                target.remove(&name);
            }
            Value::Object(changes) => {
                let nested = target.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if !nested.is_object() {
                    *nested = Value::Object(Map::new());
                }
                if let Value::Object(nested) = nested {
                    patch(nested, changes);
                }
            }
            whole @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                target.insert(name, whole);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_follows_the_examples_of_rfc_7396() {
        for (target, change, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":"foo"}), json!({"a":{"b":1}}), json!({"a":{"b":1}})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let (mut target, change) = (target.as_object().unwrap().clone(), change.as_object().unwrap().clone());
            patch(&mut target, change);
            assert_eq!(Value::Object(target), result);
        }
    }
}
