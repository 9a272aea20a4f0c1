//! The import graph of the crate, read from the text of its files.
//!
//! A file imports another file if a `use` declaration or a written-out path (`crate::…`, `super::…`) names an item
//! that the other file defines. Re-exports are followed to the definition. What a module takes from its own private
//! parts by a relative path (`use child::Item`) is no import: the two are one module.

use std::collections::{BTreeMap, BTreeSet};

/// The imports of each file: a file name relative to `src`, and the names of the files that it imports.
pub(crate) type Edges = BTreeMap<String, BTreeSet<String>>;

/// A module path below the crate root: `["store", "redis"]`.
type ModulePath = Vec<String>;

/// One name that a `use` declaration binds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Import {
    /// The full path below the crate root, the imported name included.
    path: ModulePath,
    /// The name under which the file knows it; `*` for a glob.
    name: String,
    /// Whether the declaration names another module, and not a part of the same one.
    counts: bool,
}

/// The files of a crate and what each imports from the others.
#[derive(Debug, Default)]
pub(crate) struct ImportGraph {
    /// The files, by their module paths.
    files: BTreeMap<ModulePath, String>,
    /// The names that each module binds by `use`.
    bound: BTreeMap<ModulePath, Vec<Import>>,
    /// The paths that each module writes without a `use`.
    inline: BTreeMap<ModulePath, Vec<ModulePath>>,
}

impl ImportGraph {
    /// Reads the graph from file names (relative to the crate root) and their production code.
    pub(crate) fn read(sources: &BTreeMap<String, String>) -> Self {
        let mut graph = Self::default();
        for name in sources.keys().filter(|name| *name != "main.rs") {
            graph.files.insert(module_path(name), name.clone());
        }
        for (name, text) in sources.iter().filter(|(name, _)| *name != "main.rs") {
            let module = module_path(name);
            let (imports, rest) = declarations(text);
            let bound = imports.into_iter().filter_map(|(path, name)| {
                let counts = matches!(path[0].as_str(), "crate" | "super");
                Some(Import { path: graph.absolute(&module, &path)?, name, counts })
            });
            graph.bound.insert(module.clone(), bound.collect());
            let inline = inline_paths(&rest).into_iter().filter_map(|path| graph.absolute(&module, &path)).collect();
            graph.inline.insert(module, inline);
        }
        graph
    }

    /// Returns the files that each file imports.
    pub(crate) fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for (module, file) in &self.files {
            let used = self.bound[module].iter().filter(|import| import.counts).map(|import| &import.path);
            let targets = used.chain(&self.inline[module]).filter_map(|path| self.definition(path, 0));
            let targets = targets.filter(|target| target != file && target != "lib.rs");
            edges.insert(file.clone(), targets.collect());
        }
        edges
    }

    /// Returns the path below the crate root, or `None` for the path of another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            child => {
                let child = [module, &[child.to_owned()]].concat();
                self.files.contains_key(&child).then_some(child)?
            }
        };
        for segment in rest {
            if segment == "super" {
                base.pop();
            } else {
                base.push(segment.clone());
            }
        }
        Some(base)
    }

    /// Returns the file that defines the item at a path; re-exports are followed.
    fn definition(&self, path: &[String], depth: usize) -> Option<String> {
        let length = (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let followed = rest.first().filter(|_| depth < 5).and_then(|name| {
            let import = self.bound[module].iter().find(|import| import.name == *name)?;
            self.definition(&[&import.path[..], &rest[1..]].concat(), depth + 1)
        });
        followed.or_else(|| self.files.get(module).cloned())
    }
}

