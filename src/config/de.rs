//! From the tree to typed settings: a serde deserializer that reports paths and origins, and reads secrets.

use std::cell::RefCell;
use std::collections::HashMap;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use sha2::{Digest, Sha256};

use crate::domain::secret::SECRET;
use crate::invalid::LONGEST_TIME;

use super::error::{DURATION, SettingError};
use super::settings::Secrets;
use super::tree::{Node, Scalar};

/// The sections that are lists of tables, without the indices of their paths.
const LISTS_OF_TABLES: [&str; 3] = ["tenant", "caller", "tenant.webhook"];

/// Reads secrets, and keeps their hashes.
#[derive(Debug)]
pub(super) struct SecretSource<'a> {
    /// The environment, for secrets of the form `env:NAME`.
    pub(super) env: &'a HashMap<String, String>,
    /// The hashes of the secrets that were read.
    pub(super) seen: RefCell<Secrets>,
}

/// Deserializes one node.
#[derive(Clone, Debug)]
pub(super) struct NodeDeserializer<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) secrets: &'a SecretSource<'a>,
}

impl<'a> NodeDeserializer<'a> {
    fn below(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, secrets: self.secrets }
    }

    fn locate<T>(&self, result: Result<T, SettingError>) -> Result<T, SettingError> {
        result.map_err(|error| error.at(&self.path, self.node.origin()))
    }

    /// Returns the path without its indices.
    fn section(&self) -> String {
        self.path.split('.').map(|part| part.split('[').next().unwrap_or_default()).collect::<Vec<_>>().join(".")
    }

    fn loose(&self) -> Option<&'a str> {
        match self.node {
            Node::Scalar(Scalar::Loose(text), _) => Some(text),
            Node::Scalar(..) | Node::Table(..) | Node::List(..) => None,
        }
    }

    /// Follows `env:NAME` and `file:PATH`.
    fn secret(&self) -> Result<String, SettingError> {
        let Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) = self.node else {
            return Err(SettingError::custom("must be a string, \"env:NAME\" or \"file:PATH\""));
        };
        // The tools that write files and variables often end them with a newline, which the other side does not have.
        let without_newline = |text: &str| text.trim_end_matches(['\n', '\r']).to_owned();
        let secret = if let Some(name) = text.strip_prefix("env:") {
            self.secrets
                .env
                .get(name)
                .map(|text| without_newline(text))
                .ok_or_else(|| SettingError::custom(format!("the environment variable {name} is not set")))?
        } else if let Some(path) = text.strip_prefix("file:") {
            let text = std::fs::read_to_string(path)
                .map_err(|error| SettingError::custom(format!("the file {path} cannot be read: {error}")))?;
            without_newline(&text)
        } else if text.ends_with(['\n', '\r']) {
            return Err(SettingError::custom("the secret ends with a newline: remove it"));
        } else {
            text.clone()
        };
        if secret.is_empty() {
            return Err(SettingError::custom("the secret is empty"));
        }
        self.secrets.seen.borrow_mut().insert(self.path.clone(), Sha256::digest(&secret).into());
        Ok(secret)
    }

    fn visit<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, SettingError> {
        match self.node {
            Node::Table(table, _) => {
                visitor.visit_map(TableAccess { deserializer: self, rest: table.iter(), value: None })
            }
            Node::List(items, _) => {
                visitor.visit_seq(ListAccess { deserializer: self, rest: items.iter().enumerate() })
            }
            Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) => visitor.visit_str(text),
            Node::Scalar(Scalar::Integer(integer), _) => visitor.visit_i64(*integer),
            Node::Scalar(Scalar::Float(float), _) => visitor.visit_f64(*float),
            Node::Scalar(Scalar::Boolean(boolean), _) => visitor.visit_bool(*boolean),
        }
    }

    fn visit_number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, SettingError> {
        match self.loose().map(str::parse::<i64>) {
            Some(Ok(integer)) => visitor.visit_i64(integer),
            Some(Err(_)) | None => self.visit(visitor),
        }
    }

    fn visit_list<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, SettingError> {
        if let Node::Table(..) = self.node
            && let Some(section) = LISTS_OF_TABLES.iter().find(|section| **section == self.section())
        {
            return Err(SettingError::custom(format!(
                "is one table: write [[{section}]] with two brackets on each side, once for each {section}"
            )));
        }
        let Some(text) = self.loose() else { return self.visit(visitor) };
        let list = Node::list(text, self.node.origin()).map_err(SettingError::custom)?;
        NodeDeserializer { node: &list, path: self.path.clone(), secrets: self.secrets }.visit(visitor)
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
            self.locate(self.visit_number(visitor))
        })*
    };
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = SettingError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.locate(self.visit(visitor))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.locate(match self.loose().map(str::parse::<bool>) {
            Some(Ok(boolean)) => visitor.visit_bool(boolean),
            Some(Err(_)) | None => self.visit(visitor),
        })
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.locate(match self.loose().map(str::parse::<f64>) {
            Some(Ok(float)) => visitor.visit_f64(float),
            Some(Err(_)) | None => self.visit(visitor),
        })
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.locate(self.visit_list(visitor))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        let expected: &dyn Expected = &visitor;
        let text = match self.node {
            Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) if expected.to_string() == DURATION => text,
            Node::Scalar(..) | Node::Table(..) | Node::List(..) => return self.deserialize_any(visitor),
        };
        if humantime::parse_duration(text).is_ok_and(|time| time > LONGEST_TIME) {
            return self.locate(Err(SettingError::custom("must be 3650 days or less")));
        }
        self.deserialize_any(visitor)
    }

    // A derived struct would also accept a list, whose items it takes as its fields.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingError> {
        self.locate(match self.node {
            Node::List(..) => Err(SettingError::custom(format!(
                "must be a table, not a list: write [{}] with one bracket on each side",
                self.section()
            ))),
            Node::Table(..) | Node::Scalar(..) => self.visit(visitor),
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, SettingError> {
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
    ) -> Result<V::Value, SettingError> {
        self.locate(match self.node {
            Node::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) => {
                let text: StrDeserializer<'_, SettingError> = text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            Node::Scalar(..) | Node::Table(..) | Node::List(..) => Err(SettingError::custom("must be a string")),
        })
    }

    forward_to_deserialize_any! {
        i128 u128 char string bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct TableAccess<'a, 'r> {
    deserializer: &'r NodeDeserializer<'a>,
    rest: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
}

impl TableAccess<'_, '_> {
    fn path(&self, key: &str) -> String {
        if self.deserializer.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.deserializer.path) }
    }
}

impl<'de> MapAccess<'de> for TableAccess<'_, '_> {
    type Error = SettingError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, SettingError> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, node));
        let name: StrDeserializer<'_, SettingError> = key.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|mut error| {
            error.path = self.path(key);
            error.at("", node.origin())
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, SettingError> {
        let (key, node) = self.value.take().ok_or_else(|| SettingError::custom("has no key"))?;
        let path = self.path(key);
        seed.deserialize(self.deserializer.below(node, path.clone()))
            .map_err(|error| error.within(&path, node.origin()))
    }
}

struct ListAccess<'a, 'r> {
    deserializer: &'r NodeDeserializer<'a>,
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for ListAccess<'_, '_> {
    type Error = SettingError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, SettingError> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let path = format!("{}[{index}]", self.deserializer.path);
        seed.deserialize(self.deserializer.below(node, path.clone()))
            .map(Some)
            .map_err(|error| error.within(&path, node.origin()))
    }
}
