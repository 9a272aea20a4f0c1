//! The Markdown pages cite only what exists: paths, commands, options, variables, metrics, tests, and links.
//!
//! A page is read for its code spans, code blocks and links. What has the form of one of these must name something
//! that exists; anything else is left alone. A placeholder is written `<name>` or `…`.

mod markdown;
mod repository;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use markdown::Page;
use profile_edge::metrics::Metrics;
use repository::{FOLDERS, Repository};

use crate::dashboards;

/// The pages, all of which must exist.
const PAGES: [&str; 7] = [
    "README.md",
    "src/README.md",
    "conf/README.md",
    "conf/security.md",
    "dashboards/README.md",
    "compose/README.md",
    "tests/README.md",
];

/// The page of the architecture, whose headings are the names of the rules.
const ARCHITECTURE: &str = "src/README.md";

/// The pages that cite tests.
const PAGES_WITH_TESTS: [&str; 3] = [ARCHITECTURE, "conf/security.md", "tests/README.md"];

/// The most lines of the first page.
const LONGEST_FIRST_PAGE: usize = 160;

const PROGRAM: &str = "profile-edge";
const METRIC: &str = "profile_edge_";
const VARIABLE: &str = "PROFILE_EDGE_";

/// The endings that make a dotted name the name of a file.
const FILE_ENDINGS: [&str; 9] = ["rs", "toml", "md", "yaml", "json", "jsonl", "py", "conf", "env"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(page: &str) -> Option<String> {
    std::fs::read_to_string(root().join(page)).ok()
}

/// The repository and the pages that exist.
struct Library {
    repository: Repository,
    pages: BTreeMap<String, Page>,
    rules: Page,
}

impl Library {
    fn read() -> Self {
        let pages: BTreeMap<String, Page> =
            PAGES.iter().filter_map(|name| Some(((*name).to_owned(), Page::read(&text_of(name)?)))).collect();
        let rules = text_of(ARCHITECTURE).map(|text| Page::read(&text)).unwrap_or_default();
        Self { repository: Repository::read(root()), pages, rules }
    }

    /// Returns what is wrong with a page, each with its line.
    fn mistakes(&self, name: &str, page: &Page) -> Vec<String> {
        let mut found = Vec::new();
        for span in &page.spans {
            let mistakes = self.mistakes_of_code(name, &span.text);
            found.extend(mistakes.into_iter().map(|mistake| format!("{name}:{}: {mistake}", span.line)));
        }
        for block in &page.blocks {
            let mistakes = match block.language.as_str() {
                "toml" => self.mistakes_of_settings(&block.code.text),
                "sh" | "bash" | "console" => self.mistakes_of_script(&block.code.text),
                _ => self.mistakes_of_metrics(&block.code.text),
            };
            found.extend(mistakes.into_iter().map(|mistake| format!("{name}:{}: {mistake}", block.code.line)));
        }
        for link in &page.links {
            let mistake = self.mistake_of_link(name, page, &link.text);
            found.extend(mistake.map(|mistake| format!("{name}:{}: {mistake}", link.line)));
        }
        found
    }

    /// Returns what is wrong with a code span.
    fn mistakes_of_code(&self, page: &str, code: &str) -> Vec<String> {
        let mut found = self.mistakes_of_metrics(code);
        found.extend(self.mistakes_of_commands(code));
        let words: Vec<&str> = code.split_whitespace().collect();
        found.extend(words.iter().filter_map(|word| self.mistake_of_word(page, word)));
        let unprefixed = words.iter().filter_map(|word| word.split('{').next()).filter(|word| {
            word.contains('_')
                && Metrics::NAMES.contains(&format!("{METRIC}{word}").as_str())
                && !self.repository.is_key_of_an_option(word)
        });
        found.extend(unprefixed.map(|name| format!("{name} is a metric without its prefix")));
        if let [name] = words[..] {
            let option = name.strip_prefix('[').map(|rest| rest.trim_matches(['[', ']']));
            if option.is_some_and(|option| is_option(option) && !self.repository.has_option(option)) {
                found.push(format!("{name} is not a table of options"));
            }
        }
        found
    }

    /// Returns what is wrong with a word of a code span: a path, an option, a variable, or the name of a test.
    fn mistake_of_word(&self, page: &str, word: &str) -> Option<String> {
        let word = word.trim_matches(['"', '\'', '(', ')', ',', ';']).trim_end_matches(['.', ':']);
        let word = word.split_once("=").map_or(word, |(left, right)| if left.starts_with('-') { right } else { left });
        if let Some(path) = path_in(word) {
            return (!self.repository.has_path(path)).then(|| format!("{path} does not exist"));
        }
        let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
        let is_path = word.ends_with('/') || word.ends_with(".rs");
        if let Some((first, _)) = word.split_once('/')
            && is_path
            && !folder.is_empty()
            && self.repository.has_path(&format!("{folder}/{first}/"))
        {
            let path = format!("{folder}/{word}");
            return (!self.repository.has_path(&path)).then(|| format!("{path} does not exist"));
        }
        if word.starts_with(VARIABLE) && word.len() > VARIABLE.len() && is_made_of(word, "_") {
            return (!self.repository.has_variable(word)).then(|| format!("nothing reads the variable {word}"));
        }
        if is_option(word) && self.repository.has_section(word.split('.').next().unwrap_or_default()) {
            return (!self.repository.has_option(word)).then(|| format!("{word} is not an option"));
        }
        if !PAGES_WITH_TESTS.contains(&page) {
            return None;
        }
        if word.contains("::") && is_made_of(word, "_:") && word.to_lowercase() == *word {
            let found = self.repository.has_module_path(word, &self.rules);
            return (found == Some(false)).then(|| format!("{word} leads to no module and no test"));
        }
        let is_name = is_made_of(word, "_") && word.matches('_').count() >= 3 && word.to_lowercase() == *word;
        let known = || word.starts_with(METRIC) || self.repository.is_key_of_an_option(word);
        let missing = is_name && !known() && !self.repository.has_name(word);
        missing.then(|| format!("{word} is not the name of a test"))
    }

    /// Returns what is wrong with the metrics that a text names, and with their labels.
    fn mistakes_of_metrics(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (name, demands) in dashboards::named(text) {
            // A prefix, such as `profile_edge_audit_*`, names several metrics.
            if name.ends_with('_') {
                if !Metrics::NAMES.iter().any(|metric| metric.starts_with(&name)) {
                    found.push(format!("no metric starts with {name}"));
                }
            } else {
                let demands = demands.into_iter().filter(|(label, _)| is_made_of(label, "_")).collect();
                found.extend(dashboards::mistakes_of(&name, demands, &self.repository.scrape));
            }
        }
        found
    }

    /// Returns what is wrong with the commands of this program that a line of a shell runs.
    fn mistakes_of_commands(&self, line: &str) -> Vec<String> {
        let line = line.split(" #").next().unwrap_or_default();
        let parts = line.split(['|', ';', '&', '(', ')', '`', '<', '>']);
        let calls = parts.filter_map(|part| {
            let words: Vec<&str> = part.split_whitespace().collect();
            let at = words.iter().position(|word| !word.contains('=') && *word != "$" && *word != "sudo")?;
            (words[at].rsplit('/').next() == Some(PROGRAM)).then(|| words[at + 1..].to_vec())
        });
        calls.filter_map(|arguments| self.repository.mistake_of_command(&arguments)).collect()
    }

    /// Returns what is wrong with a block of shell commands.
    fn mistakes_of_script(&self, script: &str) -> Vec<String> {
        let mut found = self.mistakes_of_metrics(script);
        for line in script.replace("\\\n", " ").lines() {
            found.extend(self.mistakes_of_commands(line));
            let words = line.split(" #").next().unwrap_or_default().split_whitespace();
            let paths = words.filter_map(|word| path_in(word.trim_matches(['"', '\'']).rsplit('=').next()?));
            let missing = paths.filter(|path| !self.repository.has_path(path));
            found.extend(missing.map(|path| format!("{path} does not exist")));
        }
        found
    }

    /// Returns what is wrong with a block of settings.
    fn mistakes_of_settings(&self, settings: &str) -> Vec<String> {
        let table: toml::Table = match settings.parse() {
            Ok(table) => table,
            Err(error) => return vec![format!("the settings cannot be read: {error}")],
        };
        let mut names = BTreeSet::new();
        options_of(&toml::Value::Table(table), "", &mut names);
        names.retain(|name| !self.repository.has_option(name));
        names.into_iter().map(|name| format!("{name} is not an option")).collect()
    }

    /// Returns what is wrong with a link that leads into the repository.
    fn mistake_of_link(&self, name: &str, page: &Page, target: &str) -> Option<String> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
        let file = root().join(name).parent()?.join(path);
        if !path.is_empty() && !file.exists() {
            return Some(format!("the link {target} leads to no file"));
        }
        let anchor = anchor?;
        let other = (!path.is_empty()).then(|| Page::read(&std::fs::read_to_string(&file).unwrap_or_default()));
        let anchors = &other.as_ref().unwrap_or(page).anchors;
        (!anchors.contains(anchor)).then(|| format!("the link {target} leads to no heading"))
    }
}

