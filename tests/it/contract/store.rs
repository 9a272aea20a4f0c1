//! The contract of the store port: the rules of the consistency protocol (`src/README.md`), one by one.
//!
//! An adapter is done when it passes: implement [`Fixture`] for it and name it in `store_contract!`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::future::join_all;
use profile_edge::clock::{ManualClock, SharedClock};
use profile_edge::domain::{
    CustomerId, Digest, EventTime, IdentifierMarks, Identity, Key, KeyHasher, Kind, Modified, Precision, ProfileBody,
    Redelivery, ReplayId, Stamps, Timestamp,
};
use profile_edge::store::embedded::{self, Embedded};
use profile_edge::store::fence::{Fence, FenceVerdict};
use profile_edge::store::{
    Applied, Base, Change, ClearMode, Content, Entry, Error, Filled, Found, Inspect, Lease, LeaseAnswer, Lifetimes,
    Record, Store, Token,
};
use tokio::time::{Instant, timeout};

use super::memcached::{OnOneServer, OnOneServerWithMacs, OnThreeServers};
use super::redis::{Alone, AloneWithMacs, BehindSentinel, Clustered};
use super::sealed::Sealing;

// Servers count lifetimes down by their own clock, so none may end while a test takes its next steps.
const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(300);
const DEDUP: Duration = Duration::from_secs(3600);
const TOMBSTONE: Duration = Duration::from_secs(7200);
pub(crate) const LIFETIMES: Lifetimes = Lifetimes { dedup_window: DEDUP, tombstone_ttl: TOMBSTONE };
const SETTLE: Duration = Duration::from_secs(600);
/// By how much stores may take a fence for younger than it is.
const IMPRECISION: Duration = Duration::from_secs(5);
/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store under test whose time and evictions the test controls.
#[async_trait]
pub(crate) trait Fixture: Send + Sync {
    async fn new() -> Self
    where
        Self: Sized;

    /// A tenant that no other test uses.
    fn tenant(&self) -> String {
        "10001".to_owned()
    }

    fn store(&self) -> Arc<dyn Store>;

    fn inspect(&self) -> Arc<dyn Inspect>;

    fn clock(&self) -> SharedClock;

    /// Sets the clock of this process ahead, while no time passes.
    fn set_ahead(&self, by: Duration);

    /// Lets time pass for the store.
    async fn pass(&self, time: Duration);

    /// Removes the entry, as an eviction does.
    async fn evict(&self, key: &Key);
}

pub(crate) struct InMemory {
    store: Arc<Embedded>,
    pub(crate) clock: Arc<ManualClock>,
}

