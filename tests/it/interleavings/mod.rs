//! Every interleaving of a few lookups and events over the real lookup flow, the real consumer and the embedded
//! store. Each await point at which they access shared state is a gate. All orders of passing the gates are tried, with
//! time paused.
//!
//! Each run must keep the promise of the protocol: a lookup that started after an event was applied gets a profile that
//! is at least as new, or was fetched after it; older ones are labelled; and in the end every lookup sees the newest.
//! The model in `model/` checks the protocol. These tests check its code.

mod gates;
mod world;

use std::fmt::Write as _;

use profile_edge::domain::Kind;
use profile_edge::lookup::LookupOutcome;
use profile_edge::metrics::Metrics;

use world::{History, World, version_and_fetch};

/// A disturbance that may happen once, at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chance {
    /// The entry of the first lookup's customer is evicted.
    Evict,
    /// Enough time passes for every lease to expire.
    LeasesRunOut,
    /// Reads at Genesys show the last write. Until then they show the state before.
    ReadsCatchUp,
}

/// The entries of the customers when a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InitialEntry {
    Nothing,
    Fresh,
    Stale,
}

/// A change at Genesys and its event.
#[derive(Clone, Debug)]
struct Planned {
    /// The customers that it names; the first is the one that changed.
    customers: Vec<&'static str>,
    kind: Kind,
    /// The version after the change; `None` for an event of the past.
    version: Option<u32>,
    /// Its stamps.
    at: i64,
    /// Its first delivery may stop at any step.
    crashes: bool,
}

