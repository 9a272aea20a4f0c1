//! Which fields of a profile a caller sees.
//!
//! A [`FieldSet`] is a tree of field names. A field is visible when it, or one of its ancestors, is
//! in the set; below an array the names apply to each element. What is visible is passed through
//! verbatim, in its order: numbers keep their digits, strings their escapes. Which of the names were there is
//! told apart: that is what was [`Shown`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::domain::{Marks, Shown};

/// The deepest path that is understood; deeper ones are refused.
const MAX_DEPTH: usize = 16;

/// A set of fields: all of them, or named paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldSet {
    /// Every field.
    All,
    /// These, with all that is below them.
    Only(Fields),
}

/// Named paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    tree: Tree,
    /// The paths, by their numbers.
    paths: Arc<[Box<str>]>,
}

/// A tree of field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tree {
    names: BTreeMap<String, Below>,
}

/// What of a field is in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Below {
    /// Everything: the path with this number ends here.
    Whole(usize),
    /// What has these names.
    Part(Tree),
}

/// A path is not a field path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be \"*\" or field names joined by dots, such as workPhone.e164")]
pub struct InvalidPath;

/// The stored profile is no JSON object, although it was one when it was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored profile is not a json object")]
pub struct NotAnObject;

impl FieldSet {
    /// Parses a list of paths; `*` stands for every field.
    ///
    /// # Errors
    ///
    /// A path that is empty, has an empty part, or is deeper than 16 parts.
    pub fn parse<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidPath> {
        let mut tree = Tree::default();
        let mut all = false;
        for path in paths {
            if path == "*" {
                all = true;
            } else {
                let parts: Vec<&str> = path.split('.').collect();
                if parts.len() > MAX_DEPTH || parts.iter().any(|part| part.is_empty() || *part == "*") {
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
        Ok(Self::Only(Fields { tree, paths: paths.into() }))
    }

    /// Tells whether everything in `asked` is in this set.
    #[must_use]
    pub fn covers(&self, asked: &Self) -> bool {
        match (self, asked) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(granted), Self::Only(asked)) => granted.tree.covers(&asked.tree),
        }
    }

    /// Returns a short name of this set, to tell apart the validators of differently filtered bodies;
    /// `None` for the unfiltered one.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Only(fields) => {
                let mut hash = Sha256::new();
                fields.tree.feed(&mut hash);
                Some(hex::encode(&hash.finalize()[..6]))
            }
        }
    }

    /// Returns the visible part of a profile; the profile itself, unparsed, when all is visible.
    ///
    /// # Errors
    ///
    /// The body is no JSON object.
    pub fn filter(&self, body: &Bytes) -> Result<Bytes, NotAnObject> {
        self.show(body).map(|(visible, _)| visible)
    }

    /// As [`filter`](Self::filter), and tells which fields are in what is returned.
    ///
    /// # Errors
    ///
    /// The body is no JSON object.
    pub fn show(&self, body: &Bytes) -> Result<(Bytes, Shown), NotAnObject> {
        match self {
            Self::All => Ok((body.clone(), Shown::All)),
            Self::Only(fields) => {
                let text = std::str::from_utf8(body).map_err(|_| NotAnObject)?;
                let marks = Marks::none(Arc::clone(&fields.paths));
                let mut view = View { out: Vec::with_capacity(body.len()), marks };
                view.write_object(&fields.tree, text).map_err(|_| NotAnObject)?;
                Ok((view.out.into(), Shown::Some(view.marks)))
            }
        }
    }
}

impl Tree {
    fn insert(&mut self, parts: &[&str]) {
        let Some((name, below)) = parts.split_first() else { return };
        if below.is_empty() {
            self.names.insert((*name).to_owned(), Below::Whole(0));
        } else if let Below::Part(tree) =
            self.names.entry((*name).to_owned()).or_insert_with(|| Below::Part(Self::default()))
        {
            tree.insert(below);
        }
    }

    /// Numbers the paths, and writes them down.
    fn number(&mut self, above: &str, paths: &mut Vec<Box<str>>) {
        for (name, below) in &mut self.names {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            match below {
                Below::Whole(number) => {
                    *number = paths.len();
                    paths.push(path.into());
                }
                Below::Part(tree) => tree.number(&path, paths),
            }
        }
    }

    fn covers(&self, asked: &Self) -> bool {
        asked.names.iter().all(|(name, below)| match (self.names.get(name), below) {
            (None, _) | (Some(Below::Part(_)), Below::Whole(_)) => false,
            (Some(Below::Whole(_)), _) => true,
            (Some(Below::Part(granted)), Below::Part(below)) => granted.covers(below),
        })
    }

    fn feed(&self, hash: &mut Sha256) {
        for (name, below) in &self.names {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name.as_bytes());
            if let Below::Part(below) = below {
                hash.update(b"{");
                below.feed(hash);
                hash.update(b"}");
            }
        }
    }
}

/// What is visible of a profile, as far as it has been written.
struct View {
    out: Vec<u8>,
    marks: Marks,
}

