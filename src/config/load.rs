//! Loading: reads the layers, merges them, checks the result.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::de::{NodeDeserializer, SecretSource};
use super::error::{LoadErrors, SettingError};
use super::file::ConfigFile;
use super::report::SettingsReport;
use super::settings::{Secrets, Settings};
use super::tree::{Node, Origin};
use super::{Config, DEFAULTS, DEMO, ENV_PREFIX, TABLE_DEFAULTS, validate, warnings};

/// A configuration and the origin of each of its values.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The effective settings, for `check-config`.
    pub report: SettingsReport,
    /// Environment variables that have no effect although their names look like options.
    pub warnings: Vec<String>,
}

/// Loads the configuration from a file, if one is given, from the environment, and from `--role`, if it is given.
///
/// # Errors
///
/// The file cannot be read or parsed, or a setting is unknown, missing or unusable. Each error names the setting, its
/// origin, and what is expected.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    roles: Option<&str>,
) -> Result<Loaded, LoadErrors> {
    let env: HashMap<String, String> = env.into_iter().collect();
    let layer = match file {
        None => None,
        Some(path) => {
            let origin = Origin::File(path.display().to_string().into());
            let text = std::fs::read_to_string(path)
                .map_err(|error| SettingError::new("", format!("cannot be read: {error}")).at("", &origin))?;
            Some(parse(&text, &origin)?)
        }
    };
    compose(layer, &env, roles)
}

/// Loads a configuration from a text instead of a file, without any environment.
///
/// # Errors
///
/// As [`load`].
pub fn from_toml(text: &str) -> Result<Loaded, LoadErrors> {
    let layer = parse(text, &Origin::File("text".into()))?;
    compose(Some(layer), &HashMap::new(), None)
}

fn parse(text: &str, origin: &Origin) -> Result<Node, SettingError> {
    Node::parse(text, origin).map_err(|reason| SettingError::new("", reason).at("", origin))
}

fn compose(file: Option<Node>, env: &HashMap<String, String>, roles: Option<&str>) -> Result<Loaded, LoadErrors> {
    let mut own = file.unwrap_or_else(|| Node::Table(BTreeMap::new(), Origin::Default));
    for (name, value) in env {
        if let Some(path) = name.strip_prefix(ENV_PREFIX) {
            let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
            own.set(&path, value, &Origin::Env(name.as_str().into()));
        }
    }
    if let Some(roles) = roles {
        own.set(&["roles".to_owned()], roles, &Origin::Flag("--role"));
    }
    for key in ["tenant", "caller"] {
        own.expand_list(key);
    }
    let is_demo = own.get("tenant").is_none();
    let mut tree = parse(DEFAULTS, &Origin::Default)?;
    if is_demo {
        tree.overlay(parse(DEMO, &Origin::Demo)?);
    }
    tree.overlay(own);
    tree.complete(&parse(TABLE_DEFAULTS, &Origin::Default)?);
    if let Some(inherited) = tree.get("lookup").map(|common| common.without("lease_ttl")) {
        tree.complete(&Node::Table(BTreeMap::from([("tenant".to_owned(), inherited)]), Origin::Default));
    }
    let secrets = SecretSource { env, seen: RefCell::new(Secrets::new()) };
    let file = ConfigFile::deserialize(NodeDeserializer { node: &tree, path: String::new(), secrets: &secrets })?;
    let secrets = secrets.seen.into_inner();
    let config = file.into_config(is_demo, Settings::of(&tree, &secrets));
    let mut errors = validate::errors(&config);
    if !errors.is_empty() {
        for error in &mut errors {
            error.origin = tree.find(&error.path).map(Node::origin).cloned();
        }
        return Err(LoadErrors(errors));
    }
    let mut used = HashSet::new();
    tree.walk("", &mut |_, value, _| {
        used.extend(value.split('"').filter_map(|text| text.strip_prefix("env:").map(str::to_owned)))
    });
    let warnings = warnings::of_environment(env.keys().map(String::as_str), &used);
    Ok(Loaded { config, report: SettingsReport::of(&tree, &secrets), warnings })
}
