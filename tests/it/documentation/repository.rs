//! What the pages may cite: the files, commands, options, metrics, variables and tests of this repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use profile_edge::metrics::Metrics;

use super::markdown::Page;
use crate::laws::files_below;

/// The folders that hold what pages cite.
pub(super) const FOLDERS: [&str; 6] = ["src", "tests", "conf", "compose", "dashboards", ".ci"];

/// The tables of options whose keys are names that the operator chooses.
const OPEN_TABLES: [&str; 2] = ["store.sealing.keys", "telemetry.headers"];

#[derive(Debug)]
pub(super) struct Repository {
    /// All files, and all folders with a slash at their end, relative to the root.
    files: BTreeSet<String>,
    /// The subcommands by their full names, with the flags that each takes; the empty name is the program.
    commands: BTreeMap<String, BTreeSet<String>>,
    /// The options and the tables of options, as `store.redis.url`.
    options: BTreeSet<String>,
    /// The functions of `src` and `tests`, and the cases that macros turn into tests.
    names: BTreeSet<String>,
    /// The modules of `src` and `tests/it`, as `store::redis`, with their text.
    modules: BTreeMap<String, String>,
    /// The environment variables that the sources name.
    variables: BTreeSet<String>,
    /// The exposition of all metrics.
    pub(super) scrape: String,
}

impl Repository {
    pub(super) fn read(root: &Path) -> Self {
        let mut repository = Self {
            files: BTreeSet::new(),
            commands: commands(),
            options: options(&std::fs::read_to_string(root.join("conf/default.toml")).unwrap()),
            names: BTreeSet::new(),
            modules: BTreeMap::new(),
            variables: BTreeSet::new(),
            scrape: Metrics::new().render(),
        };
        let below = FOLDERS
            .into_iter()
            .flat_map(|folder| files_below(&root.join(folder)).into_iter().map(move |file| format!("{folder}/{file}")));
        for file in below {
            let path = root.join(&file);
            for (at, _) in file.match_indices('/') {
                repository.files.insert(file[..=at].to_owned());
            }
            repository.files.insert(file.clone());
            if file.starts_with("tests/fuzz/corpus/") || file.ends_with(".md") {
                continue;
            }
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            repository.read_file(&file, text);
        }
        assert!(repository.commands.len() > 10 && repository.options.len() > 80, "commands and options were not found");
        repository
    }

    fn read_file(&mut self, file: &str, text: String) {
        if file.starts_with("tests/it/documentation") {
            // It plants wrong names.
            self.names
                .extend(text.lines().filter_map(|line| Some(line.strip_prefix("fn ")?.split('(').next()?.to_owned())));
            return;
        }
        let words = || text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        self.variables.extend(words().filter(|word| word.starts_with("PROFILE_EDGE_")).map(str::to_owned));
        if file.ends_with(".py") {
            let functions = text.lines().filter_map(|line| line.trim_start().strip_prefix("def "));
            self.names.extend(functions.filter_map(|line| Some(line.split('(').next()?.to_owned())));
        }
        let Some(module) = file.strip_suffix(".rs") else { return };
        let mut previous = "";
        for word in words().filter(|word| !word.is_empty()) {
            if previous == "fn" {
                self.names.insert(word.to_owned());
            }
            previous = word;
        }
        if file.starts_with("tests/") {
            // A macro call that turns cases into tests has one case on a line.
            let cases = text.lines().filter_map(|line| {
                let end = line.trim_start().find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                let (name, rest) = line.trim_start().split_at(end);
                rest.starts_with([',', ':', ' ']).then(|| name.to_owned())
            });
            self.names.extend(cases.filter(|name| name.contains('_')));
        }
        let module = module.strip_prefix("tests/it/").or_else(|| module.strip_prefix("src/"));
        if let Some(module) = module {
            let module = module.trim_end_matches("/mod").replace('/', "::");
            // The same name may be a module of both.
            self.modules.entry(module).or_default().push_str(&text);
        }
    }

