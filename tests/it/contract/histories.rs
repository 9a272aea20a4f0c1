//! Random histories of one key on every store, compared with a reference.
//!
//! The reference keeps the state of one key in plain fields and follows the contract of the port. It uses the crate's
//! own pure functions for the fence. After every step, answer and state must be equal. A history that differs is
//! shrunk to its shortest form.

use std::collections::BTreeMap;
use std::time::Duration;

use profile_edge::domain::{Digest, EventTime, Kind, Modified, Precision, Redelivery, ReplayId, Stamps, Timestamp};
use profile_edge::store::fence::{Fence, KeyAction, Newest, raise, repeat};
use profile_edge::store::{Applied, Base, Change, Content, Entry, Filled, Lease, LeaseAnswer, Record, Token};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::memcached::{OnOneServer, OnThreeServers};
use super::redis::{Alone, Clustered};
use super::store::{Fixture, InMemory, LIFETIMES, identity};

const LEASE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3_000);

/// A step of a history.
#[derive(Clone, Debug)]
enum Step {
    Lease(Seen),
    /// The granted lease at this index, modulo their number.
    Fill(usize),
    Release(usize),
    Apply(Change),
    Evict,
    Pass(Duration),
}

/// What the reader of a lease request saw.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Nothing,
    /// The current entry, if it has a token.
    Current,
    /// The same, as an entry that is not served any more.
    Dead,
    /// An entry that never existed.
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    let seen = prop_oneof![Just(Seen::Nothing), Just(Seen::Current), Just(Seen::Dead), Just(Seen::Other)];
    // No sum of them is close to a lifetime, since the time of servers also passes by itself.
    let times = [7_000, 21_500, 3_010_000, 3_601_000, 7_201_000];
    prop_oneof![
        4 => seen.prop_map(Step::Lease),
        4 => (0..8usize).prop_map(Step::Fill),
        1 => (0..8usize).prop_map(Step::Release),
        4 => change().prop_map(Step::Apply),
        1 => Just(Step::Evict),
        2 => proptest::sample::select(times.to_vec()).prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let at = proptest::option::of((-2..3i64, any::<bool>()).prop_map(|(step, fine)| {
        if fine {
            EventTime::new(step * 700, Precision::Millis)
        } else {
            EventTime::new(step * 1_000, Precision::Seconds)
        }
    }));
    let modified = proptest::option::of((0..4i64).prop_map(Modified::from_millis));
    let kind = proptest::sample::select(&Kind::ALL[..]);
    let marks = (0..10u8, proptest::option::weighted(0.2, 0..10u8));
    let again = proptest::option::of(proptest::sample::select(vec![
        Redelivery::Restored,
        Redelivery::Redriven,
        Redelivery::Replayed(ReplayId::fresh()),
    ]));
    (marks, kind, at, modified, again, 0..8u8).prop_map(|(marks, kind, at, modified, again, force)| {
        let digest = |number| Digest::from_bytes([number; 16]);
        let (event, of) = (digest(marks.0), marks.1.map(digest));
        Change { event, of, kind, stamps: Stamps { modified, at }, again, force: force == 0 }
    })
}

/// The entry, as the reference knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownEntry {
    Record(Token),
    Lease(Token),
    /// Its token was drawn by the store, and is read from there.
    Tombstone(Option<EventTime>, Timestamp),
}

/// A value and its end.
type Until<T> = Option<(T, Timestamp)>;

/// The expected state of one key.
#[derive(Debug)]
struct Reference {
    now: Timestamp,
    entry: Until<KnownEntry>,
    fence: Until<Fence>,
    lock: Until<Token>,
    seen: BTreeMap<[u8; 16], Timestamp>,
}

impl Reference {
    fn at(now: Timestamp) -> Self {
        Self { now, entry: None, fence: None, lock: None, seen: BTreeMap::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        let now = self.now;
        self.entry = self.entry.filter(|(_, end)| *end > now);
        self.fence = self.fence.take().filter(|(_, end)| *end > now);
        self.lock = self.lock.filter(|(_, end)| *end > now);
        self.seen.retain(|_, end| *end > now);
    }

    /// Answers like `lease`. `current` is the token of the store's entry.
    fn lease(&mut self, seen: Seen, current: Option<Token>, token: Token) -> &'static str {
        let Some((entry, _)) = self.entry else {
            return self.lease_on_nothing(token);
        };
        let asked = matches!(seen, Seen::Current | Seen::Dead) && current.is_some();
        match entry {
            KnownEntry::Lease(_) => "held",
            KnownEntry::Record(_) | KnownEntry::Tombstone(..) if asked && self.lock.is_some() => "held",
            KnownEntry::Record(_) | KnownEntry::Tombstone(..) if asked => {
                if matches!(seen, Seen::Dead) {
                    self.entry = Some((KnownEntry::Lease(token), self.now.plus(LEASE)));
                } else {
                    self.lock = Some((token, self.now.plus(LEASE)));
                }
                "granted"
            }
            KnownEntry::Record(_) | KnownEntry::Tombstone(..) => "changed",
        }
    }

