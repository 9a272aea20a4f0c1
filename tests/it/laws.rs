//! The rules of the source code that a test can check: what imports what, how long files and names may be, and how
//! the consistency rules are cited.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use imports::{Edges, ImportGraph, circles, edges_within};

/// The crates that only some modules may use, and those modules.
const CRATES: [(&str, &[&str]); 12] = [
    ("axum", &["http/", "sandbox/", "app.rs"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("lapin", &["queue/amqp/"]),
    ("redis", &["store/redis/"]),
    ("opentelemetry", &["telemetry/", "spans.rs"]),
    ("opentelemetry_proto", &["telemetry/"]),
    ("opentelemetry_sdk", &["telemetry/"]),
    ("prost", &["telemetry/"]),
    ("reqwest", &["upstream/", "operate/", "sandbox/", "telemetry/"]),
    ("tokio_rustls", &["http/"]),
    ("tracing_opentelemetry", &["telemetry/", "spans.rs"]),
];

/// What each module may import of this crate. `app`, `cli`, `main` and `lib` may import every module.
const IMPORTS: [(&str, &[&str]); 24] = [
    ("audit", &["clock", "domain", "metrics", "shutdown"]),
    ("clock", &["domain"]),
    ("domain", &[]),
    ("faults", &[]),
    ("logging", &["spans"]),
    ("metrics", &["domain", "roles"]),
    ("shutdown", &[]),
    ("reload", &[]),
    ("readiness", &["metrics", "roles"]),
    ("roles", &[]),
    ("rules", &[]),
    ("spans", &["domain", "metrics"]),
    ("telemetry", &["domain", "metrics", "shutdown", "spans", "tls"]),
    ("tls", &[]),
    ("store", &["clock", "domain", "metrics", "reload", "shutdown", "tls"]),
    ("queue", &["clock", "domain", "metrics", "shutdown", "spans", "tls"]),
    ("upstream", &["clock", "domain", "metrics", "shutdown", "spans"]),
    ("ingest", &["clock", "domain", "metrics", "queue", "reload", "spans"]),
    ("consumer", &["audit", "clock", "domain", "faults", "metrics", "queue", "shutdown", "spans", "store"]),
    ("lookup", &["clock", "domain", "faults", "metrics", "shutdown", "spans", "store", "upstream"]),
    ("operate", &["clock", "domain", "metrics", "queue", "shutdown", "store"]),
    ("sandbox", &["clock", "domain", "shutdown"]),
    (
        "http",
        &[
            "audit",
            "clock",
            "domain",
            "ingest",
            "lookup",
            "metrics",
            "operate",
            "readiness",
            "reload",
            "shutdown",
            "spans",
            "store",
            "upstream",
        ],
    ),
    (
        "config",
        &[
            "audit",
            "consumer",
            "domain",
            "http",
            "ingest",
            "logging",
            "lookup",
            "queue",
            "roles",
            "sandbox",
            "store",
            "telemetry",
            "upstream",
        ],
    ),
];

/// The most lines of a source file, before its unit tests.
const LONGEST_FILE: usize = 300;

/// The files that may be longer, and why; at most five.
const LONG_FILES: &[(&str, &str)] = &[];

/// The most lines of a file in [`LONG_FILES`], and of a file of unit tests.
const LONGEST_EXCEPTION: usize = 400;

/// The most characters of a name; test names are the longest.
const LONGEST_NAME: usize = 70;

/// The documents outside the repository that nothing may refer to.
const OUTSIDE: [&str; 4] = ["DESIGN", "GENESYS.md", "INTERFACE.md", "HOUSE.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all files below a folder, by their paths relative to it. Build directories are left out.
pub(crate) fn files_below(folder: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if !matches!(name.as_str(), "target" | "data" | ".git" | "__pycache__") {
                    folders.push(path);
                }
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Returns the Rust files below `src`, whole.
fn whole_sources() -> BTreeMap<String, String> {
    let source = root().join("src");
    let files = files_below(&source).into_iter().filter(|name| name.ends_with(".rs"));
    let found: BTreeMap<String, String> =
        files.map(|name| (name.clone(), std::fs::read_to_string(source.join(&name)).unwrap())).collect();
    assert!(found.len() > 40, "only {} source files were found", found.len());
    found
}

/// Returns the production code of each Rust file below `src`, without comments.
fn sources() -> BTreeMap<String, String> {
    let files = whole_sources().into_iter().filter(|(name, _)| !is_test_file(name));
    files
        .map(|(name, text)| {
            let code = production_part(&text);
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            (name, code.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// Returns whether a file holds only unit tests.
fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs")
}

/// Returns a file up to its inline unit tests. A test module in a file of its own is left out as well.
fn production_part(text: &str) -> String {
    let (mut kept, mut lines) = (Vec::new(), text.lines().peekable());
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            match lines.peek() {
                Some(next) if next.starts_with("mod ") && next.ends_with('{') => break,
                Some(next) if next.starts_with("mod ") => {
                    lines.next();
                    continue;
                }
                _ => {}
            }
        }
        kept.push(line);
    }
    kept.join("\n")
}

fn import_edges() -> Edges {
    ImportGraph::read(&sources()).edges()
}

fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

fn uses_crate(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    text.match_indices(&path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// The names that follow `crate::` in a file.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names = rest.strip_prefix('{').map_or_else(
            || vec![rest],
            |group| group.split(['}', ';']).next().unwrap_or_default().split(',').map(str::trim).collect(),
        );
        for name in names {
            let name: String = name.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn crates_are_used_only_in_their_modules() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        for (name, rooms) in CRATES {
            if uses_crate(&text, name) && !rooms.iter().any(|room| file.starts_with(room)) {
                broken.push(format!("{file} uses {name}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn modules_import_only_what_is_below_them() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        let module = module_of(&file);
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            assert!(matches!(module, "app" | "cli" | "main" | "lib"), "{file} belongs to a module that is not listed");
            continue;
        };
        for import in imports(&text) {
            if import != module && !allowed.contains(&import.as_str()) {
                broken.push(format!("{file} imports {import}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn only_the_composition_root_picks_adapters() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        if file != "app.rs" && text.contains("open::open(") {
            broken.push(file);
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_redis_command_scans_or_flushes_all_keys() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        let text = text.to_ascii_lowercase();
        for command in ["keys", "scan", "flush"] {
            // Sent by the client, or by a script.
            let sent = ["cmd(\"", "call('", "call(\""].iter().any(|send| text.contains(&format!("{send}{command}")));
            if sent {
                broken.push(format!("{file} sends {command}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let edges = import_edges();
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 300, "the imports were not found");
    let circles = circles(&edges);
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The files and subfolders of each folder have an order in which every import points downwards.
#[test]
fn no_folder_has_an_upward_import() {
    let edges = import_edges();
    let mut folders: BTreeSet<String> =
        edges.keys().filter_map(|file| Some(format!("{}/", file.rsplit_once('/')?.0))).collect();
    folders.extend(folders.clone().iter().filter_map(|folder| Some(format!("{}/", folder.split_once('/')?.0))));
    folders.insert(String::new());
    let mut broken = Vec::new();
    for folder in folders {
        let within = edges_within(&folder, &edges);
        broken.extend(circles(&within).into_iter().map(|circle| format!("src/{folder}: {circle:?}")));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_source_file_is_too_long() {
    assert!(LONG_FILES.len() <= 5, "at most five files may be longer than {LONGEST_FILE} lines");
    let mut broken = Vec::new();
    let lengths: BTreeMap<String, usize> =
        whole_sources().into_iter().map(|(file, text)| (file, production_part(&text).lines().count())).collect();
    for (file, lines) in &lengths {
        let exempt = is_test_file(file) || LONG_FILES.iter().any(|(name, _)| name == file);
        let most = if exempt { LONGEST_EXCEPTION } else { LONGEST_FILE };
        if *lines > most {
            broken.push(format!("{file} has {lines} lines before its tests, at most {most} are allowed"));
        }
    }
    for (file, _) in LONG_FILES {
        if lengths.get(*file).is_none_or(|lines| *lines <= LONGEST_FILE) {
            broken.push(format!("{file} needs no exception"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Covers the names of tests, and of the cases that macros turn into tests.
#[test]
fn no_name_has_more_than_seventy_characters() {
    let mut broken = Vec::new();
    for folder in ["src", "tests"] {
        let folder = root().join(folder);
        for file in files_below(&folder).into_iter().filter(|file| file.ends_with(".rs")) {
            let text = std::fs::read_to_string(folder.join(&file)).unwrap();
            broken.extend(long_names(&text).into_iter().map(|name| format!("{file}: {name}")));
        }
    }
    assert!(broken.is_empty(), "{} names are too long: {broken:#?}", broken.len());
}

/// Returns the snake-case names that are too long; string literals that hold such a name count too.
fn long_names(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.len() > LONGEST_NAME && word.matches('_').count() >= 3);
    names.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn rules_are_cited_by_name_only() {
    let mut broken = Vec::new();
    let mut check = |file: &str| {
        // Inputs of the fuzz targets, and others that are no text.
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { return };
        for (number, line) in text.lines().enumerate() {
            // The table of promises numbers them.
            let exempt = file == "tests/README.md" && line.starts_with('|');
            if !exempt && let Some(cited) = cited_from_outside(line) {
                broken.push(format!("{file}:{}: {cited}", number + 1));
            }
        }
    };
    for folder in ["src", "tests", "conf", "compose", "dashboards"] {
        for file in files_below(&root().join(folder)) {
            if !file.starts_with("fuzz/corpus/") && file != "it/laws.rs" {
                check(&format!("{folder}/{file}"));
            }
        }
    }
    check("README.md");
    assert!(broken.is_empty(), "{} citations: {broken:#?}", broken.len());
}

/// Returns the first citation in a line that a reader of this repository cannot resolve.
fn cited_from_outside(line: &str) -> Option<String> {
    if let Some(sign) = ["◆", "◇"].into_iter().find(|sign| line.contains(*sign)) {
        return Some(sign.to_owned());
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    for name in OUTSIDE {
        for (at, _) in line.match_indices(name) {
            let (before, after) = (line[..at].chars().next_back(), line[at + name.len()..].chars().next());
            if !before.is_some_and(is_part) && !after.is_some_and(is_part) {
                return Some(name.to_owned());
            }
        }
    }
    let words: Vec<&str> = line.split(|c: char| !is_part(c)).filter(|word| !word.is_empty()).collect();
    let is_number = |word: &str| word.bytes().next().is_some_and(|digit| digit.is_ascii_digit());
    // Numbers count as those of rules only where they follow the word directly.
    let numbered = words.windows(2).find(|pair| {
        matches!(pair[0], "rule" | "rules" | "Rule" | "Rules")
            && is_number(pair[1])
            && line.contains(&format!("{} {}", pair[0], pair[1]))
    });
    let promise = words.iter().find(|word| {
        word.strip_prefix('M')
            .is_some_and(|n| matches!(n.len(), 1 | 2) && n.bytes().all(|digit| digit.is_ascii_digit()))
    });
    numbered.map(|pair| pair.join(" ")).or_else(|| promise.map(|word| (*word).to_owned()))
}

#[test]
fn the_checks_find_what_they_forbid() {
    assert!(uses_crate("use lapin::Channel;", "lapin"));
    assert!(!uses_crate("use crate::store::redis::record;", "redis"));
    assert_eq!(imports("use crate::{queue, store::Token};\nuse crate::domain::Key;"), ["queue", "store", "domain"]);
    let text = "#[cfg(test)]\nmod tests;\nfn one() {}\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(production_part(text), "fn one() {}");
    let long = "a_name_of_four_words_".repeat(4);
    assert_eq!(long_names(&format!("async fn {long}() {{}}\nfn short() {{}}")), [long]);
    for cited in ["(DESIGN section 2)", "◆ fence", "see rule 7.", "rules 1 and 4", "M14", "see GENESYS.md"] {
        assert!(cited_from_outside(cited).is_some(), "{cited}");
    }
    for allowed in ["the witness rule, 7 days", "REDESIGNED", "M2M", "a rule", "(rules::fence)", "no rules; 7 days"] {
        assert_eq!(cited_from_outside(allowed), None, "{allowed}");
    }
}
