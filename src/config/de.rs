//! From the tree to typed settings: a serde deserializer that knows paths, origins and secrets.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use sha2::{Digest, Sha256};

use crate::domain::secret::SECRET;

use super::settings::Secrets;
use super::tree::{Node, Origin, Scalar};

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its path, such as `tenant[0].upstream.client_secret`.
    pub path: String,
    /// Where it came from, where it came from somewhere.
    pub origin: Option<Origin>,
    /// What is wrong with it, and what was expected.
    pub reason: String,
}

impl Problem {
    /// Makes a problem of a setting.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), origin: None, reason: reason.into() }
    }

    /// Adds where it happened, unless that is known more exactly.
    fn at(mut self, path: &str, origin: Option<&Origin>) -> Self {
        if self.path.is_empty() {
            path.clone_into(&mut self.path);
        }
        self.origin = self.origin.or_else(|| origin.cloned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("", message.to_string())
    }

    // None of these shows the value: it may be a secret in the wrong place.
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("", format!("must be {expected}, not {}", kind_of(found)))
    }

    fn invalid_value(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("", format!("must be {expected}"))
    }

    fn unknown_variant(_variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new("", format!("must be one of {}", quoted(expected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let reason = match nearest(field, expected.iter().copied()) {
            Some(known) => format!("is not a known key; the nearest is `{known}`"),
            None => "is not a known key".to_owned(),
        };
        Self::new(field, reason)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

fn kind_of(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a truth value",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number",
        Unexpected::Str(_) | Unexpected::Char(_) => "a text",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Returns the known name that is most like a given one.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)))
}

/// What a whole deserialization shares.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// The environment, for secrets of the form `env:NAME`.
    pub(super) env: &'a HashMap<String, String>,
    /// The secrets that were met.
    pub(super) secrets: RefCell<Secrets>,
}

/// Deserializes one node.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) context: &'a Context<'a>,
}

impl<'a> Reader<'a> {
    fn below(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, context: self.context }
    }

    fn locate<T>(&self, result: Result<T, Problem>) -> Result<T, Problem> {
        result.map_err(|problem| problem.at(&self.path, self.node.origin()))
    }

    fn loose(&self) -> Option<&'a str> {
        match self.node {
            Node::Scalar(Scalar::Loose(text), _) => Some(text),
            Node::Scalar(..) | Node::Table(_) | Node::List(..) => None,
        }
    }

    /// Follows `env:NAME` and `file:PATH`.
    fn secret(&self) -> Result<String, Problem> {
        let Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) = self.node else {
            return Err(Problem::custom("must be a text, \"env:NAME\" or \"file:PATH\""));
        };
        let secret = if let Some(name) = text.strip_prefix("env:") {
            self.context
                .env
                .get(name)
                .cloned()
                .ok_or_else(|| Problem::custom(format!("the environment variable {name} is not set")))?
        } else if let Some(path) = text.strip_prefix("file:") {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Problem::custom(format!("the file {path} cannot be read: {error}")))?;
            text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text).to_owned()
        } else {
            text.clone()
        };
        if secret.is_empty() {
            return Err(Problem::custom("the secret is empty"));
        }
        self.context.secrets.borrow_mut().insert(self.path.clone(), Sha256::digest(&secret).into());
        Ok(secret)
    }

    fn visit<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Problem> {
        match self.node {
            Node::Table(table) => visitor.visit_map(Members { reader: self, rest: table.iter(), value: None }),
            Node::List(items, _) => visitor.visit_seq(Elements { reader: self, rest: items.iter().enumerate() }),
            Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) => visitor.visit_str(text),
            Node::Scalar(Scalar::Integer(integer), _) => visitor.visit_i64(*integer),
            Node::Scalar(Scalar::Float(float), _) => visitor.visit_f64(*float),
            Node::Scalar(Scalar::Boolean(boolean), _) => visitor.visit_bool(*boolean),
        }
    }

    fn visit_number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Problem> {
        match self.loose().map(str::parse::<i64>) {
            Some(Ok(integer)) => visitor.visit_i64(integer),
            Some(Err(_)) | None => self.visit(visitor),
        }
    }

    fn visit_list<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Problem> {
        let Some(text) = self.loose() else { return self.visit(visitor) };
        let origin = self.node.origin().unwrap_or(&Origin::Default);
        let list = if text.trim_start().starts_with('[') {
            let parsed = Node::parse(&format!("list = {text}"), origin).map_err(Problem::custom)?;
            parsed.get("list").cloned().ok_or_else(|| Problem::custom("must be a list"))?
        } else {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            let item = |item: &str| Node::Scalar(Scalar::Loose(item.to_owned()), origin.clone());
            Node::List(items.map(item).collect(), origin.clone())
        };
        Reader { node: &list, path: self.path.clone(), context: self.context }.visit(visitor)
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.locate(self.visit_number(visitor))
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.locate(self.visit(visitor))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.locate(match self.loose().map(str::parse::<bool>) {
            Some(Ok(boolean)) => visitor.visit_bool(boolean),
            Some(Err(_)) | None => self.visit(visitor),
        })
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.locate(match self.loose().map(str::parse::<f64>) {
            Some(Ok(float)) => visitor.visit_f64(float),
            Some(Err(_)) | None => self.visit(visitor),
        })
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.locate(self.visit_list(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Problem> {
        if name == SECRET {
            let secret = self.secret();
            return self.locate(secret.and_then(|secret| visitor.visit_str(&secret)));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.locate(match self.node {
            Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) => {
                let text: StrDeserializer<'_, Problem> = text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            Node::Scalar(..) | Node::Table(_) | Node::List(..) => Err(Problem::custom("must be a text")),
        })
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
    }
}

struct Members<'a, 'r> {
    reader: &'r Reader<'a>,
    rest: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
}

impl Members<'_, '_> {
    fn path(&self, key: &str) -> String {
        if self.reader.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.reader.path) }
    }
}

impl<'de> MapAccess<'de> for Members<'_, '_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, node));
        let name: StrDeserializer<'_, Problem> = key.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|mut problem| {
            problem.path = self.path(key);
            problem.at("", node.origin())
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, node) = self.value.take().ok_or_else(|| Problem::custom("a value without its key"))?;
        let path = self.path(key);
        seed.deserialize(self.reader.below(node, path.clone())).map_err(|mut problem| {
            // A missing field knows only its own name.
            if !problem.path.starts_with(&path) {
                problem.path = format!("{path}.{}", problem.path);
            }
            problem
        })
    }
}

struct Elements<'a, 'r> {
    reader: &'r Reader<'a>,
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = Problem;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Problem> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let path = format!("{}[{index}]", self.reader.path);
        seed.deserialize(self.reader.below(node, path.clone())).map(Some).map_err(|mut problem| {
            if !problem.path.starts_with(&path) {
                problem.path = format!("{path}.{}", problem.path);
            }
            problem
        })
    }
}