    fn lease_on_nothing(&mut self, token: Token) -> &'static str {
        if let Some((fence, _)) = self.fence.as_ref().filter(|(fence, _)| fence.says_deleted()) {
            let end = fence.raised.plus(LIFETIMES.tombstone_ttl);
            if end > self.now {
                self.entry = Some((KnownEntry::Tombstone(fence.at, fence.raised), end));
                return "changed";
            }
        }
        self.entry = Some((KnownEntry::Lease(token), self.now.plus(LEASE)));
        "granted"
    }

    /// Answers like `fill`. `base` is the token of the record for which the lease is a lock, if there is one.
    fn fill(&mut self, token: Token, base: Option<Token>, current: Option<Token>) -> Filled {
        let locked = self.lock.is_some_and(|(lock, _)| lock == token);
        let may = match base {
            None => self.entry.is_some_and(|(entry, _)| entry == KnownEntry::Lease(token)),
            Some(base) => locked && current == Some(base),
        };
        if may {
            if let Some((fence, _)) = self.fence.as_mut().filter(|(fence, _)| base.is_some() && fence.says_deleted()) {
                (fence.newest, fence.doubt) = (Newest::Contested, true);
            }
            self.entry = Some((KnownEntry::Record(token), self.now.plus(TTL)));
        }
        if locked {
            self.lock = None;
        }
        if may { Filled::Stored } else { Filled::Refused }
    }

    fn release(&mut self, token: Token, base: Option<Token>) {
        if base.is_some() {
            self.lock = self.lock.filter(|(lock, _)| *lock != token);
        } else if self.entry.is_some_and(|(entry, _)| entry == KnownEntry::Lease(token)) {
            self.entry = None;
        }
    }

    fn apply(&mut self, change: &Change) -> Applied {
        if self.seen.contains_key(change.event.as_bytes()) {
            return Applied::Duplicate;
        }
        let current = self.entry.map(|(entry, _)| entry);
        let tombstone = match current {
            Some(KnownEntry::Tombstone(at, _)) => Some(at),
            Some(KnownEntry::Record(_) | KnownEntry::Lease(_)) | None => None,
        };
        let is_remembered = change.of.is_some_and(|of| self.seen.contains_key(of.as_bytes()));
        let fence = self.fence.as_ref().map(|(fence, _)| fence);
        let repeated = fence.filter(|_| is_remembered).and_then(|fence| repeat(fence, change));
        let raised = repeated.unwrap_or_else(|| raise(fence, tombstone, change, self.now));
        let end = self.now.plus(LIFETIMES.fence());
        let end = self.fence.as_ref().map_or(end, |(_, earlier)| end.max(*earlier));
        self.fence = Some((raised.fence, end));
        self.lock = None;
        match raised.place {
            KeyAction::KeepTombstone if tombstone.is_some() => {}
            KeyAction::Clear | KeyAction::KeepTombstone => self.entry = None,
            KeyAction::WriteTombstone(at) => {
                let end = self.now.plus(LIFETIMES.tombstone_ttl);
                self.entry = Some((KnownEntry::Tombstone(at, self.now), end));
            }
        }
        let of = change.of.iter().filter(|_| raised.whole && (is_remembered || !change.force));
        for mark in of.chain(raised.whole.then_some(&change.event)) {
            self.seen.insert(*mark.as_bytes(), self.now.plus(LIFETIMES.dedup_window));
        }
        if raised.outrun {
            return Applied::Outrun;
        }
        Applied::Applied { had_entry: matches!(current, Some(KnownEntry::Record(_) | KnownEntry::Tombstone(..))) }
    }

    fn state(&self) -> String {
        format!(
            "{:?} {:?} {}",
            self.entry.map(|(entry, _)| entry),
            self.fence.as_ref().map(|(f, _)| f),
            self.lock.is_some()
        )
    }
}

/// A granted lease, and the record for which it is a lock.
struct Granted {
    lease: Option<Lease>,
    token: Token,
    base: Option<Token>,
}