#[async_trait]
impl Fixture for InMemory {
    async fn new() -> Self {
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let config = embedded::Config { max_bytes: ByteSize::mib(16) };
        let store = Arc::new(Embedded::new(&config, LIFETIMES, Arc::clone(&clock) as SharedClock));
        Self { store, clock }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    fn inspect(&self) -> Arc<dyn Inspect> {
        Arc::clone(&self.store) as Arc<dyn Inspect>
    }

    fn clock(&self) -> SharedClock {
        Arc::clone(&self.clock) as SharedClock
    }

    fn set_ahead(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    async fn evict(&self, key: &Key) {
        self.store.evict(key);
    }
}

/// One customer of a store under test.
struct Case<F> {
    fixture: F,
    store: Arc<dyn Store>,
    identity: Identity,
    key: Key,
}

impl<F: Fixture> Case<F> {
    async fn new() -> Self {
        let fixture = F::new().await;
        let identity = identity(&fixture.tenant(), "ada");
        Self { store: fixture.store(), key: identity.key(), identity, fixture }
    }

    fn record(&self, token: Token, content: Content) -> Record {
        Record {
            identity: self.identity.clone(),
            token,
            content,
            fetched_at: self.fixture.clock().now(),
            fetch_cost: Duration::from_millis(150),
            ttl: TTL,
            grace: Duration::ZERO,
            settled: true,
            generation: 0,
        }
    }

    async fn lease_on(&self, base: &Base) -> LeaseAnswer {
        self.store.lease(&self.key, base, Token::draw(), LEASE).await.unwrap()
    }

    async fn leased_on(&self, base: &Base) -> Lease {
        granted(self.lease_on(base).await)
    }

    async fn leased(&self) -> Lease {
        self.leased_on(&Base::Absent).await
    }

    async fn fill(&self, lease: Lease, body: &str) -> Filled {
        let record = self.record(lease.token(), profile(body));
        self.store.fill(lease, record).await.unwrap()
    }

    /// Fills the entry and returns the token of the record.
    async fn filled(&self, body: &str) -> Token {
        let lease = self.leased().await;
        let token = lease.token();
        assert_eq!(self.fill(lease, body).await, Filled::Stored);
        token
    }

    async fn get(&self) -> Option<Entry> {
        self.store.get(&self.key).await.unwrap()
    }

    async fn body(&self) -> Option<String> {
        match self.get().await? {
            Entry::Record(Record { content: Content::Found(found), .. }) => {
                Some(String::from_utf8(found.body.expose().to_vec()).unwrap())
            }
            other => panic!("not a profile: {other:?}"),
        }
    }

    async fn fence(&self) -> Option<Fence> {
        self.fixture.inspect().inspect(&self.key).await.unwrap().fence
    }

    async fn is_tombstone(&self) -> bool {
        matches!(self.get().await, Some(Entry::Tombstone(_)))
    }

    async fn apply(&self, change: Change) -> Applied {
        self.store.apply(&self.key, &change).await.unwrap()
    }
}

pub(crate) fn identity(tenant: &str, customer: &str) -> Identity {
    let customer: CustomerId = customer.parse().unwrap();
    KeyHasher::Sha256.identify(&tenant.parse().unwrap(), &customer)
}

fn profile(body: &str) -> Content {
    let body = ProfileBody::new(Bytes::copy_from_slice(body.as_bytes()));
    Content::Found(Found { validator: body.validator(), body, modified: None, identifiers: IdentifierMarks::default() })
}

fn granted(answer: LeaseAnswer) -> Lease {
    match answer {
        LeaseAnswer::Granted(lease) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

fn event(kind: Kind) -> Change {
    let event = Digest::from_bytes(rand::random());
    Change { event, of: None, kind, stamps: Stamps::default(), again: None, force: false }
}

fn at(kind: Kind, millis: i64) -> Change {
    let at = Some(EventTime::new(millis, Precision::Millis));
    Change { stamps: Stamps { modified: None, at }, ..event(kind) }
}

fn modified(kind: Kind, millis: i64) -> Change {
    let modified = Modified::from_millis(millis);
    Change { stamps: Stamps { modified: Some(modified), at: Some(EventTime::from_modified(modified)) }, ..event(kind) }
}

/// A replay of an event by an operator.
fn replay(of: Change) -> Change {
    Change {
        event: event(of.kind).event,
        of: Some(of.event),
        again: Some(Redelivery::Replayed(ReplayId::fresh())),
        ..of
    }
}

fn applied(had_entry: bool) -> Applied {
    Applied::Applied { had_entry }
}

macro_rules! store_contract {
    ($($adapter:ident: $fixture:ty),+ => $cases:tt) => {
        $(mod $adapter {
            use super::*;
            store_contract!(@cases $fixture, $cases);
        })+
    };
    (@cases $fixture:ty, [$($case:ident),+ $(,)?]) => {
        $(#[tokio::test]
        async fn $case() {
            super::$case(Case::<$fixture>::new().await).await;
        })+
    };
}

store_contract!(
    in_memory: InMemory, in_redis: Alone, in_a_cluster: Clustered, behind_a_sentinel: BehindSentinel,
    in_memcached: OnOneServer, on_three_memcached_servers: OnThreeServers,
    sealed_in_memory: Sealing<InMemory>, sealed_in_redis: Sealing<AloneWithMacs>,
    sealed_in_memcached: Sealing<OnOneServerWithMacs> => [
    a_fill_with_its_own_lease_is_stored,
    only_one_of_many_readers_gets_the_lease,
    a_late_fill_is_refused_after_an_event,
    a_late_fill_does_not_replace_a_tombstone,
    a_late_fill_is_refused_after_an_eviction,
    a_late_fill_is_refused_after_another_lease_was_granted,
    a_released_lease_is_free_for_the_next,
    a_refresh_leaves_the_record_in_place_until_it_fills,
    a_refresh_is_refused_after_an_event_and_an_identical_fill,
    a_refresh_of_a_removed_record_leases_the_key,
    a_lease_replaces_a_dead_record_that_is_not_being_refreshed,
    only_one_refresh_of_a_record_runs,
    a_lease_on_a_replaced_entry_returns_the_current_one,
    a_fill_for_another_customer_is_rejected,
    an_event_applied_twice_is_a_duplicate_and_changes_nothing,
    an_event_is_remembered_for_the_dedup_window_only,
    an_outrun_event_still_deletes_the_entry,
    a_deletion_stops_fills_until_a_later_event,
    an_older_or_equal_update_leaves_a_tombstone,
    an_outrun_deletion_writes_no_tombstone,
    a_deletion_and_a_creation_at_one_time_leave_doubt,
    without_a_time_only_a_creation_removes_a_tombstone,
    force_removes_a_tombstone,
    a_replayed_deletion_without_a_fence_writes_no_tombstone,
    a_replay_of_a_known_event_deletes_again_without_doubt,
    a_replay_restores_no_deleted_customer_and_deletes_no_later_one,
    a_redelivery_does_not_make_the_first_delivery_a_duplicate,
    a_redelivered_deletion_does_not_hide_an_existing_customer,
    an_evicted_tombstone_is_written_again,
    a_verified_profile_replaces_its_tombstone_for_good,
    a_verification_is_refused_after_another_event,
    a_tombstone_lasts_for_its_ttl,
    a_lease_judges_profiles_by_the_fence,
    a_fence_is_no_older_than_its_store_knows,
    a_fill_an_event_and_a_release_wake_a_waiter,
    a_waiter_stops_at_its_deadline_and_without_a_lease,
    a_record_expires_on_time,
    negative_answers_and_pointers_are_stored,
    entries_read_together_are_those_read_one_by_one,
    tenants_are_separate,
    an_inspection_shows_no_body,
    an_inspection_shows_every_kind_of_entry,
    each_clear_raises_the_generations_of_its_tenant,
    a_record_keeps_its_generation,
]);

async fn a_fill_with_its_own_lease_is_stored<F: Fixture>(case: Case<F>) {
    assert!(case.get().await.is_none());
    let lease = case.leased().await;
    assert!(matches!(case.get().await, Some(Entry::Leased(leased)) if leased.token == lease.token()));
    assert_eq!(case.fill(lease, "{}").await, Filled::Stored);
    assert_eq!(case.body().await.as_deref(), Some("{}"));
}

async fn only_one_of_many_readers_gets_the_lease<F: Fixture>(case: Case<F>) {
    let answers = join_all((0..64).map(|_| case.lease_on(&Base::Absent))).await;
    let (mut leases, mut held) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            LeaseAnswer::Granted(lease) => leases.push(lease),
            LeaseAnswer::Held { token, seen, .. } => held.push((token, seen)),
            LeaseAnswer::Changed(entry) => panic!("changed: {entry:?}"),
        }
    }
    assert_eq!((leases.len(), held.len()), (1, 63));
    let lease = leases.pop().unwrap();
    assert!(held.iter().all(|(token, seen)| *token == lease.token() && *seen == lease.witness()));
    case.store.release(lease).await.unwrap();
}

async fn a_late_fill_is_refused_after_an_event<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    assert_eq!(case.apply(event(Kind::Updated)).await, applied(false));
    assert_eq!(case.fill(lease, "{\"old\":1}").await, Filled::Refused);
    assert!(case.get().await.is_none());
}

async fn a_late_fill_does_not_replace_a_tombstone<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    case.apply(event(Kind::Deleted)).await;
    assert_eq!(case.fill(lease, "{}").await, Filled::Refused);
    assert!(case.is_tombstone().await);
}

