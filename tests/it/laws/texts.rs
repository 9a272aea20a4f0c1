//! The rules of texts: how long files and names may be, and what a text may refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::{files_below, is_test_file, production_part, root, whole_sources};

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
            if !file.starts_with("fuzz/corpus/") && !file.starts_with("it/laws") {
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
fn the_checks_find_wrong_names_and_citations() {
    let long = "a_name_of_four_words_".repeat(4);
    assert_eq!(long_names(&format!("async fn {long}() {{}}\nfn short() {{}}")), [long]);
    for cited in ["(DESIGN section 2)", "◆ fence", "see rule 7.", "rules 1 and 4", "M14", "see GENESYS.md"] {
        assert!(cited_from_outside(cited).is_some(), "{cited}");
    }
    for allowed in ["the witness rule, 7 days", "REDESIGNED", "M2M", "a rule", "(rules::fence)", "no rules; 7 days"] {
        assert_eq!(cited_from_outside(allowed), None, "{allowed}");
    }
}