impl View {
    fn write_object(&mut self, tree: &Tree, text: &str) -> serde_json::Result<()> {
        self.out.push(b'{');
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_map(Members { tree, view: self, first: true })?;
        json.end()?;
        self.out.push(b'}');
        Ok(())
    }

    /// Writes what is visible of a value below a named field: objects and arrays are filtered, and a
    /// scalar, which has no fields, is invisible.
    fn write_value(&mut self, tree: &Tree, value: &RawValue) -> serde_json::Result<()> {
        let text = value.get();
        match text.as_bytes().first() {
            Some(b'{') => self.write_object(tree, text),
            Some(b'[') => {
                self.out.push(b'[');
                serde_json::Deserializer::from_str(text).deserialize_seq(Elements { tree, view: self })?;
                self.out.push(b']');
                Ok(())
            }
            _ => {
                self.out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }
}

struct Members<'a> {
    tree: &'a Tree,
    view: &'a mut View,
    first: bool,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        use serde::de::Error;
        while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
            let Some(below) = self.tree.names.get(name.as_ref()) else { continue };
            if !std::mem::take(&mut self.first) {
                self.view.out.push(b',');
            }
            serde_json::to_writer(&mut self.view.out, name.as_ref()).map_err(A::Error::custom)?;
            self.view.out.push(b':');
            match below {
                Below::Whole(number) => {
                    self.view.marks.mark(*number);
                    self.view.out.extend_from_slice(value.get().as_bytes());
                }
                Below::Part(tree) => self.view.write_value(tree, value).map_err(A::Error::custom)?,
            }
        }
        Ok(())
    }
}

struct Elements<'a> {
    tree: &'a Tree,
    view: &'a mut View,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        use serde::de::Error;
        let mut first = true;
        while let Some(value) = seq.next_element::<&'de RawValue>()? {
            if !std::mem::take(&mut first) {
                self.view.out.push(b',');
            }
            self.view.write_value(self.tree, value).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn filter(paths: &[&str], body: &str) -> String {
        let fields = FieldSet::parse(paths.iter().copied()).unwrap();
        String::from_utf8(fields.filter(&Bytes::copy_from_slice(body.as_bytes())).unwrap().to_vec()).unwrap()
    }

    const ADA: &str = r#"{"id":"1", "firstName":"Ada","workPhone":{"e164":"+1","display":"x"},
        "externalIds":[{"value":"a","n":1.50},{"value":"b"}],"title":null}"#;

    #[test]
    fn only_granted_fields_are_seen() {
        assert_eq!(filter(&["firstName"], ADA), r#"{"firstName":"Ada"}"#);
        assert_eq!(filter(&["workPhone.e164", "id"], ADA), r#"{"id":"1","workPhone":{"e164":"+1"}}"#);
        assert_eq!(filter(&["externalIds.value"], ADA), r#"{"externalIds":[{"value":"a"},{"value":"b"}]}"#);
        assert_eq!(filter(&["externalIds"], ADA), r#"{"externalIds":[{"value":"a","n":1.50},{"value":"b"}]}"#);
        assert_eq!(filter(&[], ADA), "{}");
        assert_eq!(filter(&["*"], ADA), ADA);
    }

    #[test]
    fn what_was_shown_is_named_if_the_profile_has_it() {
        let shown = |paths: &[&str]| {
            let fields = FieldSet::parse(paths.iter().copied()).unwrap();
            let (_, shown) = fields.show(&Bytes::from_static(ADA.as_bytes())).unwrap();
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
    fn a_scalar_where_an_object_was_granted_is_not_seen() {
        assert_eq!(filter(&["firstName.first"], ADA), r#"{"firstName":null}"#);
    }

    #[test]
    fn a_whole_field_outweighs_its_parts() {
        assert_eq!(filter(&["workPhone.e164", "workPhone"], ADA), filter(&["workPhone"], ADA));
        assert_eq!(filter(&["workPhone", "workPhone.e164"], ADA), filter(&["workPhone"], ADA));
    }

    #[test]
    fn asking_for_more_than_was_granted_is_not_covered() {
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
        for path in ["", ".", "a.", ".a", "a..b", "a.*"] {
            assert_eq!(FieldSet::parse([path]), Err(InvalidPath), "{path}");
        }
    }

    #[test]
    fn names_with_escapes_cannot_slip_through() {
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
        fn the_visible_part_is_valid_and_filtering_twice_changes_nothing(
            members in prop::collection::btree_map("[a-c]", any_json(), 0..4),
            paths in prop::collection::vec("[a-c](\\.[a-c]){0,2}", 0..4),
        ) {
            let fields = FieldSet::parse(paths.iter().map(String::as_str)).unwrap();
            let body = Bytes::from(json!(members).to_string());
            let once = fields.filter(&body).unwrap();
            let seen: Value = serde_json::from_slice(&once).unwrap();
            for name in seen.as_object().unwrap().keys() {
                prop_assert!(paths.iter().any(|path| path.split('.').next() == Some(name)));
            }
            prop_assert_eq!(fields.filter(&once).unwrap(), once);
        }
    }
}