/// Returns the groups of nodes that import each other in a circle.
pub(crate) fn circles(edges: &Edges) -> Vec<BTreeSet<String>> {
    let reach = |from: &String| {
        let (mut found, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(next) = open.pop() {
            for target in edges.get(next).into_iter().flatten() {
                if found.insert(target.clone()) {
                    open.push(target);
                }
            }
        }
        found
    };
    let reachable: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|node| (node, reach(node))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (node, targets) in &reachable {
        if targets.contains(*node) && !circles.iter().any(|circle| circle.contains(*node)) {
            let back = targets.iter().filter(|target| reachable.get(target).is_some_and(|back| back.contains(*node)));
            circles.push(back.cloned().collect());
        }
    }
    circles
}

/// Returns the edges between the entries of one folder: its files, and its subfolders as a whole.
pub(crate) fn edges_within(folder: &str, edges: &Edges) -> Edges {
    // A module may be a file beside a folder of the same name.
    let entry = |file: &str| {
        let rest = file.strip_prefix(folder)?;
        Some(rest.split('/').next()?.trim_end_matches(".rs").to_owned())
    };
    let mut within = Edges::new();
    for (file, targets) in edges {
        let Some(from) = entry(file) else { continue };
        let targets = targets.iter().filter_map(|target| entry(target)).filter(|to| *to != from);
        within.entry(from.clone()).or_default().extend(targets);
    }
    within
}

fn module_path(file: &str) -> ModulePath {
    let stem = file.trim_end_matches(".rs");
    let mut path: ModulePath = stem.split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    path
}

/// A path as it is written, and the name that it binds.
type Declared = (Vec<String>, String);

/// Returns the `use` declarations of a file, and its text without them.
fn declarations(text: &str) -> (Vec<Declared>, String) {
    let (mut found, mut rest, mut lines) = (Vec::new(), String::new(), text.lines());
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        let private =
            if trimmed.starts_with("pub") { trimmed.split_once(' ').map_or("", |(_, rest)| rest) } else { trimmed };
        let Some(tree) = private.strip_prefix("use ") else {
            rest.push_str(line);
            rest.push('\n');
            continue;
        };
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            tree.push_str(lines.next().unwrap_or(";").trim());
        }
        flatten(tree.split(';').next().unwrap_or_default(), &[], &mut |path, name| found.push((path, name)));
    }
    (found, rest)
}

/// Calls `found` for each path of a `use` tree.
fn flatten(tree: &str, prefix: &[String], found: &mut impl FnMut(Vec<String>, String)) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let head: Vec<String> =
            head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let prefix = [prefix, &head].concat();
        let (mut depth, mut start) = (0, 0);
        let inside = group.trim_end().strip_suffix('}').unwrap_or(group);
        for (at, character) in inside.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    flatten(&inside[start..at], &prefix, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        flatten(&inside[start..], &prefix, found);
    } else if !tree.is_empty() {
        let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
        let mut path = [prefix, &path.split("::").map(|part| part.trim().to_owned()).collect::<Vec<_>>()].concat();
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = alias.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_owned);
        found(path, name);
    }
}

/// Returns the paths of this crate that a text writes out: `crate::…` and `super::…`.
fn inline_paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
                continue;
            }
            let path =
                text[at..].split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap_or_default();
            found.push(path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(files: &[(&str, &str)]) -> Edges {
        let sources = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        ImportGraph::read(&sources).edges()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn imports_are_resolved_to_the_files_that_define_the_names() {
        let edges = edges(&[
            ("lib.rs", "pub mod domain;\npub mod store;\n"),
            ("domain/mod.rs", "mod key;\npub use key::{Key, Digest as KeyDigest};\n"),
            ("domain/key.rs", "use super::time::Time;\n"),
            ("domain/time.rs", ""),
            (
                "store/mod.rs",
                "mod lease;\nuse lease::Lease;\nuse crate::domain::{\n    Key,\n    time::{self, Time},\n};\n",
            ),
            ("store/lease.rs", "use super::Key;\nfn f(_: crate::domain::KeyDigest) {}\n"),
        ]);
        assert_eq!(edges["domain/mod.rs"], names(&[]), "a module and its private parts are one");
        assert_eq!(edges["domain/key.rs"], names(&["domain/time.rs"]));
        assert_eq!(edges["store/mod.rs"], names(&["domain/key.rs", "domain/time.rs"]));
        assert_eq!(edges["store/lease.rs"], names(&["domain/key.rs"]), "re-exports and imports are followed");
    }

    #[test]
    fn circles_of_files_and_of_folders_are_found() {
        let files = edges(&[
            ("a/one.rs", "use crate::b::two::Two;\n"),
            ("a/three.rs", ""),
            ("b/two.rs", "use crate::a::three::Three;\n"),
            ("c.rs", "use crate::a::one;\n"),
        ]);
        assert!(circles(&files).is_empty());
        assert_eq!(circles(&edges_within("", &files)), [names(&["a", "b"])]);
        assert!(circles(&edges_within("a/", &files)).is_empty());
        let files =
            edges(&[("a/one.rs", "use super::two::Two;\n"), ("a/two.rs", "use crate::a::one;\n"), ("a/mod.rs", "")]);
        assert_eq!(circles(&files), [names(&["a/one.rs", "a/two.rs"])]);
    }
}