    /// Returns whether a path exists; it may have the wildcards `*`, `**` and `{a,b}`, and placeholders.
    pub(super) fn has_path(&self, path: &str) -> bool {
        if let Some((before, rest)) = path.split_once('{')
            && let Some((choices, after)) = rest.split_once('}')
        {
            return choices.split(',').all(|choice| self.has_path(&format!("{before}{choice}{after}")));
        }
        // Of a placeholder only the folder before it is known.
        if let Some(at) = path.find(['<', '…']) {
            return path[..at].rfind('/').is_some_and(|end| self.files.contains(&path[..=end]));
        }
        let folder = format!("{}/", path.trim_end_matches('/'));
        if !path.contains('*') {
            return self.files.contains(&folder) || self.files.contains(path);
        }
        self.files.iter().any(|file| fits(path, file.trim_end_matches('/')))
    }

    /// Checks a command line after the name of the program; returns what is wrong with it.
    pub(super) fn mistake_of_command(&self, arguments: &[&str]) -> Option<String> {
        let is_name =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let mut command = String::new();
        for argument in arguments {
            if argument.starts_with('-') {
                break;
            }
            let longer = format!("{command} {argument}").trim_start().to_owned();
            if self.commands.contains_key(&longer) {
                command = longer;
                continue;
            }
            let has_subcommands = self.commands.keys().any(|name| name.starts_with(&format!("{command} ")));
            if *argument == "help" {
                return None;
            }
            if (command.is_empty() || has_subcommands) && is_name(argument) {
                return Some(format!("`profile-edge {longer}` is not a command"));
            }
            break;
        }
        let flags = arguments.iter().filter(|argument| argument.starts_with('-') && argument.len() > 1);
        let mut names = flags.map(|flag| flag.split('=').next().unwrap_or_default());
        let unknown = names.find(|flag| *flag != "--" && !self.commands[&command].contains(*flag))?;
        Some(format!("`profile-edge {command}` has no {unknown}"))
    }

    /// Returns whether something is an option or a table of options.
    pub(super) fn has_option(&self, name: &str) -> bool {
        // A tenant overrides the times of lookups.
        let as_lookup = name.strip_prefix("tenant.").map(|key| format!("lookup.{key}"));
        let open = OPEN_TABLES.iter().any(|table| name.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')));
        let prefix = name.strip_suffix('*').filter(|prefix| prefix.ends_with('.'));
        open || self.options.contains(name)
            || as_lookup.is_some_and(|name| self.options.contains(&name))
            || prefix.is_some_and(|prefix| self.options.iter().any(|option| option.starts_with(prefix)))
    }

    /// Returns whether options may begin with this name.
    pub(super) fn has_section(&self, name: &str) -> bool {
        let prefix = format!("{name}.");
        self.options.iter().any(|option| option.starts_with(&prefix))
    }

    /// Returns whether the last part of an option has this name.
    pub(super) fn is_key_of_an_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option.rsplit('.').next() == Some(name))
    }

    /// Returns whether a test or another function has this name.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Returns whether a path as `contract::store` leads to a module, or to a name in one; `None` if its beginning is
    /// of no module here.
    pub(super) fn has_module_path(&self, path: &str, rules: &Page) -> Option<bool> {
        let path = path.trim_start_matches("crate::").trim_end_matches("::");
        let parts: Vec<&str> = path.split("::").collect();
        if parts[0] == "rules" && parts.len() == 2 {
            return Some(rules.anchors.contains(&parts[1].replace('_', "-")));
        }
        let length = (1..=parts.len()).rev().find(|length| self.is_module(&parts[..*length].join("::")))?;
        let prefix = parts[..length].join("::");
        let inside = format!("{prefix}::");
        let texts = self.modules.iter().filter(|(name, _)| **name == prefix || name.starts_with(&inside));
        let text: String = texts.map(|(_, text)| text.as_str()).collect();
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        // A test filter may end within a name.
        Some(parts[length..].iter().all(|part| words.iter().any(|word| word.starts_with(part))))
    }

    fn is_module(&self, path: &str) -> bool {
        let inside = format!("{path}::");
        self.modules.contains_key(path) || self.modules.keys().any(|name| name.starts_with(&inside))
    }

    /// Returns whether an environment variable is read somewhere, or sets an option.
    pub(super) fn has_variable(&self, name: &str) -> bool {
        match name.strip_prefix("PROFILE_EDGE__") {
            Some(option) => self.has_option(&option.to_ascii_lowercase().replace("__", ".")),
            None => self.variables.contains(name),
        }
    }
}

