//! The fields of a profile that a caller may read.
//!
//! A [`FieldSet`] is a tree of field names. A field is visible when it or one of its ancestors is in the set; below an
//! array the names apply to each element. Visible values are copied verbatim and in their order: numbers keep their
//! digits, strings their escapes. [`DisclosedFields`] lists the paths of the set that the profile has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::{DisclosedFields, FieldMarks, is_name};

/// The maximum number of fields that a request may name: its audit record shows them.
pub const MAX_FIELDS: usize = 64;

/// The maximum number of parts of a path.
const MAX_DEPTH: usize = 16;

/// The maximum length of a path, in bytes.
const MAX_PATH: usize = 256;

/// A set of fields: all of them, or named paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldSet {
    /// Every field.
    All,
    /// These fields, with everything below them.
    Only(FieldPaths),
}

/// Named paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPaths {
    tree: FieldTree,
    /// The paths; the position is a path's number.
    paths: Arc<[Box<str>]>,
}

/// A tree of field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FieldTree {
    names: BTreeMap<String, Subtree>,
}

/// The part of a field that is in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subtree {
    /// The whole field: the path with this number ends here.
    Whole(usize),
    /// Only the fields with these names.
    Part(FieldTree),
}

/// A text is not a field path. Audit records show paths, so they are names that the redaction of `conf/shipping` passes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be \"*\", or paths of at most 256 bytes: names of A-Z, a-z, 0-9, '_' and '-', joined by dots")]
pub struct InvalidPath;

/// The stored profile is not a JSON object, although it was one when it was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored profile is not a json object")]
pub struct NotAnObject;

impl FieldSet {
    /// Parses a list of paths; `*` means every field.
    ///
    /// # Errors
    ///
    /// A path is empty, has more than 256 bytes or 16 parts, or a part is not a name.
    pub fn parse<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidPath> {
        let mut tree = FieldTree::default();
        let mut all = false;
        for path in paths {
            if path == "*" {
                all = true;
            } else {
                let parts: Vec<&str> = path.split('.').collect();
                if path.len() > MAX_PATH || parts.len() > MAX_DEPTH || !parts.iter().all(|part| is_name(part)) {
                    return Err(InvalidPath);
                }
                tree.insert(&parts);
            }
        }
        if all {
            return Ok(Self::All);
        }
        let mut paths = Vec::new();
        tree.number("", &mut paths);
        Ok(Self::Only(FieldPaths { tree, paths: paths.into() }))
    }

    /// Returns whether this set includes everything in `requested`.
    #[must_use]
    pub fn covers(&self, requested: &Self) -> bool {
        match (self, requested) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(granted), Self::Only(requested)) => granted.tree.covers(&requested.tree),
        }
    }

    /// Returns the visible part of a profile and the paths that it has; with [`FieldSet::All`] the profile itself, unparsed.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object.
    pub fn filter(&self, body: &Bytes) -> Result<(Bytes, DisclosedFields), NotAnObject> {
        match self {
            Self::All => Ok((body.clone(), DisclosedFields::All)),
            Self::Only(fields) => {
                let text = std::str::from_utf8(body).map_err(|_| NotAnObject)?;
                let marks = FieldMarks::none(Arc::clone(&fields.paths));
                let mut view = FilteredBody { out: Vec::with_capacity(body.len()), marks };
                let mut json = serde_json::Deserializer::from_str(text);
                json.deserialize_map(PartlyVisible { tree: &fields.tree, view: &mut view })
                    .and_then(|()| json.end())
                    .map_err(|_| NotAnObject)?;
                Ok((view.out.into(), DisclosedFields::Some(view.marks)))
            }
        }
    }
}

impl FieldTree {
    fn insert(&mut self, parts: &[&str]) {
        let Some((name, below)) = parts.split_first() else { return };
        if below.is_empty() {
            self.names.insert((*name).to_owned(), Subtree::Whole(0));
        } else if let Subtree::Part(tree) =
            self.names.entry((*name).to_owned()).or_insert_with(|| Subtree::Part(Self::default()))
        {
            tree.insert(below);
        }
    }