async fn a_late_fill_is_refused_after_an_eviction<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    case.fixture.evict(&case.key).await;
    assert_eq!(case.fill(lease, "{}").await, Filled::Refused);
    assert!(case.get().await.is_none());
}

async fn a_late_fill_is_refused_after_another_lease_was_granted<F: Fixture>(case: Case<F>) {
    let late = case.leased().await;
    case.fixture.pass(LEASE + Duration::from_millis(1)).await;
    let next = case.leased().await;
    assert_eq!(case.fill(late, "{\"late\":1}").await, Filled::Refused);
    assert_eq!(case.fill(next, "{}").await, Filled::Stored);
    assert_eq!(case.body().await.as_deref(), Some("{}"));
}

async fn a_released_lease_is_free_for_the_next<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    case.store.release(lease).await.unwrap();
    assert!(case.get().await.is_none());
    let token = case.filled("{}").await;
    let refresh = case.leased_on(&Base::Token(token)).await;
    case.store.release(refresh).await.unwrap();
    let again = case.leased_on(&Base::Token(token)).await;
    assert_eq!(case.fill(again, "{\"n\":2}").await, Filled::Stored);
}

async fn a_refresh_leaves_the_record_in_place_until_it_fills<F: Fixture>(case: Case<F>) {
    let token = case.filled("{\"n\":1}").await;
    let refresh = case.leased_on(&Base::Token(token)).await;
    assert_eq!(refresh.witness(), token);
    assert_eq!(case.body().await.as_deref(), Some("{\"n\":1}"));
    assert_eq!(case.fill(refresh, "{\"n\":2}").await, Filled::Stored);
    assert_eq!(case.body().await.as_deref(), Some("{\"n\":2}"));
}

