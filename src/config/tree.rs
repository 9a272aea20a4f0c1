//! Settings as a tree, in which every value and every table has its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The compiled-in defaults.
    Default,
    /// The compiled-in demo.
    Demo,
    /// A file.
    File(Arc<str>),
    /// An environment variable.
    Env(Arc<str>),
    /// An option of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Demo => f.write_str("demo"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A setting, or a table or list of them.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Settings by name, and what defined the table first.
    Table(BTreeMap<String, Node>, Origin),
    /// Settings in order.
    List(Vec<Node>, Origin),
    /// One setting.
    Scalar(Scalar, Origin),
}

/// The value of one setting.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    /// A string.
    Text(String),
    /// A string from the environment or the command line, which may be a number, a boolean or a list.
    Loose(String),
    /// An integer.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A boolean.
    Boolean(bool),
}

impl Node {
    /// Parses a TOML document.
    ///
    /// # Errors
    ///
    /// The message of the parser and the number of the line. The line itself is left out: it may hold a secret.
    pub(super) fn parse(text: &str, origin: &Origin) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            match line {
                Some(line) => format!("line {line}: {}", error.message()),
                None => error.message().to_owned(),
            }
        })?;
        Ok(Self::from_value(toml::Value::Table(table), origin))
    }

    fn from_value(value: toml::Value, origin: &Origin) -> Self {
        let scalar = |scalar| Self::Scalar(scalar, origin.clone());
        match value {
            toml::Value::Table(table) => {
                let members = table.into_iter().map(|(key, value)| (key, Self::from_value(value, origin)));
                Self::Table(members.collect(), origin.clone())
            }
            toml::Value::Array(items) => {
                let items = items.into_iter().map(|item| Self::from_value(item, origin)).collect();
                Self::List(items, origin.clone())
            }
            toml::Value::String(text) => scalar(Scalar::Text(text)),
            toml::Value::Integer(integer) => scalar(Scalar::Integer(integer)),
            toml::Value::Float(float) => scalar(Scalar::Float(float)),
            toml::Value::Boolean(boolean) => scalar(Scalar::Boolean(boolean)),
            toml::Value::Datetime(time) => scalar(Scalar::Text(time.to_string())),
        }
    }

    /// Applies another tree, which overrides this one: tables are merged, everything else is replaced.
    pub(super) fn overlay(&mut self, over: Self) {
        match (self, over) {
            (Self::Table(below, _), Self::Table(above, _)) => {
                for (key, node) in above {
                    match below.get_mut(&key) {
                        Some(existing) => existing.overlay(node),
                        None => drop(below.insert(key, node)),
                    }
                }
            }
            (place, over) => *place = over,
        }
    }

    /// Adds what a table lacks, also to each table of a list. Tables themselves are not added.
    pub(super) fn complete(&mut self, defaults: &Self) {
        match (self, defaults) {
            (Self::List(items, _), _) => items.iter_mut().for_each(|item| item.complete(defaults)),
            (Self::Table(table, _), Self::Table(defaults, _)) => {
                for (key, default) in defaults {
                    match (table.get_mut(key), default) {
                        (Some(node), Self::Table(..)) => node.complete(default),
                        (None, Self::List(..) | Self::Scalar(..)) => drop(table.insert(key.clone(), default.clone())),
                        (Some(_), _) | (None, Self::Table(..)) => (),
                    }
                }
            }
            (Self::Table(..) | Self::Scalar(..), _) => (),
        }
    }

    /// Returns a copy of a table without one of its members.
    pub(super) fn without(&self, key: &str) -> Self {
        let mut copy = self.clone();
        if let Self::Table(table, _) = &mut copy {
            table.remove(key);
        }
        copy
    }

    /// Overrides one value by its path, with a text of the environment or the command line.
    pub(super) fn set(&mut self, path: &[String], value: &str, origin: &Origin) {
        let leaf = Self::Scalar(Scalar::Loose(value.to_owned()), origin.clone());
        let table = |node, key: &String| Self::Table(BTreeMap::from([(key.clone(), node)]), origin.clone());
        let nested = path.iter().rev().fold(leaf, table);
        self.overlay(nested);
    }

    /// Replaces a list that is still the text of the environment by its items, whose secrets then have paths of their own.
    pub(super) fn expand_list(&mut self, key: &str) {
        if let Self::Table(table, _) = self
            && let Some(node) = table.get_mut(key)
            && let Self::Scalar(Scalar::Loose(text), origin) = &*node
            && let Ok(list) = Self::list(text, origin)
        {
            *node = list;
        }
    }

    /// Parses a list in a text of the environment or the command line: one of TOML, or items with commas between them.
    ///
    /// # Errors
    ///
    /// The message of the parser.
    pub(super) fn list(text: &str, origin: &Origin) -> Result<Self, String> {
        if text.trim_start().starts_with('[') {
            let parsed = Self::parse(&format!("list = {text}"), origin)?;
            return parsed.get("list").cloned().ok_or_else(|| "must be a list".to_owned());
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let item = |item: &str| Self::Scalar(Scalar::Loose(item.to_owned()), origin.clone());
        Ok(Self::List(items.map(item).collect(), origin.clone()))
    }

    /// Returns the node at a path such as `tenant[0].upstream.region`, or the nearest above it.
    #[must_use]
    pub(super) fn find(&self, path: &str) -> Option<&Self> {
        let mut node = self;
        for part in path.split('.') {
            let (key, index) = match part.split_once('[') {
                Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
                None => (part, None),
            };
            let Some(below) = node.get(key) else { return Some(node) };
            node = match (below, index) {
                (Self::List(items, _), Some(index)) => items.get(index)?,
                (below, _) => below,
            };
        }
        Some(node)
    }

    /// Returns the member of a table.
    #[must_use]
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(table, _) => table.get(key),
            Self::List(..) | Self::Scalar(..) => None,
        }
    }

    /// Returns the origin of a value; of a table of the defaults, that of its first member which is no default, if it has one.
    #[must_use]
    pub(super) fn origin(&self) -> &Origin {
        match self {
            Self::Table(table, own @ Origin::Default) => {
                table.values().map(Self::origin).find(|origin| *origin != own).unwrap_or(own)
            }
            Self::Table(_, origin) | Self::List(_, origin) | Self::Scalar(_, origin) => origin,
        }
    }

    /// Calls `visit` with the path and text of every value, in order of their names.
    pub(super) fn walk(&self, path: &str, visit: &mut impl FnMut(&str, String, &Origin)) {
        match self {
            Self::Table(table, _) => {
                for (key, node) in table {
                    let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    node.walk(&below, visit);
                }
            }
            Self::List(items, origin) if items.iter().all(|item| matches!(item, Self::Scalar(..))) => {
                let texts: Vec<String> = items.iter().map(Self::text).collect();
                visit(path, format!("[{}]", texts.join(", ")), origin);
            }
            Self::List(items, _) => {
                for (index, item) in items.iter().enumerate() {
                    item.walk(&format!("{path}[{index}]"), visit);
                }
            }
            Self::Scalar(_, origin) => visit(path, self.text(), origin),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Scalar(Scalar::Text(text) | Scalar::Loose(text), _) => format!("{text:?}"),
            Self::Scalar(Scalar::Integer(integer), _) => integer.to_string(),
            Self::Scalar(Scalar::Float(float), _) => float.to_string(),
            Self::Scalar(Scalar::Boolean(boolean), _) => boolean.to_string(),
            Self::Table(..) | Self::List(..) => String::new(),
        }
    }
}