    /// Numbers the paths and collects them.
    fn number(&mut self, above: &str, paths: &mut Vec<Box<str>>) {
        for (name, below) in &mut self.names {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            match below {
                Subtree::Whole(number) => {
                    *number = paths.len();
                    paths.push(path.into());
                }
                Subtree::Part(tree) => tree.number(&path, paths),
            }
        }
    }

    fn covers(&self, requested: &Self) -> bool {
        requested.names.iter().all(|(name, below)| match (self.names.get(name), below) {
            (None, _) | (Some(Subtree::Part(_)), Subtree::Whole(_)) => false,
            (Some(Subtree::Whole(_)), _) => true,
            (Some(Subtree::Part(granted)), Subtree::Part(below)) => granted.covers(below),
        })
    }
}

/// The visible part of a profile while it is written.
///
/// The profile is read once, from its first byte to its last; each seed below reads one value and writes what is visible of
/// it. The reader refuses more than 127 levels of partly visible values, and skips and copies others without recursion.
struct FilteredBody {
    out: Vec<u8>,
    marks: FieldMarks,
}

impl FilteredBody {
    fn write_field<'de, A: MapAccess<'de>>(&mut self, below: &Subtree, map: &mut A) -> Result<(), A::Error> {
        match below {
            Subtree::Whole(number) => {
                self.marks.mark(*number);
                self.out.extend_from_slice(map.next_value::<&'de RawValue>()?.get().as_bytes());
                Ok(())
            }
            Subtree::Part(tree) => map.next_value_seed(PartlyVisible { tree, view: self }),
        }
    }
}

/// Reads the name of a field, and finds it in the set.
struct FieldName<'a>(&'a FieldTree);

impl<'de, 'a> DeserializeSeed<'de> for FieldName<'a> {
    type Value = Option<(&'a String, &'a Subtree)>;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for FieldName<'a> {
    type Value = Option<(&'a String, &'a Subtree)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.names.get_key_value(name))
    }
}

/// Reads a value of which only some fields are visible. A scalar has no fields, so it is written as `null`.
struct PartlyVisible<'a> {
    tree: &'a FieldTree,
    view: &'a mut FilteredBody,
}

