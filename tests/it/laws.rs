//! The laws of the house that a machine can check: who imports what, and how long a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The crates that only some rooms may use, and those rooms.
const CRATES: [(&str, &[&str]); 12] = [
    ("axum", &["http/", "sandbox/", "app.rs", "app/"]),
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

/// What each module may import of this crate. `app`, `cli`, `main` and `lib` know every door.
const IMPORTS: [(&str, &[&str]); 24] = [
    ("audit", &["clock", "domain", "invalid", "metrics", "shutdown"]),
    ("clock", &["domain"]),
    ("domain", &[]),
    ("faults", &[]),
    ("invalid", &[]),
    ("logging", &["spans"]),
    ("metrics", &["domain", "roles"]),
    ("shutdown", &[]),
    ("reload", &[]),
    ("readiness", &["metrics", "roles"]),
    ("roles", &[]),
    ("spans", &["domain", "metrics"]),
    ("telemetry", &["domain", "invalid", "metrics", "shutdown", "spans", "tls"]),
    ("tls", &[]),
    ("store", &["clock", "domain", "invalid", "metrics", "reload", "shutdown", "tls"]),
    ("queue", &["clock", "domain", "invalid", "metrics", "shutdown", "spans", "tls"]),
    ("upstream", &["clock", "domain", "invalid", "metrics", "shutdown", "spans"]),
    ("ingest", &["clock", "domain", "invalid", "metrics", "queue", "reload", "spans"]),
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
            "invalid",
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
            "invalid",
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

const LONGEST_FILE: usize = 400;

fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, production_part(&std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 40, "the sources were found");
    found
}

/// A file without its comments and its tests.
fn production_part(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
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
fn crates_are_used_only_in_their_rooms() {
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
            assert!(matches!(module, "app" | "cli" | "main" | "lib"), "{file} is in no law");
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
fn no_command_of_redis_walks_over_all_keys_or_removes_them() {
    let mut broken = Vec::new();
    for (file, text) in sources() {
        let text = text.to_ascii_lowercase();
        for command in ["keys", "scan", "flush"] {
            // From here, or by a script.
            let sent = ["cmd(\"", "call('", "call(\""].iter().any(|send| text.contains(&format!("{send}{command}")));
            if sent {
                broken.push(format!("{file} sends {command}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources().keys() {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let lines = text.split("\n#[cfg(test)]").next().unwrap_or_default().lines().count();
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines before its tests");
    }
}

#[test]
fn the_law_sees_what_it_forbids() {
    assert!(uses_crate("use lapin::Channel;", "lapin"));
    assert!(!uses_crate("use crate::store::redis::record;", "redis"));
    assert_eq!(imports("use crate::{queue, store::Token};\nuse crate::domain::Key;"), ["queue", "store", "domain"]);
}