async fn a_refresh_is_refused_after_an_event_and_an_identical_fill<F: Fixture>(case: Case<F>) {
    let token = case.filled("{\"n\":1}").await;
    let refresh = case.leased_on(&Base::Token(token)).await;
    assert_eq!(case.apply(event(Kind::Updated)).await, applied(true));
    case.filled("{\"n\":1}").await;
    assert_eq!(case.fill(refresh, "{\"n\":0}").await, Filled::Refused);
    assert_eq!(case.body().await.as_deref(), Some("{\"n\":1}"));
}

async fn a_refresh_of_a_removed_record_leases_the_key<F: Fixture>(case: Case<F>) {
    let token = case.filled("{}").await;
    case.fixture.evict(&case.key).await;
    let lease = case.leased_on(&Base::Token(token)).await;
    assert_eq!(lease.witness(), lease.token());
    assert_eq!(case.fill(lease, "{}").await, Filled::Stored);
}

async fn a_lease_replaces_a_dead_record_that_is_not_being_refreshed<F: Fixture>(case: Case<F>) {
    let token = case.filled("{\"n\":1}").await;
    let refresh = case.leased_on(&Base::Token(token)).await;
    assert!(matches!(case.lease_on(&Base::Dead(token)).await, LeaseAnswer::Held { seen, .. } if seen == token));
    case.store.release(refresh).await.unwrap();
    let lease = case.leased_on(&Base::Dead(token)).await;
    assert_eq!(lease.witness(), lease.token());
    assert!(matches!(case.get().await, Some(Entry::Leased(leased)) if leased.token == lease.token()));
    // The record that it replaced may expire meanwhile: the fill does not depend on it.
    assert_eq!(case.fill(lease, "{\"n\":2}").await, Filled::Stored);
    assert_eq!(case.body().await.as_deref(), Some("{\"n\":2}"));
}

async fn only_one_refresh_of_a_record_runs<F: Fixture>(case: Case<F>) {
    let token = case.filled("{}").await;
    let refresh = case.leased_on(&Base::Token(token)).await;
    match case.lease_on(&Base::Token(token)).await {
        LeaseAnswer::Held { token: holder, seen, remaining } => {
            assert_eq!((holder, seen), (refresh.token(), token));
            assert!(remaining <= LEASE);
        }
        other => panic!("not held: {other:?}"),
    }
    case.fixture.pass(LEASE + Duration::from_millis(1)).await;
    let next = case.leased_on(&Base::Token(token)).await;
    assert_eq!(case.fill(refresh, "{\"late\":1}").await, Filled::Refused);
    assert_eq!(case.fill(next, "{\"n\":2}").await, Filled::Stored);
    assert_eq!(case.body().await.as_deref(), Some("{\"n\":2}"));
}

async fn a_lease_on_a_replaced_entry_returns_the_current_one<F: Fixture>(case: Case<F>) {
    let token = case.filled("{}").await;
    let other = Token::draw();
    for base in [Base::Absent, Base::Token(other), Base::Dead(other), Base::Corrupt(Bytes::from_static(b"x"))] {
        match case.lease_on(&base).await {
            LeaseAnswer::Changed(entry) => assert_eq!(entry.token(), Some(token)),
            other => panic!("not changed: {other:?}"),
        }
    }
}

async fn a_fill_for_another_customer_is_rejected<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    let mut record = case.record(lease.token(), profile("{}"));
    record.identity = identity(&case.fixture.tenant(), "grace");
    assert!(matches!(case.store.fill(lease, record).await, Err(Error::Rejected { .. })));
    assert!(matches!(case.get().await, None | Some(Entry::Leased(_))));
}

async fn an_event_applied_twice_is_a_duplicate_and_changes_nothing<F: Fixture>(case: Case<F>) {
    let change = event(Kind::Updated);
    assert_eq!(case.apply(change).await, applied(false));
    case.filled("{}").await;
    assert_eq!(case.apply(change).await, Applied::Duplicate);
    assert_eq!(case.body().await.as_deref(), Some("{}"));
}

async fn an_event_is_remembered_for_the_dedup_window_only<F: Fixture>(case: Case<F>) {
    let change = event(Kind::Updated);
    case.apply(change).await;
    case.fixture.pass(DEDUP - Duration::from_secs(60)).await;
    assert_eq!(case.apply(change).await, Applied::Duplicate);
    case.fixture.pass(Duration::from_secs(120)).await;
    assert_eq!(case.apply(change).await, Applied::Applied { had_entry: false });
}

