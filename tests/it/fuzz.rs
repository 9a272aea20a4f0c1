//! Replays the corpora of the fuzz targets: the seed inputs and past findings.

#[path = "../fuzz/properties.rs"]
mod properties;

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The number of mutated inputs for each target. The fuzzers themselves run for longer.
const MUTATIONS: usize = 400;

/// Panics if the input violates a property.
type Property = fn(&[u8]);

/// The targets, by the names of their corpora.
const TARGETS: [(&str, Property); 8] = [
    ("configuration", properties::configuration),
    ("fields", properties::fields),
    ("identifiers", properties::identifiers),
    ("queries", properties::queries),
    ("records", properties::records),
    ("signatures", properties::signatures),
    ("webhooks", properties::webhooks),
    ("wire", properties::wire),
];

/// Returns the plain-text words of the fuzzers' dictionary.
fn words() -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(folder().join("words.dict")).unwrap();
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| word.replace("\\x0a", "\n").replace("\\\"", "\"").replace("\\\\", "\\").into_bytes()).collect()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = folder().join("corpus").join(target);
    names_in(&folder).iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect()
}

/// Changes an input in one place: replaces a byte, removes or repeats a piece, or inserts a byte, a word, or a piece of
/// another input.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], words: &[Vec<u8>], chance: &mut StdRng) {
    let at = chance.random_range(0..=input.len());
    let piece = |of: &[u8], chance: &mut StdRng| {
        let from = chance.random_range(0..=of.len());
        let length = chance.random_range(0..=(of.len() - from).min(64));
        of[from..from + length].to_vec()
    };
    let inserted = match chance.random_range(0..6) {
        0 if at < input.len() => {
            input[at] = chance.random();
            return;
        }
        1 => {
            let length = chance.random_range(0..=(input.len() - at).min(32));
            drop(input.drain(at..at + length));
            return;
        }
        2 => piece(&input.clone(), chance),
        3 => piece(&others[chance.random_range(0..others.len())], chance),
        4 => words[chance.random_range(0..words.len())].clone(),
        _ => vec![chance.random()],
    };
    drop(input.splice(at..at, inserted));
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_corpus_input_satisfies_its_properties() {
    for (target, property) in TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 3, "{target} has too few inputs");
        for input in inputs {
            property(&input);
            // Truncated inputs must satisfy the properties too.
            let step = input.len().div_ceil(40).max(1);
            for end in (0..input.len()).step_by(step) {
                property(&input[..end]);
            }
        }
    }
}

#[test]
fn every_mutated_corpus_input_satisfies_its_properties() {
    let (words, mut chance) = (words(), StdRng::seed_from_u64(20_250_304));
    // A machine without the fuzzers' compiler may run more mutations.
    let mutations = std::env::var("FUZZ_NEIGHBOURS").ok().and_then(|text| text.parse().ok()).unwrap_or(MUTATIONS);
    for (target, property) in TARGETS {
        let inputs = corpus(target);
        for number in 0..mutations {
            let mut input = inputs[number % inputs.len()].clone();
            for _ in 0..chance.random_range(1..=6) {
                mutate(&mut input, &inputs, &words, &mut chance);
            }
            if let Err(panic) = std::panic::catch_unwind(|| property(&input)) {
                eprintln!("{target}: {:?}", String::from_utf8_lossy(&input));
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn every_fuzz_target_has_a_corpus_and_is_replayed() {
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names_in(&folder().join("corpus")), known);
    let files: Vec<String> = known.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names_in(&folder().join("fuzz_targets")), files);
}