/// A set of lookups and events whose interleavings are tried.
#[derive(Clone, Debug)]
struct Plan {
    processes: usize,
    /// The process and the customer of each.
    lookups: Vec<(usize, &'static str)>,
    events: Vec<Planned>,
    aliases: Vec<(&'static str, &'static str)>,
    initial: InitialEntry,
    chances: Vec<Chance>,
    fills_anyway: bool,
}

const ADA: &str = "ada";
const ALIAS: &str = "alias";

fn update(version: u32) -> Planned {
    let at = i64::from(version);
    Planned { customers: vec![ADA], kind: Kind::Updated, version: Some(version), at, crashes: false }
}

fn plan(lookups: &[(usize, &'static str)], events: &[Planned]) -> Plan {
    Plan {
        processes: lookups.iter().map(|(process, _)| process + 1).max().unwrap(),
        lookups: lookups.to_vec(),
        events: events.to_vec(),
        aliases: vec![],
        initial: InitialEntry::Nothing,
        chances: vec![],
        fills_anyway: false,
    }
}

/// Tries every schedule of a plan; returns how many there were, and the first history that breaks the promise.
fn explore(plan: &Plan) -> (usize, Option<String>) {
    let metrics = Metrics::new();
    let mut schedule = Vec::new();
    let mut runs = 0;
    loop {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (history, widths) = runtime.block_on(World::new(plan, &metrics).run(&schedule));
        runs += 1;
        if let Some(broken) = judge(plan, &history) {
            return (runs, Some(format!("{broken}\n{}", history.steps.join("\n"))));
        }
        schedule.resize(widths.len(), 0);
        // The next schedule in order: the last step that has another choice takes it.
        while let Some(last) = schedule.pop() {
            if last + 1 < widths[schedule.len()] {
                schedule.push(last + 1);
                break;
            }
        }
        if schedule.is_empty() {
            return (runs, None);
        }
    }
}

/// Returns how a history breaks the promise, if it does.
fn judge(plan: &Plan, history: &History) -> Option<String> {
    let newest = plan.events.iter().filter_map(|event| event.version).max().unwrap_or(1);
    let deletes = plan.events.iter().any(|event| event.kind == Kind::Deleted);
    let mut broken = String::new();
    for seen in &history.seen {
        let answer = match &seen.answer {
            Ok(answer) => answer,
            Err(failure) => {
                let _ = writeln!(broken, "lookup {} failed: {failure}", seen.lookup);
                continue;
            }
        };
        for (number, applied) in history.applied.iter().filter(|(_, applied)| **applied < seen.began) {
            let event = &plan.events[*number];
            match (version_and_fetch(answer), event.kind) {
                (None, _) => {}
                (Some(_), Kind::Deleted) => {
                    let _ = writeln!(broken, "lookup {} was served a deleted customer", seen.lookup);
                }
                (Some((version, fetch)), Kind::Created | Kind::Updated | Kind::Merged) => {
                    let older = i64::from(version) < event.at;
                    if older && history.sent[fetch] < *applied {
                        let _ = writeln!(broken, "lookup {} was served what an event had made old", seen.lookup);
                    }
                    if older && !answer.unsettled {
                        let _ = writeln!(broken, "lookup {} got an old profile without a label", seen.lookup);
                    }
                }
            }
        }
    }
    for last in &history.last {
        let at_rest = last.as_ref().map(|answer| match &answer.outcome {
            LookupOutcome::Found(_) => version_and_fetch(answer).map(|(version, _)| version),
            LookupOutcome::Absent | LookupOutcome::Deleted => None,
        });
        let expected = if deletes { None } else { Some(newest) };
        if at_rest != Ok(expected) {
            let _ = writeln!(broken, "at rest a lookup sees {at_rest:?} and not {expected:?}");
        }
    }
    (!broken.is_empty()).then_some(broken)
}

/// Explores a plan, of which every schedule must keep the promise, and prints the number of schedules.
fn holds(name: &str, plan: &Plan) {
    let (runs, broken) = explore(plan);
    println!("{name}: {runs} schedules");
    assert!(runs > 20, "{name}: {runs} schedules are no exploration");
    assert!(broken.is_none(), "{name}, schedule {runs}: {}", broken.unwrap_or_default());
}

#[test]
fn a_cold_lookup_and_an_update() {
    holds("cold", &plan(&[(0, ADA)], &[update(2)]));
}

#[test]
fn two_lookups_of_one_process_and_an_update() {
    holds("one process", &plan(&[(0, ADA), (0, ADA)], &[update(2)]));
}

#[test]
fn two_processes_and_an_update() {
    holds("two processes", &plan(&[(0, ADA), (1, ADA)], &[update(2)]));
}

#[test]
fn a_lookup_and_two_updates_in_any_order() {
    holds("two updates", &plan(&[(0, ADA)], &[update(2), update(3)]));
}

#[test]
fn a_refresh_and_an_update() {
    let stale = Plan { initial: InitialEntry::Stale, ..plan(&[(0, ADA), (1, ADA)], &[update(2)]) };
    holds("refresh", &stale);
}

#[test]
fn a_fresh_record_and_an_update() {
    holds("fresh", &Plan { initial: InitialEntry::Fresh, ..plan(&[(0, ADA), (1, ADA)], &[update(2)]) });
}

#[test]
fn an_eviction_at_any_moment() {
    holds("eviction", &Plan { chances: vec![Chance::Evict], ..plan(&[(0, ADA)], &[update(2)]) });
    let stale = Plan { initial: InitialEntry::Stale, ..plan(&[(0, ADA)], &[update(2)]) };
    holds("eviction under a refresh", &Plan { chances: vec![Chance::Evict], ..stale });
}

#[test]
fn a_lease_that_expires_at_any_moment() {
    let chances = vec![Chance::LeasesRunOut];
    holds("leases run out", &Plan { chances: chances.clone(), ..plan(&[(0, ADA)], &[update(2)]) });
    holds("leases run out under others", &Plan { chances, ..plan(&[(0, ADA), (1, ADA)], &[]) });
}

#[test]
fn reads_that_lag_behind_the_event() {
    holds("lag", &Plan { chances: vec![Chance::ReadsCatchUp], ..plan(&[(0, ADA)], &[update(2)]) });
}

#[test]
fn a_deletion_and_a_late_older_update() {
    let deleted = Planned { kind: Kind::Deleted, version: None, at: 9, ..update(2) };
    let late = Planned { version: None, at: 5, ..update(2) };
    holds("deletion", &plan(&[(0, ADA), (1, ADA)], std::slice::from_ref(&deleted)));
    holds("deletion and a late update", &plan(&[(0, ADA)], &[deleted, late]));
}

#[test]
fn an_alias_and_an_event_for_the_canonical_customer() {
    let aliases = vec![(ALIAS, ADA)];
    holds("alias", &Plan { aliases: aliases.clone(), ..plan(&[(0, ALIAS)], &[update(2)]) });
    let fresh = Plan { initial: InitialEntry::Fresh, aliases, ..plan(&[(0, ALIAS), (1, ADA)], &[update(2)]) };
    holds("pointer", &fresh);
}

#[test]
fn a_consumer_that_crashes_between_two_keys() {
    let both = Planned { customers: vec![ADA, ALIAS], crashes: true, ..update(2) };
    holds("crash", &Plan { initial: InitialEntry::Fresh, ..plan(&[(0, ADA)], &[both]) });
}

/// The exploration can fail: it detects a fill that ignores its lease.
#[test]
fn a_fill_without_its_lease_is_detected() {
    let (runs, broken) = explore(&Plan { fills_anyway: true, ..plan(&[(0, ADA)], &[update(2)]) });
    let broken = broken.expect("a history that breaks the promise");
    println!("found after {runs} schedules:\n{broken}");
    assert!(broken.contains("at rest a lookup sees"), "{broken}");
}