async fn an_outrun_event_still_deletes_the_entry<F: Fixture>(case: Case<F>) {
    case.apply(modified(Kind::Updated, 2_000)).await;
    case.filled("{}").await;
    assert_eq!(case.apply(modified(Kind::Updated, 1_000)).await, Applied::Outrun);
    assert!(case.get().await.is_none());
}

async fn a_deletion_stops_fills_until_a_later_event<F: Fixture>(case: Case<F>) {
    case.filled("{}").await;
    assert_eq!(case.apply(at(Kind::Deleted, 10)).await, applied(true));
    assert!(matches!(case.lease_on(&Base::Absent).await, LeaseAnswer::Changed(Entry::Tombstone(_))));
    case.apply(at(Kind::Updated, 11)).await;
    assert!(case.get().await.is_none());
    case.filled("{}").await;
}

async fn an_older_or_equal_update_leaves_a_tombstone<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Deleted, 10)).await;
    assert_eq!(case.apply(at(Kind::Updated, 9)).await, Applied::Outrun);
    assert!(case.is_tombstone().await);
    case.apply(at(Kind::Merged, 10)).await;
    assert!(case.is_tombstone().await);
    case.apply(at(Kind::Created, 9)).await;
    assert!(case.is_tombstone().await);
}

async fn an_outrun_deletion_writes_no_tombstone<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Updated, 11)).await;
    case.filled("{}").await;
    assert_eq!(case.apply(at(Kind::Deleted, 10)).await, Applied::Outrun);
    assert!(case.get().await.is_none());
    assert!(case.leased().await.fence().unwrap().doubt);
}

async fn a_deletion_and_a_creation_at_one_time_leave_doubt<F: Fixture>(case: Case<F>) {
    for (first, second) in [(Kind::Deleted, Kind::Created), (Kind::Created, Kind::Deleted)] {
        let case = Case::<F>::new().await;
        case.apply(at(first, 10)).await;
        case.apply(at(second, 10)).await;
        assert!(case.get().await.is_none(), "{first:?} then {second:?}");
        let lease = case.leased().await;
        assert!(lease.fence().unwrap().doubt);
        case.store.release(lease).await.unwrap();
    }
    drop(case);
}

async fn without_a_time_only_a_creation_removes_a_tombstone<F: Fixture>(case: Case<F>) {
    case.apply(event(Kind::Deleted)).await;
    case.apply(event(Kind::Updated)).await;
    assert!(case.is_tombstone().await);
    case.apply(event(Kind::Created)).await;
    assert!(case.get().await.is_none());
    case.filled("{}").await;
}

async fn force_removes_a_tombstone<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Deleted, 10)).await;
    case.apply(Change { force: true, ..event(Kind::Updated) }).await;
    assert!(case.get().await.is_none());
    case.filled("{}").await;
}

async fn a_replayed_deletion_without_a_fence_writes_no_tombstone<F: Fixture>(case: Case<F>) {
    case.filled("{}").await;
    case.apply(Change { again: Some(Redelivery::Restored), ..at(Kind::Deleted, 10) }).await;
    assert!(case.get().await.is_none());
    case.filled("{}").await;
}

async fn a_replay_of_a_known_event_deletes_again_without_doubt<F: Fixture>(case: Case<F>) {
    let change = modified(Kind::Updated, 2_000);
    case.apply(change).await;
    case.filled("{}").await;
    let before = case.fence().await;
    let replay = replay(change);
    assert_eq!(case.apply(replay).await, applied(true));
    assert!(case.get().await.is_none());
    assert_eq!(case.fence().await, before);
    case.filled("{}").await;
    assert_eq!(case.apply(replay).await, Applied::Duplicate);
    assert_eq!(case.body().await.as_deref(), Some("{}"));
}

async fn a_replay_restores_no_deleted_customer_and_deletes_no_later_one<F: Fixture>(case: Case<F>) {
    // Without a time only the order of arrival shows that the deletion was later.
    let (created, deleted) = (event(Kind::Created), event(Kind::Deleted));
    case.apply(created).await;
    case.apply(deleted).await;
    case.apply(replay(created)).await;
    assert!(case.is_tombstone().await);
    case.fixture.evict(&case.key).await;
    case.apply(replay(deleted)).await;
    assert!(case.is_tombstone().await);
    let again = event(Kind::Created);
    case.apply(again).await;
    case.apply(replay(deleted)).await;
    assert!(case.get().await.is_none());
    case.filled("{}").await;
}