/// Runs a history on a store and on the reference, and compares them after each step.
async fn live<F: Fixture>(fixture: &F, name: &str, steps: &[Step]) {
    let identity = identity(&fixture.tenant(), name);
    let (key, store) = (identity.key(), fixture.store());
    let mut reference = Reference::at(fixture.clock().now());
    let mut leases: Vec<Granted> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let entry = store.get(&key).await.unwrap();
        let current = entry.as_ref().and_then(Entry::token);
        let chosen = |index: &usize, leases: &mut Vec<Granted>| {
            let free: Vec<usize> = (0..leases.len()).filter(|n| leases[*n].lease.is_some()).collect();
            let index = *free.get(index % free.len().max(1))?;
            let granted = &mut leases[index];
            Some((granted.lease.take()?, granted.token, granted.base))
        };
        let (answer, expected) = match step {
            Step::Lease(seen) => {
                let token = Token::draw();
                // A lookup verifies the tombstone of a customer; it never takes it for dead.
                let seen = match (seen, &entry) {
                    (Seen::Dead, Some(Entry::Tombstone(_))) => &Seen::Current,
                    (seen, _) => seen,
                };
                let base = match (seen, current) {
                    (Seen::Current, Some(current)) => Base::Token(current),
                    (Seen::Dead, Some(current)) => Base::Dead(current),
                    (Seen::Other, _) => Base::Token(Token::draw()),
                    (Seen::Nothing, _) | (Seen::Current | Seen::Dead, None) => Base::Absent,
                };
                let answer = match store.lease(&key, &base, token, LEASE).await.unwrap() {
                    LeaseAnswer::Granted(lease) => {
                        let beside = lease.witness();
                        let base = (beside != token).then_some(beside);
                        leases.push(Granted { lease: Some(lease), token, base });
                        "granted"
                    }
                    LeaseAnswer::Held { .. } => "held",
                    LeaseAnswer::Changed(_) => "changed",
                };
                (answer.to_owned(), reference.lease(*seen, current, token).to_owned())
            }
            Step::Fill(index) => {
                let Some((lease, token, base)) = chosen(index, &mut leases) else { continue };
                let record = Record {
                    identity: identity.clone(),
                    token,
                    content: Content::Negative,
                    fetched_at: fixture.clock().now(),
                    fetch_cost: Duration::ZERO,
                    ttl: TTL,
                    grace: Duration::ZERO,
                    settled: true,
                    generation: 0,
                };
                let answer = store.fill(lease, record).await.unwrap();
                (format!("{answer:?}"), format!("{:?}", reference.fill(token, base, current)))
            }
            Step::Release(index) => {
                let Some((lease, token, base)) = chosen(index, &mut leases) else { continue };
                store.release(lease).await.unwrap();
                reference.release(token, base);
                (String::new(), String::new())
            }
            Step::Apply(change) => {
                let answer = store.apply(&key, change).await;
                (format!("{:?}", answer.unwrap()), format!("{:?}", reference.apply(change)))
            }
            Step::Evict => {
                fixture.evict(&key).await;
                reference.entry = None;
                (String::new(), String::new())
            }
            Step::Pass(time) => {
                fixture.pass(*time).await;
                reference.pass(*time);
                (String::new(), String::new())
            }
        };
        assert_eq!(answer, expected, "step {number} of {steps:#?}");
        let found = fixture.inspect().inspect(&key).await.unwrap();
        let entry = found.entry.map(|entry| match entry {
            Entry::Record(record) => KnownEntry::Record(record.token),
            Entry::Leased(leased) => KnownEntry::Lease(leased.token),
            Entry::Tombstone(tombstone) => KnownEntry::Tombstone(tombstone.at, tombstone.written_at),
            Entry::Corrupt(_) => panic!("unreadable"),
        });
        let state = format!("{entry:?} {:?} {}", found.fence.as_ref(), found.lock.is_some());
        assert_eq!(state, reference.state(), "after step {number} of {steps:#?}");
    }
    for Granted { lease, .. } in leases {
        if let Some(lease) = lease {
            lease.keep_until_it_expires();
        }
    }
}

/// Runs this many histories on one kind of store.
fn alike<F: Fixture>(histories: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fixture = runtime.block_on(F::new());
    let mut runner = TestRunner::new(Config { cases: histories, failure_persistence: None, ..Config::default() });
    let strategy = (proptest::collection::vec(step(), 1..25), any::<u64>());
    let lived = runner.run(&strategy, |(steps, name)| {
        // A failing history is run again while it is shrunk, each time on its own key.
        let name = format!("customer-{name}-{}", hex::encode(rand::random::<[u8; 8]>()));
        runtime.block_on(live(&fixture, &name, &steps));
        Ok(())
    });
    if let Err(error) = lived {
        panic!("{error}");
    }
}

#[test]
fn histories_on_the_embedded_store_follow_the_rules() {
    alike::<InMemory>(600);
}

#[test]
fn histories_on_redis_follow_the_rules() {
    alike::<Alone>(200);
}

#[test]
fn histories_on_a_cluster_follow_the_rules() {
    alike::<Clustered>(60);
}

#[test]
fn histories_on_memcached_follow_the_rules() {
    alike::<OnOneServer>(200);
}

#[test]
fn histories_on_three_memcached_servers_follow_the_rules() {
    alike::<OnThreeServers>(60);
}