/// Returns the path of this repository that a word is; a line number at its end is left out.
fn path_in(word: &str) -> Option<&str> {
    let path = word.trim_start_matches("./").split('#').next()?;
    let (folder, rest) = path.split_once('/')?;
    let path = match path.rsplit_once(':') {
        Some((path, line)) if line.bytes().all(|digit| digit.is_ascii_digit()) => path,
        _ => path,
    };
    (FOLDERS.contains(&folder) && !rest.contains("::")).then_some(path)
}

/// Returns whether a text consists of ASCII letters, digits, and these characters.
fn is_made_of(text: &str, more: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// Returns whether a word has the form of an option, as `store.redis.url`.
fn is_option(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let file = parts.iter().any(|part| FILE_ENDINGS.contains(part));
    let named =
        |part: &str| part == "*" || (is_made_of(part, "_") && part.starts_with(|c: char| c.is_ascii_lowercase()));
    !file && parts.iter().all(|part| named(part)) && (parts.len() > 1 || word == parts[0] && !word.contains('*'))
}

/// Collects the options that a value sets.
fn options_of(value: &toml::Value, name: &str, found: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                options_of(value, format!("{name}.{key}").trim_start_matches('.'), found);
            }
        }
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            values.iter().for_each(|value| options_of(value, name, found));
        }
        _ => drop(found.insert(name.to_owned())),
    }
}