async fn a_redelivery_does_not_make_the_first_delivery_a_duplicate<F: Fixture>(case: Case<F>) {
    for (millis, again) in
        [(10, Redelivery::Restored), (20, Redelivery::Redriven), (30, Redelivery::Replayed(ReplayId::fresh()))]
    {
        let deletion = at(Kind::Deleted, millis);
        let copy = match again {
            Redelivery::Replayed(_) => replay(deletion),
            Redelivery::Restored | Redelivery::Redriven => Change { again: Some(again), ..deletion },
        };
        if again != Redelivery::Restored {
            case.apply(at(Kind::Created, millis - 5)).await;
        }
        case.filled("{}").await;
        case.apply(copy).await;
        assert!(case.get().await.is_none(), "{again:?} deletes the entry and writes no tombstone");
        case.apply(deletion).await;
        assert!(case.is_tombstone().await, "{again:?}");
        assert_eq!(case.apply(deletion).await, Applied::Duplicate);
    }
    let forced = Change { force: true, ..event(Kind::Updated) };
    case.apply(replay(forced)).await;
    assert!(case.is_tombstone().await, "a redelivery of a forced event has no effect");
    case.apply(forced).await;
    assert!(case.get().await.is_none());
}

async fn a_redelivered_deletion_does_not_hide_an_existing_customer<F: Fixture>(case: Case<F>) {
    let again = |of: Change, again| match again {
        Redelivery::Replayed(_) => replay(of),
        Redelivery::Restored | Redelivery::Redriven => Change { again: Some(again), ..of },
    };
    for why in [Redelivery::Restored, Redelivery::Redriven, Redelivery::Replayed(ReplayId::fresh())] {
        // Without a time, and twice, as with two consumers.
        let (deleted, created) = (event(Kind::Deleted), event(Kind::Created));
        for change in [deleted, created, deleted, created] {
            case.apply(again(change, why)).await;
            assert!(!case.is_tombstone().await, "{why:?}");
        }
        // After a creation that was applied first, its first delivery has no effect.
        case.apply(event(Kind::Deleted)).await;
        let late = event(Kind::Created);
        case.apply(again(late, why)).await;
        case.apply(late).await;
        assert!(case.get().await.is_none(), "{why:?}");
    }
}

async fn an_evicted_tombstone_is_written_again<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Deleted, 10)).await;
    case.fixture.evict(&case.key).await;
    match case.lease_on(&Base::Absent).await {
        LeaseAnswer::Changed(Entry::Tombstone(tombstone)) => {
            assert_eq!(tombstone.at, Some(EventTime::new(10, Precision::Millis)));
        }
        other => panic!("no tombstone: {other:?}"),
    }
    assert!(case.is_tombstone().await);
}

async fn a_verified_profile_replaces_its_tombstone_for_good<F: Fixture>(case: Case<F>) {
    let deletion = at(Kind::Deleted, 10);
    case.apply(deletion).await;
    let tombstone = case.get().await.unwrap().token().unwrap();
    let verify = case.leased_on(&Base::Token(tombstone)).await;
    assert!(case.is_tombstone().await);
    assert_eq!(case.fill(verify, "{\"again\":1}").await, Filled::Stored);
    case.fixture.evict(&case.key).await;
    case.filled("{\"again\":2}").await;
    assert_eq!(case.apply(deletion).await, Applied::Duplicate);
    assert_eq!(case.body().await.as_deref(), Some("{\"again\":2}"));
}

async fn a_verification_is_refused_after_another_event<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Deleted, 10)).await;
    let tombstone = case.get().await.unwrap().token().unwrap();
    let verify = case.leased_on(&Base::Token(tombstone)).await;
    case.apply(at(Kind::Updated, 9)).await;
    assert_eq!(case.fill(verify, "{}").await, Filled::Refused);
    assert!(case.is_tombstone().await);
}

async fn a_tombstone_lasts_for_its_ttl<F: Fixture>(case: Case<F>) {
    case.apply(at(Kind::Deleted, 10)).await;
    case.fixture.pass(TOMBSTONE - Duration::from_secs(60)).await;
    assert!(case.is_tombstone().await);
    case.fixture.pass(Duration::from_secs(120)).await;
    case.filled("{}").await;
}

