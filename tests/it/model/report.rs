//! Runs many configurations at once and prints the results.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::checker::{Explored, explore};
use super::invariants::{Broken, Invariant};
use super::removals::Removal;
use super::setup::Setup;

/// Explores configurations on as many threads as there are cores, prints each and the sum, and returns the
/// number of distinct states.
///
/// Panics with the trace if one of them breaks an invariant.
pub(super) fn explore_all(setups: &[Setup], watched: Broken) -> usize {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(setup) = setups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let explored = explore(setup, watched);
                    println!("model: {}", line(setup, &explored));
                    results.lock().unwrap().push((setup.name, explored));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), setups.len(), "not every configuration was explored");
    let sum = |count: fn(&Explored) -> usize| results.iter().map(|(_, explored)| count(explored)).sum::<usize>();
    let states = sum(|explored| explored.states);
    println!(
        "model: {} configurations, {states} distinct states, {} steps",
        setups.len(),
        sum(|explored| explored.steps)
    );
    println!("model: invariants {:?}", Invariant::ALL);
    for (name, explored) in &results {
        if let Some(broken) = &explored.broken {
            panic!("{name} breaks {:?} after {} steps:\n{}", broken.invariant, broken.steps.len(), broken.trace);
        }
    }
    states
}

/// Explores a configuration without one of its rules until the named invariant breaks, and prints the row.
///
/// Panics if it never breaks.
pub(super) fn expect_broken(removal: &Removal) {
    let Removal { rule, setup, breaks, .. } = removal;
    let explored = explore(setup, Broken::only(*breaks));
    let Some(broken) = explored.broken else {
        panic!("without {:?}, {} keeps {breaks:?} in all {} states", setup.without, setup.name, explored.states);
    };
    let (without, steps) = (setup.without, broken.steps.len());
    println!("model: {rule}, without {without:?}: {breaks:?} broken in {steps} steps ({})", setup.name);
}

fn line(setup: &Setup, explored: &Explored) -> String {
    let Explored { states, steps, depth, .. } = explored;
    format!("{}: {states} states, {steps} steps, depth {depth}", setup.name)
}
