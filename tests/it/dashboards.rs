//! Dashboards and alerts use only metrics and labels that exist.
//!
//! `promtool` checks that the alerts are valid and fire; `.ci/operations` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use profile_edge::metrics::Metrics;
use serde_json::Value;

/// Not part of the catalogue, since its labels describe the build.
const BUILD_INFO: &str = "profile_edge_build_info";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

fn dashboards() -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.insert(name, serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap());
        }
    }
    assert!(found.contains_key("overview.json"), "overview.json was not found");
    found
}

fn alerts() -> String {
    std::fs::read_to_string(folder().join("alerts.yaml")).unwrap()
}

/// Collects all strings of a document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(values) => values.values().for_each(|value| texts(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A label, and the values that an expression selects.
pub(crate) type Demand = (String, Vec<String>);

/// Returns every metric of this program that a text names, with the labels that it selects.
pub(crate) fn named(text: &str) -> Vec<(String, Vec<Demand>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("profile_edge_") {
        let length = text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len() - at);
        let (name, rest) = text[at..].split_at(length);
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        let demands = selector.split(',').filter(|demand| !demand.is_empty()).map(|demand| {
            let (label, values) = demand.split_once('=').unwrap_or((demand, ""));
            let values = values.trim_start_matches('~').trim_matches('"');
            let label = label.trim_end_matches('!').trim();
            (label.to_owned(), values.split('|').map(str::to_owned).collect())
        });
        found.push((name.to_owned(), demands.collect()));
    }
    found
}

/// Returns what is wrong with the metrics of this program that a text names.
fn mistakes(text: &str, scrape: &str) -> Vec<String> {
    named(text).into_iter().flat_map(|(name, demands)| mistakes_of(&name, demands, scrape)).collect()
}

/// Returns what is wrong with a metric and what an expression demands of its labels.
pub(crate) fn mistakes_of(name: &str, demands: Vec<Demand>, scrape: &str) -> Vec<String> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    let known = |name: &str| name == BUILD_INFO || Metrics::NAMES.contains(&name);
    let Some(metric) = [Some(name), base].into_iter().flatten().find(|name| known(name)) else {
        return vec![format!("{name} is not a metric")];
    };
    let series: Vec<&str> = scrape.lines().filter(|line| line.starts_with(metric)).collect();
    let mut found = Vec::new();
    // Prometheus adds `instance` and `job` to what it scrapes.
    for (label, values) in demands.iter().filter(|(label, _)| !["instance", "job"].contains(&label.as_str())) {
        for value in values {
            let wanted = format!("{label}=\"{value}\"");
            if !series.iter().any(|line| line.contains(&wanted)) {
                found.push(format!("{name} never has {wanted}"));
            }
        }
    }
    found
}

#[test]
fn dashboards_show_only_metrics_and_labels_that_exist() {
    let scrape = Metrics::new().render();
    for (file, dashboard) in dashboards() {
        let mut all = Vec::new();
        texts(&dashboard, &mut all);
        let found: Vec<String> = all.iter().flat_map(|text| mistakes(text, &scrape)).collect();
        assert!(found.is_empty(), "{file}: {found:#?}");
    }
}

#[test]
fn every_panel_has_an_expression_a_description_and_its_own_place() {
    for (file, dashboard) in dashboards() {
        let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
        let mut panels = 0;
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = format!("{file}: {}", panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: the id is not unique");
            let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(
                        x < 24 && cells.insert((x, y)),
                        "{title}: overlaps another panel, or is outside of the grid"
                    );
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            panels += 1;
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 10), "{title}: has no description");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{title}: has no target");
            for target in targets {
                assert!(
                    target["expr"].as_str().is_some_and(|text| !text.trim().is_empty()),
                    "{title}: has no expression"
                );
                assert_eq!(target["datasource"]["uid"], "prometheus", "{title}");
            }
        }
        assert!(panels > 5, "{file}: the panels were not found");
    }
}

#[test]
fn alerts_use_metrics_that_exist_and_say_what_to_do() {
    let alerts = alerts();
    let found = mistakes(&alerts, &Metrics::new().render());
    assert!(found.is_empty(), "{found:#?}");
    let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(rules.len() > 5, "the alerts were not found");
    let mut names = BTreeSet::new();
    for rule in rules {
        let name = rule.lines().next().unwrap();
        assert!(
            name.starts_with("ProfileEdge") && names.insert(name),
            "{name}: must start with ProfileEdge and be unique"
        );
        let runbook = format!("runbook: dashboards/README.md#{}\n", name.to_lowercase());
        for part in ["expr: ", "severity: ", "summary: ", "what_to_do: ", &runbook] {
            assert!(rule.contains(part), "{name}: has no {part}");
        }
    }
}

#[test]
fn unknown_metrics_and_labels_are_found() {
    let scrape = Metrics::new().render();
    let wrong = |text: &str| !mistakes(text, &scrape).is_empty();
    assert!(wrong("rate(profile_edge_lookups_total[5m])"));
    assert!(wrong("profile_edge_lookup_requests_total_bucket2"));
    assert!(wrong("profile_edge_lookup_requests_total{result=\"hits\"}"));
    assert!(wrong("profile_edge_lookup_requests_total{instance=\"a\",result=~\"hit|mis\"}"));
    assert!(wrong("profile_edge_lookup_duration_seconds_bucket{outcome=\"hit\"}"));
    assert!(!wrong("profile_edge_lookup_duration_seconds_bucket{result!=\"hit\"} / profile_edge_store_up"));
}