async fn a_lease_judges_profiles_by_the_fence<F: Fixture>(case: Case<F>) {
    case.apply(modified(Kind::Updated, 2_000)).await;
    let lease = case.leased().await;
    let judge = |millis: Option<i64>| lease.judge(millis.map(Modified::from_millis), SETTLE);
    assert_eq!(judge(Some(2_000)), FenceVerdict::CaughtUp);
    assert!(matches!(judge(Some(1_999)), FenceVerdict::Unsettled { .. }));
    assert!(matches!(judge(None), FenceVerdict::Unsettled { .. }));
    case.store.release(lease).await.unwrap();
    case.fixture.pass(SETTLE + IMPRECISION).await;
    let lease = case.leased().await;
    assert_eq!(lease.judge(None, SETTLE), FenceVerdict::CaughtUp);
    case.store.release(lease).await.unwrap();
}

/// The clock of the consumer that raised it is behind that of the lookup.
async fn a_fence_is_no_older_than_its_store_knows<F: Fixture>(case: Case<F>) {
    case.apply(event(Kind::Updated)).await;
    case.fixture.set_ahead(SETTLE);
    let lease = case.leased().await;
    let verdict = lease.judge(None, SETTLE);
    assert!(matches!(verdict, FenceVerdict::Unsettled { age } if age < SETTLE / 2), "{verdict:?}");
    case.store.release(lease).await.unwrap();
}

async fn a_fill_an_event_and_a_release_wake_a_waiter<F: Fixture>(case: Case<F>) {
    for wake in 0..3 {
        let case = Case::<F>::new().await;
        let lease = case.leased().await;
        let (store, key, seen) = (Arc::clone(&case.store), case.key.clone(), lease.witness());
        let far = Instant::now() + PATIENCE * 2;
        let waiter = tokio::spawn(async move { store.wait(&key, seen, far).await });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        match wake {
            0 => drop(case.fill(lease, "{}").await),
            1 => {
                case.apply(event(Kind::Updated)).await;
                case.store.release(lease).await.unwrap();
            }
            _ => case.store.release(lease).await.unwrap(),
        }
        timeout(PATIENCE, waiter).await.expect("the waiter is woken").unwrap();
    }
    drop(case);
}

async fn a_waiter_stops_at_its_deadline_and_without_a_lease<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    let deadline = Instant::now() + Duration::from_millis(20);
    timeout(PATIENCE, case.store.wait(&case.key, lease.witness(), deadline)).await.unwrap();
    assert!(Instant::now() >= deadline);
    let far = Instant::now() + PATIENCE * 2;
    timeout(PATIENCE, case.store.wait(&case.key, Token::draw(), far)).await.expect("k holds something else");
    let token = lease.token();
    assert_eq!(case.fill(lease, "{}").await, Filled::Stored);
    timeout(PATIENCE, case.store.wait(&case.key, token, far)).await.expect("nobody refreshes it");
}

async fn a_record_expires_on_time<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    let mut record = case.record(lease.token(), profile("{}"));
    (record.ttl, record.grace) = (TTL, TTL / 2);
    assert_eq!(case.store.fill(lease, record).await.unwrap(), Filled::Stored);
    case.fixture.pass(TTL * 3 / 2 - Duration::from_secs(60)).await;
    assert!(case.get().await.is_some());
    case.fixture.pass(Duration::from_secs(120)).await;
    assert!(case.get().await.is_none());
}

async fn negative_answers_and_pointers_are_stored<F: Fixture>(case: Case<F>) {
    let lease = case.leased().await;
    let record = case.record(lease.token(), Content::Negative);
    assert_eq!(case.store.fill(lease, record).await.unwrap(), Filled::Stored);
    let Some(Entry::Record(negative)) = case.get().await else { panic!("no record") };
    assert!(matches!(negative.content, Content::Negative));
    assert_eq!(negative.identity, case.identity);

    let canonical = identity(&case.fixture.tenant(), "canonical");
    let lease = case.leased_on(&Base::Token(negative.token)).await;
    let record = case.record(lease.token(), Content::Pointer(canonical.clone()));
    assert_eq!(case.store.fill(lease, record).await.unwrap(), Filled::Stored);
    let Some(Entry::Record(pointer)) = case.get().await else { panic!("no record") };
    assert!(matches!(pointer.content, Content::Pointer(to) if to == canonical));
}