impl PartlyVisible<'_> {
    fn hide<E>(self) -> Result<(), E> {
        self.view.out.extend_from_slice(b"null");
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for PartlyVisible<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PartlyVisible<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { tree, view } = self;
        let mut separator = b'{';
        while let Some(field) = map.next_key_seed(FieldName(tree))? {
            let Some((name, below)) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            view.out.push(std::mem::replace(&mut separator, b','));
            serde_json::to_writer(&mut view.out, name).map_err(serde::de::Error::custom)?;
            view.out.push(b':');
            view.write_field(below, &mut map)?;
        }
        if separator == b'{' {
            view.out.push(b'{');
        }
        view.out.push(b'}');
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { tree, view } = self;
        let start = view.out.len();
        view.out.push(b'[');
        while seq.next_element_seed(PartlyVisible { tree, view: &mut *view })?.is_some() {
            view.out.push(b',');
        }
        // The last separator, if there is an element.
        if view.out.len() > start + 1 {
            view.out.pop();
        }
        view.out.push(b']');
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.hide()
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.hide()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.hide()
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.hide()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.hide()
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.hide()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn filter(paths: &[&str], body: &str) -> String {
        let fields = FieldSet::parse(paths.iter().copied()).unwrap();
        String::from_utf8(fields.filter(&Bytes::copy_from_slice(body.as_bytes())).unwrap().0.to_vec()).unwrap()
    }

    const ADA: &str = r#"{"id":"1", "firstName":"Ada","workPhone":{"e164":"+1","display":"x"},
        "externalIds":[{"value":"a","n":1.50},{"value":"b"}],"title":null}"#;

    #[test]
    fn only_granted_fields_are_visible() {
        assert_eq!(filter(&["firstName"], ADA), r#"{"firstName":"Ada"}"#);
        assert_eq!(filter(&["workPhone.e164", "id"], ADA), r#"{"id":"1","workPhone":{"e164":"+1"}}"#);
        assert_eq!(filter(&["externalIds.value"], ADA), r#"{"externalIds":[{"value":"a"},{"value":"b"}]}"#);
        assert_eq!(filter(&["externalIds"], ADA), r#"{"externalIds":[{"value":"a","n":1.50},{"value":"b"}]}"#);
        assert_eq!(filter(&[], ADA), "{}");
        assert_eq!(filter(&["*"], ADA), ADA);
    }

    #[test]
    fn shown_lists_the_granted_paths_that_the_profile_has() {
        let shown = |paths: &[&str]| {
            let fields = FieldSet::parse(paths.iter().copied()).unwrap();
            let (_, shown) = fields.filter(&Bytes::from_static(ADA.as_bytes())).unwrap();
            shown.names().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["*"]), ["*"]);
        assert_eq!(
            shown(&["firstName", "lastName", "workPhone.e164", "workPhone.x", "externalIds.n"]),
            ["externalIds.n", "firstName", "workPhone.e164"]
        );
        assert_eq!(shown(&["nothing", "firstName.first"]), [""; 0]);
        let many: Vec<String> = (0..80).map(|n| format!("a{n:02}")).chain(["title".to_owned()]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(shown(&many).contains(&"title".to_owned()));
    }

    #[test]
    fn a_scalar_is_hidden_where_only_fields_below_it_are_granted() {
        assert_eq!(filter(&["firstName.first"], ADA), r#"{"firstName":null}"#);
    }

    #[test]
    fn a_whole_field_includes_its_parts() {
        assert_eq!(filter(&["workPhone.e164", "workPhone"], ADA), filter(&["workPhone"], ADA));
        assert_eq!(filter(&["workPhone", "workPhone.e164"], ADA), filter(&["workPhone"], ADA));
    }

    #[test]
    fn a_set_covers_only_what_it_grants() {
        let set = |paths: &[&str]| FieldSet::parse(paths.iter().copied()).unwrap();
        assert!(set(&["*"]).covers(&set(&["a.b"])));
        assert!(set(&["a"]).covers(&set(&["a.b"])));
        assert!(set(&["a.b"]).covers(&set(&["a.b"])));
        assert!(!set(&["a.b"]).covers(&set(&["a"])));
        assert!(!set(&["a.b"]).covers(&set(&["a.b", "c"])));
        assert!(!set(&["a"]).covers(&FieldSet::All));
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in ["", ".", "a.", ".a", "a..b", "a.*", "ada@example.com", "+15550199871", "a b", &"a".repeat(65)] {
            assert_eq!(FieldSet::parse([path]), Err(InvalidPath), "{path}");
        }
    }

    #[test]
    fn escaped_field_names_are_compared_after_decoding() {
        assert_eq!(filter(&["secret"], r#"{"\u0073ecret":1,"sec\u0072et2":2}"#), r#"{"secret":1}"#);
        assert_eq!(filter(&["a"], r#"{"\u0062":1}"#), "{}");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c\"\\\\]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4).prop_map(|m| json!(m)),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_filtered_body_is_valid_json_and_filtering_is_idempotent(
            members in prop::collection::btree_map("[a-c]", any_json(), 0..4),
            paths in prop::collection::vec("[a-c](\\.[a-c]){0,2}", 0..4),
        ) {
            let fields = FieldSet::parse(paths.iter().map(String::as_str)).unwrap();
            let body = Bytes::from(json!(members).to_string());
            let (once, _) = fields.filter(&body).unwrap();
            let seen: Value = serde_json::from_slice(&once).unwrap();
            for name in seen.as_object().unwrap().keys() {
                prop_assert!(paths.iter().any(|path| path.split('.').next() == Some(name)));
            }
            prop_assert_eq!(fields.filter(&once).unwrap().0, once);
        }
    }
}
