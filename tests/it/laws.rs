//! The rules of the source code that a test can check: what imports what. [`texts`] checks lengths and citations.

mod imports;
mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use imports::{Edges, ImportGraph, circles, edges_within};

/// The crates that only some modules may use, and those modules.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["http/", "sandbox/", "app.rs", "app/"]),
    ("backoff", &["supervise.rs"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("lapin", &["queue/amqp/"]),
    ("redis", &["store/redis/"]),
    ("opentelemetry", &["telemetry/", "spans.rs"]),
    ("opentelemetry_proto", &["telemetry/"]),
    ("opentelemetry_sdk", &["telemetry/"]),
    ("prost", &["telemetry/"]),
    ("tokio_tungstenite", &["upstream/"]),
    ("reqwest", &["upstream/", "operate/", "doctor/", "sandbox/", "telemetry/"]),
    ("tokio_rustls", &["http/", "store/memcached/"]),
    ("x509_parser", &["doctor/"]),
    ("tracing_opentelemetry", &["telemetry/", "spans.rs"]),
];

/// What each module may import of this crate. `app`, `cli`, `main` and `lib` may import every module.
const IMPORTS: &[(&str, &[&str])] = &[
    ("addresses", &[]),
    ("audit", &["clock", "domain", "invalid", "metrics", "private_files", "shutdown"]),
    ("authorization", &[]),
    ("breaker", &[]),
    ("clock", &["domain"]),
    ("contact", &["domain"]),
    ("domain", &[]),
    ("faults", &[]),
    ("invalid", &[]),
    ("listen", &[]),
    ("logging", &["request_context", "spans"]),
    ("max_age", &[]),
    ("metrics", &["domain", "roles"]),
    ("shutdown", &[]),
    ("patience", &[]),
    ("private_files", &[]),
    ("reload", &[]),
    ("request_context", &[]),
    ("readiness", &["metrics", "roles"]),
    ("roles", &[]),
    ("rules", &[]),
    ("same_server", &["max_age"]),
    ("sampled", &[]),
    ("shares", &[]),
    ("spans", &["domain", "metrics", "request_context"]),
    ("supervise", &["shutdown"]),
    ("telemetry", &["domain", "invalid", "metrics", "shutdown", "spans", "tls"]),
    ("tls", &[]),
    (
        "store",
        &[
            "addresses",
            "breaker",
            "clock",
            "domain",
            "invalid",
            "max_age",
            "metrics",
            "patience",
            "reload",
            "roles",
            "same_server",
            "shutdown",
            "supervise",
            "tls",
        ],
    ),
    (
        "queue",
        &[
            "addresses",
            "clock",
            "domain",
            "invalid",
            "max_age",
            "metrics",
            "private_files",
            "shutdown",
            "spans",
            "supervise",
            "tls",
        ],
    ),
    (
        "upstream",
        &[
            "breaker",
            "clock",
            "domain",
            "invalid",
            "max_age",
            "metrics",
            "reload",
            "shutdown",
            "spans",
            "supervise",
            "tls",
        ],
    ),
    (
        "ingest",
        &["authorization", "clock", "contact", "domain", "invalid", "metrics", "queue", "reload", "sampled", "spans"],
    ),
    (
        "consumer",
        &["audit", "clock", "domain", "faults", "metrics", "queue", "shutdown", "spans", "store", "supervise"],
    ),
    (
        "lookup",
        &[
            "clock", "contact", "domain", "faults", "metrics", "patience", "shares", "shutdown", "spans", "store",
            "upstream",
        ],
    ),
    (
        "operate",
        &["clock", "domain", "ingest", "metrics", "queue", "shutdown", "store", "supervise", "tls", "upstream"],
    ),
    (
        "doctor",
        &[
            "authorization",
            "clock",
            "config",
            "domain",
            "ingest",
            "operate",
            "queue",
            "shutdown",
            "store",
            "supervise",
            "tls",
            "upstream",
        ],
    ),
    (
        "sources",
        &[
            "audit",
            "clock",
            "domain",
            "ingest",
            "invalid",
            "lookup",
            "metrics",
            "operate",
            "shutdown",
            "supervise",
            "upstream",
        ],
    ),
    ("sandbox", &["clock", "domain", "listen", "shutdown", "supervise"]),
    (
        "http",
        &[
            "audit",
            "authorization",
            "clock",
            "domain",
            "ingest",
            "invalid",
            "listen",
            "lookup",
            "metrics",
            "operate",
            "readiness",
            "reload",
            "request_context",
            "sampled",
            "shares",
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
            "invalid",
            "logging",
            "lookup",
            "queue",
            "roles",
            "sandbox",
            "sources",
            "store",
            "telemetry",
            "tls",
            "upstream",
        ],
    ),
];

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
                if !matches!(name.as_str(), "target" | "__pycache__") {
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

/// Returns the Rust files and the scripts of Redis below `src`, whole.
fn whole_sources() -> BTreeMap<String, String> {
    let source = root().join("src");
    let files = files_below(&source).into_iter().filter(|name| name.ends_with(".rs") || name.ends_with(".lua"));
    let found: BTreeMap<String, String> =
        files.map(|name| (name.clone(), std::fs::read_to_string(source.join(&name)).unwrap())).collect();
    assert!(found.len() > 40, "only {} source files were found", found.len());
    found
}

/// Returns the production code of each file, without comments.
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
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

/// Returns a file up to its inline unit tests. The declaration of a test module in another file is left out too.
fn production_part(text: &str) -> String {
    let (mut kept, mut lines) = (Vec::new(), text.lines().peekable());
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            match lines.peek() {
                Some(next) if (next.starts_with("mod ") || next.starts_with("pub(")) && next.ends_with('{') => break,
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
    ImportGraph::read(&sources().into_iter().filter(|(name, _)| name.ends_with(".rs")).collect()).edges()
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
        for (name, modules) in CRATES {
            if uses_crate(&text, name) && !modules.iter().any(|module| file.starts_with(module)) {
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
        if module_of(&file) != "app" && text.contains("open::open(") {
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
fn the_checks_find_what_they_forbid() {
    assert!(uses_crate("use lapin::Channel;", "lapin"));
    assert!(!uses_crate("use crate::store::redis::record;", "redis"));
    assert_eq!(imports("use crate::{queue, store::Token};\nuse crate::domain::Key;"), ["queue", "store", "domain"]);
    let text = "#[cfg(test)]\nmod tests;\nfn one() {}\n#[cfg(test)]\nmod tests {\n}\n";
    assert_eq!(production_part(text), "fn one() {}");
}