async fn entries_read_together_are_those_read_one_by_one<F: Fixture>(case: Case<F>) {
    case.filled("{\"firstName\":\"Ada\"}").await;
    let [leased, deleted, absent] =
        ["leased", "deleted", "absent"].map(|id| identity(&case.fixture.tenant(), id).key());
    let _lease = granted(case.store.lease(&leased, &Base::Absent, Token::draw(), LEASE).await.unwrap());
    case.store.apply(&deleted, &event(Kind::Deleted)).await.unwrap();
    let keys = [deleted, case.key.clone(), absent, leased];
    // A store that needs several requests reads one by one.
    let Some(together) = case.store.get_together(&keys).await else { return };
    assert_eq!(together.len(), keys.len());
    for (key, entry) in keys.iter().zip(together) {
        let (entry, alone) = (entry.unwrap(), case.store.get(key).await.unwrap());
        assert_eq!(format!("{entry:?}"), format!("{alone:?}"), "{key}");
        if *key == case.key {
            let Some(Entry::Record(Record { content: Content::Found(found), .. })) = entry else { panic!("no record") };
            assert_eq!(found.body.expose(), "{\"firstName\":\"Ada\"}");
        }
    }
}

async fn tenants_are_separate<F: Fixture>(case: Case<F>) {
    case.filled("{}").await;
    let other = identity(&format!("{}-other", case.fixture.tenant()), "ada").key();
    assert!(case.store.get(&other).await.unwrap().is_none());
    case.store.apply(&other, &event(Kind::Deleted)).await.unwrap();
    assert_eq!(case.body().await.as_deref(), Some("{}"));
}

async fn an_inspection_shows_no_body<F: Fixture>(case: Case<F>) {
    case.apply(modified(Kind::Updated, 5)).await;
    case.filled("{\"firstName\":\"Ada\"}").await;
    let found = case.fixture.inspect().inspect(&case.key).await.unwrap();
    let Some(Entry::Record(record)) = found.entry else { panic!("no record") };
    assert!(matches!(record.content, Content::Found(found) if found.body.is_empty()));
    assert!(found.remaining.unwrap() <= TTL);
    assert_eq!(found.fence.unwrap().modified, Some(Modified::from_millis(5)));
    assert!(found.lock.is_none());
}

async fn an_inspection_shows_every_kind_of_entry<F: Fixture>(case: Case<F>) {
    let shown = async || case.fixture.inspect().inspect(&case.key).await.unwrap().entry;
    assert!(shown().await.is_none());
    let lease = case.leased().await;
    let token = lease.token();
    assert!(matches!(shown().await, Some(Entry::Leased(leased)) if leased.token == token));
    for content in [profile("{}"), Content::Negative, Content::Pointer(case.identity.clone())] {
        case.fixture.evict(&case.key).await;
        let lease = case.leased().await;
        let record = case.record(lease.token(), content.clone());
        assert_eq!(case.store.fill(lease, record).await.unwrap(), Filled::Stored);
        let Some(Entry::Record(record)) = shown().await else { panic!("{content:?}") };
        assert_eq!(std::mem::discriminant(&record.content), std::mem::discriminant(&content));
    }
    case.apply(event(Kind::Deleted)).await;
    assert!(matches!(shown().await, Some(Entry::Tombstone(_))));
}

async fn each_clear_raises_the_generations_of_its_tenant<F: Fixture>(case: Case<F>) {
    let (tenant, other) = (case.identity.tenant(), "other".parse().unwrap());
    let generations = async || case.fixture.inspect().generations().await.unwrap().get(tenant).copied();
    let clear = async |mode| case.fixture.inspect().clear(tenant, mode).await.unwrap();
    assert_eq!(generations().await, None);
    clear(ClearMode::Soft).await;
    let first = generations().await.unwrap();
    assert!(first.soft > 0 && first.hard == 0, "{first:?}");
    clear(ClearMode::Hard).await;
    let second = generations().await.unwrap();
    assert!(second.soft > first.soft && second.hard == second.soft, "{second:?}");
    clear(ClearMode::Soft).await;
    let third = generations().await.unwrap();
    assert!(third.soft > second.soft && third.hard == second.hard, "{third:?}");
    case.fixture.inspect().clear(&other, ClearMode::Hard).await.unwrap();
    assert_eq!(generations().await, Some(third));
}

async fn a_record_keeps_its_generation<F: Fixture>(case: Case<F>) {
    for (content, generation) in
        [(profile("{}"), 1), (Content::Negative, u64::MAX), (Content::Pointer(case.identity.clone()), 0)]
    {
        case.fixture.evict(&case.key).await;
        let lease = case.leased().await;
        let record = Record { generation, ..case.record(lease.token(), content) };
        assert_eq!(case.store.fill(lease, record).await.unwrap(), Filled::Stored);
        let Some(Entry::Record(record)) = case.store.get(&case.key).await.unwrap() else { panic!("it is stored") };
        assert_eq!(record.generation, generation);
    }
}
