//! Tampering with a file of records is detected.

use proptest::prelude::*;

use crate::audit::chain::Chain;
use crate::audit::system_record::SystemRecord;
use crate::audit::{AuditRecord, DenialReason, DeniedWebhook};
use crate::domain::Timestamp;

use super::*;

const KEY: [u8; 32] = [7; 32];

/// Writes a chain of `count` records.
fn write_chain(hasher: &Hasher, count: u64) -> (Vec<u8>, RecordHash) {
    let (mut chain, mut text) = (Chain::start(hasher.clone()), Vec::new());
    chain.append(&mut text, Timestamp::from_millis(0), &SystemRecord::began(hasher.as_str(), None));
    for n in 1..count {
        let tenant = format!("1000{n}").parse().ok();
        let record = AuditRecord::Webhook(DeniedWebhook { request: None, tenant, reason: DenialReason::Unauthorized });
        let time = Timestamp::from_millis(1_741_064_767_089);
        chain.append(&mut text, time, &record);
    }
    (text, chain.head().hash)
}

/// A change by an attacker.
#[derive(Clone, Debug)]
enum Tampering {
    Change { at: prop::sample::Index, to: u8 },
    Remove { line: prop::sample::Index },
    Swap { one: prop::sample::Index, other: prop::sample::Index },
    Repeat { line: prop::sample::Index, before: prop::sample::Index },
    Cut { at: prop::sample::Index },
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, to)| Tampering::Change { at, to }),
        index().prop_map(|line| Tampering::Remove { line }),
        (index(), index()).prop_map(|(one, other)| Tampering::Swap { one, other }),
        (index(), index()).prop_map(|(line, before)| Tampering::Repeat { line, before }),
        index().prop_map(|at| Tampering::Cut { at }),
    ]
}

fn tamper(text: &[u8], tampering: &Tampering) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
    match tampering {
        Tampering::Change { at, to } => {
            let mut text = text.to_vec();
            let at = at.index(text.len());
            text[at] = *to;
            return text;
        }
        Tampering::Remove { line } => drop(lines.remove(line.index(lines.len()))),
        Tampering::Swap { one, other } => lines.swap(one.index(text_lines(text)), other.index(text_lines(text))),
        Tampering::Repeat { line, before } => lines.insert(before.index(lines.len()), lines[line.index(lines.len())]),
        Tampering::Cut { at } => return text[..at.index(text.len())].to_vec(),
    }
    lines.concat()
}

fn text_lines(text: &[u8]) -> usize {
    text.iter().filter(|b| **b == b'\n').count()
}

fn check(text: &[u8], hasher: &Hasher, expected: RecordHash) -> Result<(), (usize, RecordFault)> {
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
    fn any_change_removal_move_repetition_or_cut_is_detected(
        count in 1_u64..9, keyed in any::<bool>(), tampering in tampering(),
    ) {
        let hasher = Hasher::new(keyed.then_some(&KEY));
        let (text, head) = write_chain(&hasher, count);
        prop_assert_eq!(check(&text, &hasher, head), Ok(()));
        let tampered = tamper(&text, &tampering);
        if tampered == text {
            return Ok(());
        }
        let (line, fault) = check(&tampered, &hasher, head).expect_err("the tampering is detected");
        let first_different = text.iter().zip(&tampered).position(|(a, b)| a != b).unwrap_or(text.len().min(tampered.len()));
        let expected = text_lines(&text[..first_different]) + 1;
        prop_assert_eq!(line, expected, "{:?}", fault);
    }
}

#[test]
fn a_forged_chain_fails_without_the_key_or_the_known_head() {
    let (keyed, plain) = (Hasher::new(Some(&KEY)), Hasher::Sha256);
    let (_, true_head) = write_chain(&keyed, 1);
    let (forged, forged_head) = write_chain(&plain, 1);
    assert_eq!(check(&forged, &keyed, true_head), Err((1, RecordFault::Changed)));
    assert_eq!(check(&forged, &plain, forged_head), Ok(()));
    assert_eq!(check(&forged, &plain, write_chain(&plain, 1).1), Err((2, RecordFault::HeadMissing)));
}