#[test]
fn every_page_exists() {
    let missing: Vec<&str> = PAGES.into_iter().filter(|page| text_of(page).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn pages_cite_only_what_exists() {
    let library = Library::read();
    let found: Vec<String> = library.pages.iter().flat_map(|(name, page)| library.mistakes(name, page)).collect();
    assert!(found.is_empty(), "{} mistakes: {found:#?}", found.len());
}

#[test]
fn every_alert_has_a_heading_in_the_runbook() {
    let alerts = text_of("dashboards/alerts.yaml").unwrap();
    let headings = Page::read(&text_of("dashboards/README.md").unwrap_or_default()).headings;
    let names: Vec<&str> = alerts.split("- alert: ").skip(1).filter_map(|rule| rule.lines().next()).collect();
    assert!(names.len() > 5, "the alerts were not found");
    let is_in = |heading: &str, name: &str| heading.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
    let missing: Vec<&&str> =
        names.iter().filter(|name| !headings.iter().any(|heading| is_in(heading, name))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_first_page_is_short() {
    let lines = text_of("README.md").unwrap().lines().count();
    assert!(lines <= LONGEST_FIRST_PAGE, "README.md has {lines} lines, at most {LONGEST_FIRST_PAGE} are allowed");
}

#[test]
fn planted_mistakes_are_found_and_correct_citations_are_not() {
    let library = Library::read();
    let check = |text: &str| library.mistakes("tests/README.md", &Page::read(text));
    for wrong in [
        "`src/nowhere.rs`",
        "`src/{app,nowhere}.rs`",
        "`src/**/nowhere.rs`",
        "`tests/nowhere --quick`",
        "`it/nowhere.rs`",
        "`profile-edge rerun`",
        "`profile-edge dead-letters bury`",
        "`profile-edge replay --until-when 2h`",
        "`profile-edge --nowhere`",
        "`store.redis.urn`",
        "`security.require_tsl = false`",
        "`[store.sealed]`",
        "`[[tenants]]`",
        "`PROFILE_EDGE__STORE__KINDS`",
        "`PROFILE_EDGE_NOWHERE`",
        "`profile_edge_lookups_total`",
        "`profile_edge_nowhere_*`",
        "`profile_edge_lookup_requests_total{result=\"hits\"}`",
        "`lookup_requests_total`",
        "`store_up == 0`",
        "`a_test_that_nobody_wrote`",
        "`contract::nowhere`",
        "`rules::nowhere`",
        "[a](nowhere.md)",
        "[a](#nowhere)",
        "[a](../README.md#nowhere)",
        "```sh\nprofile-edge rerun\n```",
        "```sh\nprofile-edge check-config --config conf/nowhere.toml\n```",
        "```sh\necho x | profile-edge hash-keys\n```",
        "```sh\n./tests/nowhere\n```",
        "```toml\n[store]\nkinds = \"redis\"\n```",
        "```toml\n[[tenant]]\nwebhook = [{ schema = \"bearer\" }]\n```",
        "```promql\nrate(profile_edge_lookups_total[5m])\n```",
    ] {
        assert_eq!(check(wrong).len(), 1, "{wrong}: {:?}", check(wrong));
    }
    for right in [
        "`src/app.rs`, `src/store/`, `./tests/run --no-install`, `src/{app,lib}.rs`",
        "`tests/**/*.rs`, `conf/*.toml`",
        "`src/ingest/authenticate/<scheme>.rs`, `it/contract/`, `tests/it/laws.rs:12`, `target/x/y.rs`, `a/b.rs`",
        "`profile-edge`, `profile-edge help`, `profile-edge dead-letters redrive --all`",
        "`profile-edge replay --since 2h --json`",
        "`store.redis.url`, `[store.redis]`, `[[tenant.webhook]]`, `tenant.ttl`",
        "`store.sealing.keys.k7`, `lookup.*`",
        "`security.require_tls = false`, `audit.jsonl`, `audit.rs`, `profile-edge.events`, `[5m]`, `12.5`, `e.g.`",
        "`PROFILE_EDGE__STORE__REDIS__URL=x`, `PROFILE_EDGE_CONFIG`, `PROFILE_EDGE_…`, `PATH`",
        "`profile_edge_lookup_requests_total{result=\"hit\"}`, `profile_edge_lookup_duration_seconds_bucket`",
        "`profile_edge_audit_*`, `profile_edge_…`, `profile_edge::metrics`, `max_bytes`, `rate(x[5m])`",
        "`planted_mistakes_are_found_and_correct_citations_are_not`, `laws::no_source_file_is_too_long`",
        "`contract::store`, `tokio::time::sleep`, `Vec::new`, `a_b_c`, `journal_max_bytes`",
        "# A `b` c\n[a](#a-b-c), [a](../Cargo.toml), [a](https://example.com/x), `[a](nowhere.md)`",
        "```sh\nprintf %s \"$KEY\" | profile-edge hash-key   # profile-edge rerun\nRUST_LOG=debug profile-edge\n```",
        "```toml\nroles = [\"lookup\"]\n[[caller]]\nname = \"x\"\n[telemetry.headers]\nx-key = \"y\"\n```",
        "```text\nsrc/nowhere.rs\n```",
    ] {
        assert_eq!(check(right), [""; 0], "{right}");
    }
}
