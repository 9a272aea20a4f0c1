//! An explicit-state checker: breadth first, so that a counterexample is a shortest one.
//!
//! A visited state is stored as a fingerprint of 128 bits (FNV-1a). The chance that two of a hundred million states
//! share one, so that one of them is skipped, is below 10⁻²². The fingerprint of the previous state is stored too, so
//! that a trace can be built.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hash, Hasher};

use super::invariants::{Broken, Invariant};
use super::setup::Setup;
use super::state::State;
use super::steps::{Step, successors};

/// What an exploration found.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) steps: usize,
    pub(super) depth: usize,
    pub(super) broken: Option<Counterexample>,
}

/// A shortest way to break an invariant.
#[derive(Debug)]
pub(super) struct Counterexample {
    pub(super) invariant: Invariant,
    pub(super) steps: Vec<Step>,
    pub(super) trace: String,
}

/// Visits every state of a configuration, or stops at the first step that breaks one of `watched`.
pub(super) fn explore(setup: &Setup, watched: Broken) -> Explored {
    let start = State::default().canonical();
    let mut met: HashMap<u128, u128, AsIs> = HashMap::default();
    met.insert(fingerprint(&start), 0);
    let mut level = vec![start];
    let (mut steps, mut depth) = (0, 0);
    let mut next = Vec::new();
    let mut found = Vec::new();
    while !level.is_empty() {
        for state in level.drain(..) {
            successors(setup, &state, &mut found);
            let parent = fingerprint(&state);
            for (step, state, broken) in found.drain(..) {
                steps += 1;
                if let Some(invariant) = (broken & watched).first() {
                    let broken = Some(retrace(setup, &met, parent, step, &state, invariant));
                    return Explored { states: met.len(), steps, depth, broken };
                }
                met.entry(fingerprint(&state)).or_insert_with(|| {
                    next.push(state);
                    parent
                });
            }
        }
        std::mem::swap(&mut level, &mut next);
        depth += 1;
    }
    Explored { states: met.len(), steps, depth, broken: None }
}

fn retrace(
    setup: &Setup,
    met: &HashMap<u128, u128, AsIs>,
    mut last: u128,
    step: Step,
    end: &State,
    invariant: Invariant,
) -> Counterexample {
    let mut way = Vec::new();
    while met[&last] != 0 {
        way.push(last);
        last = met[&last];
    }
    let mut state = State::default().canonical();
    let (mut steps, mut trace, mut found) = (Vec::new(), String::new(), Vec::new());
    for wanted in way.into_iter().rev() {
        successors(setup, &state, &mut found);
        let taken = found.drain(..).find(|(_, state, _)| fingerprint(state) == wanted);
        // Each state of the trace is a successor of the one before.
        let (step, reached, _) = taken.expect("a way that was gone can be gone again");
        write_step(&mut trace, setup, &step, &reached);
        steps.push(step);
        state = reached;
    }
    write_step(&mut trace, setup, &step, end);
    steps.push(step);
    Counterexample { invariant, steps, trace }
}

fn write_step(trace: &mut String, setup: &Setup, step: &Step, state: &State) {
    let keys = &state.store[..usize::from(setup.keys)];
    let _ = write!(trace, "  {step:?}\n      Genesys {}, shown {}", state.current, state.shown);
    for slot in keys {
        let _ = write!(trace, "; K {:?}, lock {}, {:?}", slot.entry, slot.lock.0, slot.fence);
    }
    trace.push('\n');
}

fn fingerprint(state: &State) -> u128 {
    let mut hasher = Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
    state.hash(&mut hasher);
    hasher.0
}

/// FNV-1a with 128 bits.
struct Fnv(u128);

impl Fnv {
    fn take(&mut self, value: u64) {
        self.0 = (self.0 ^ u128::from(value)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        (self.0 ^ (self.0 >> 64)) as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.take(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.take(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.take(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.take(value as u64);
    }
}

/// Fingerprints are hashes already.
#[derive(Clone, Default)]
struct AsIs(u64);

impl BuildHasher for AsIs {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, value: u128) {
        self.0 = (value ^ (value >> 64)) as u64;
    }
}
