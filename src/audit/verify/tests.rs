//! What is done to a file of records is found.

use proptest::prelude::*;

use crate::audit::chain::Chain;
use crate::audit::record::Note;
use crate::audit::{DeniedWebhook, Reason, Record};
use crate::domain::Timestamp;

use super::*;

const KEY: [u8; 32] = [7; 32];

/// Writes a chain of so many records.
fn made(hasher: &Hasher, count: u64) -> (Vec<u8>, RecordHash) {
    let (mut chain, mut text) = (Chain::begin(hasher.clone()), Vec::new());
    let began = Note::Began { mistrusted: None };
    chain.append(&mut text, |line| began.write(Timestamp::from_millis(0), hasher.as_str(), line));
    for n in 1..count {
        let tenant = format!("1000{n}").parse().ok();
        let record = Record::Webhook(DeniedWebhook { request: None, tenant, reason: Reason::Unauthorized });
        let time = Timestamp::from_millis(1_741_064_767_089);
        chain.append(&mut text, |line| record.write(time, line));
    }
    (text, chain.head().hash)
}

/// What someone may do to a file.
#[derive(Clone, Debug)]
enum Harm {
    Change { at: prop::sample::Index, to: u8 },
    Remove { line: prop::sample::Index },
    Swap { one: prop::sample::Index, other: prop::sample::Index },
    Repeat { line: prop::sample::Index, before: prop::sample::Index },
    Cut { at: prop::sample::Index },
}

fn harm() -> impl Strategy<Value = Harm> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, to)| Harm::Change { at, to }),
        index().prop_map(|line| Harm::Remove { line }),
        (index(), index()).prop_map(|(one, other)| Harm::Swap { one, other }),
        (index(), index()).prop_map(|(line, before)| Harm::Repeat { line, before }),
        index().prop_map(|at| Harm::Cut { at }),
    ]
}

fn inflict(text: &[u8], harm: &Harm) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
    match harm {
        Harm::Change { at, to } => {
            let mut text = text.to_vec();
            let at = at.index(text.len());
            text[at] = *to;
            return text;
        }
        Harm::Remove { line } => drop(lines.remove(line.index(lines.len()))),
        Harm::Swap { one, other } => lines.swap(one.index(text_lines(text)), other.index(text_lines(text))),
        Harm::Repeat { line, before } => lines.insert(before.index(lines.len()), lines[line.index(lines.len())]),
        Harm::Cut { at } => return text[..at.index(text.len())].to_vec(),
    }
    lines.concat()
}

fn text_lines(text: &[u8]) -> usize {
    text.iter().filter(|b| **b == b'\n').count()
}

fn check(text: &[u8], hasher: &Hasher, expected: RecordHash) -> Result<(), (usize, Fault)> {
    let mut verifier = Verifier::new(hasher.clone(), Some(expected));
    let mut number = 0;
    for line in text.split_inclusive(|b| *b == b'\n') {
        number += 1;
        verifier.line(line).map_err(|fault| (number, fault))?;
    }
    verifier.finish().map(drop).map_err(|fault| (number + 1, fault))
}

proptest! {
    #[test]
    fn any_single_change_removal_move_repetition_or_cut_is_found(
        count in 1_u64..9, keyed in any::<bool>(), harm in harm(),
    ) {
        let hasher = Hasher::new(keyed.then_some(&KEY));
        let (text, head) = made(&hasher, count);
        prop_assert_eq!(check(&text, &hasher, head), Ok(()));
        let harmed = inflict(&text, &harm);
        if harmed == text {
            return Ok(());
        }
        let (line, fault) = check(&harmed, &hasher, head).expect_err("it is found");
        let first_different = text.iter().zip(&harmed).position(|(a, b)| a != b).unwrap_or(text.len().min(harmed.len()));
        let expected = text_lines(&text[..first_different]) + 1;
        prop_assert_eq!(line, expected, "{:?}", fault);
    }
}

#[test]
fn a_chain_that_is_made_anew_without_the_key_is_found_and_without_a_key_only_by_its_head() {
    let (keyed, plain) = (Hasher::new(Some(&KEY)), Hasher::Sha256);
    let (_, true_head) = made(&keyed, 1);
    let (forged, forged_head) = made(&plain, 1);
    assert_eq!(check(&forged, &keyed, true_head), Err((1, Fault::Changed)));
    assert_eq!(check(&forged, &plain, forged_head), Ok(()));
    assert_eq!(check(&forged, &plain, made(&plain, 1).1), Err((2, Fault::HeadMissing)));
}