/// Returns the subcommands of the program and their flags, as its help shows them.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![String::new()]);
    while let Some(name) = open.pop() {
        let arguments = name.split(' ').filter(|part| !part.is_empty());
        let run = Command::new(env!("CARGO_BIN_EXE_profile-edge")).args(arguments).arg("--help").output().unwrap();
        assert!(run.status.success(), "profile-edge {name} --help");
        let help = String::from_utf8(run.stdout).unwrap();
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for line in listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let child = line.split_whitespace().next().unwrap_or_default();
            if child != "help" {
                open.push(format!("{name} {child}").trim_start().to_owned());
            }
        }
        let options = help.lines().filter(|line| line.starts_with("  ") && line.trim_start().starts_with('-'));
        let flags = options.flat_map(|line| line.split([' ', ',']).take_while(|word| !word.starts_with('<')));
        found.insert(name, flags.filter(|word| word.starts_with('-')).map(str::to_owned).collect());
    }
    found
}

/// Returns the options and tables of the defaults file, with those that are commented out.
fn options(defaults: &str) -> BTreeSet<String> {
    let (mut found, mut table) = (BTreeSet::new(), String::new());
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.');
    for line in defaults.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.trim_start_matches('[').split(']').next()) {
            if !name.is_empty() && name.chars().all(is_name) && line.ends_with(']') {
                name.clone_into(&mut table);
                found.insert(table.clone());
            }
        } else if let Some((key, _)) = line.split_once(" = ")
            && !key.is_empty()
            && key.chars().all(is_name)
        {
            found.insert(if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") });
        }
    }
    for table in OPEN_TABLES {
        found.insert(table.to_owned());
    }
    found
}

/// Returns whether a path fits a pattern with `*` (within a folder) and `**` (any folders).
fn fits(pattern: &str, path: &str) -> bool {
    let Some(at) = pattern.find('*') else { return pattern == path };
    let Some(rest) = path.strip_prefix(&pattern[..at]) else { return false };
    let (after, deep) = pattern[at..].strip_prefix("**").map_or((&pattern[at + 1..], false), |after| (after, true));
    let after = if deep { after.trim_start_matches('/') } else { after };
    let mut ends = rest.char_indices().map(|(end, _)| end).chain([rest.len()]);
    ends.any(|end| (deep || !rest[..end].contains('/')) && fits(after, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_paths_are_matched() {
        assert!(fits("src/*/mod.rs", "src/store/mod.rs") && !fits("src/*/mod.rs", "src/store/redis/mod.rs"));
        assert!(fits("src/**/mod.rs", "src/store/redis/mod.rs") && fits("src/**", "src/store/mod.rs"));
        assert!(!fits("src/*.rs", "tests/laws.rs") && fits("src/*.rs", "src/app.rs"));
    }

    #[test]
    fn options_are_read_with_those_that_are_commented_out() {
        let text =
            "one = 1\n# A comment = none of it.\n[a]\n# two = 2\n# [a.b]\n# # Prose.\n# keys.k1 = 3\n[[c]]\nd = 4\n";
        let found: Vec<String> = options(text).into_iter().collect();
        assert_eq!(found, ["a", "a.b", "a.b.keys.k1", "a.two", "c", "c.d", "one", OPEN_TABLES[0], OPEN_TABLES[1]]);
    }
}
