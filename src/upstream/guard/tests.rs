use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::upstream::breaker::{FIRST_PERIOD, STREAK};

const LATENCY: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Gives every fetch the configured answer after [`LATENCY`].
#[derive(Debug)]
struct FakeUpstream {
    answer: Mutex<Result<Fetched, Error>>,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

impl FakeUpstream {
    fn answering(answer: Result<Fetched, Error>) -> Arc<Self> {
        let (calls, in_flight, most_in_flight) = Default::default();
        Arc::new(Self { answer: Mutex::new(answer), calls, in_flight, most_in_flight })
    }

    fn now_answers(&self, answer: Result<Fetched, Error>) {
        *self.answer.lock() = answer;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Upstream for Arc<FakeUpstream> {
    async fn fetch(&self, _: &TenantId, _: &CustomerId, _: &Requester, _: Instant) -> Result<Fetched, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        tokio::time::sleep(LATENCY).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.answer.lock().clone()
    }

    async fn fetch_expanded(
        &self,
        tenant: &TenantId,
        customer: &CustomerId,
        _: &Expand,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.fetch(tenant, customer, requester, deadline).await
    }

    async fn fetch_many(
        &self,
        tenant: &TenantId,
        customers: &[CustomerId],
        requester: &Requester,
        deadline: Instant,
    ) -> Result<FetchedMany, Error> {
        let one = self.fetch(tenant, &customers[0], requester, deadline).await?;
        Ok(customers.iter().map(|_| Ok(one.clone())).collect())
    }

    async fn search(
        &self,
        tenant: &TenantId,
        _: &Search,
        requester: &Requester,
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        // A valid id that no test uses.
        self.fetch(tenant, &"search".parse().unwrap(), requester, deadline).await
    }
}

struct Guarded {
    guard: Guard<Arc<FakeUpstream>>,
    fake: Arc<FakeUpstream>,
    metrics: Arc<Metrics>,
}

fn guarded(answer: Result<Fetched, Error>, max_in_flight: usize, per_minute: u32) -> Guarded {
    let (fake, metrics) = (FakeUpstream::answering(answer), Metrics::new());
    let limits = UpstreamLimits { timeout: TIMEOUT, max_in_flight, per_minute, is_default_path: true };
    let gauge = BreakerGauge::for_tenants(1, &metrics.upstream_breaker_state).next().unwrap();
    let guard = Guard::new(Arc::clone(&fake), tenant(), limits, gauge, Arc::clone(&metrics));
    Guarded { guard, fake, metrics }
}

fn requester() -> Requester {
    Requester::Caller("architect".into())
}

fn tenant() -> TenantId {
    "10001".parse().unwrap()
}

impl Guarded {
    async fn fetch_within(&self, time: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + time;
        self.guard.fetch(&tenant(), &"c".parse().unwrap(), &requester(), deadline).await.map(drop)
    }

    async fn fetch(&self) -> Result<(), Error> {
        self.fetch_within(TIMEOUT).await
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|shown| shown == format!("profile_edge_{line}"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_fails_at_once_with_retry_after() {
    let it = guarded(Ok(Fetched::Absent), 64, 60);
    assert!(join_all((0..60).map(|_| it.fetch())).await.iter().all(Result::is_ok));

    let began = Instant::now();
    let Err(Error::BudgetSpent { retry_after }) = it.fetch().await else { panic!("the budget is not spent") };
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(it.fake.calls(), 60);
    assert!(it.shows("upstream_requests_total{outcome=\"budget_spent\"} 1"));

    tokio::time::advance(retry_after).await;
    assert_eq!(it.fetch().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_limited_and_waiting_ends_at_the_deadline() {
    let it = guarded(Ok(Fetched::Absent), 3, 1000);
    let answers = join_all((0..12).map(|_| it.fetch_within(LATENCY * 3 + LATENCY / 2))).await;
    assert_eq!(it.fake.most_in_flight.load(Ordering::SeqCst), 3);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 9);
    assert_eq!(answers.iter().filter(|answer| **answer == Err(Error::Timeout(None))).count(), 3);
    assert_eq!(it.fetch().await, Ok(()), "all permits are free again");
}

#[tokio::test(start_paused = true)]
async fn temporary_failures_are_tried_three_times() {
    for error in [Error::Failed { status: 500, retry_after: None }, Error::Unreachable(None)] {
        let it = guarded(Err(error.clone()), 1, 100);
        assert_eq!(it.fetch().await, Err(error));
        assert_eq!(it.fake.calls(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_tried_once() {
    for error in
        [Error::Unusable { reason: "" }, Error::Denied { status: 403 }, Error::Throttled { retry_after: LATENCY }]
    {
        let it = guarded(Err(error.clone()), 1, 100);
        assert_eq!(it.fetch().await, Err(error));
        assert_eq!(it.fake.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_retry_without_enough_time_left() {
    let it = guarded(Err(Error::Unreachable(None)), 1, 100);
    let began = Instant::now();
    // The shortest wait is 25 ms and the attempt takes 100: 224 ms cannot hold both attempts.
    assert_eq!(it.fetch_within(Duration::from_millis(224)).await, Err(Error::Unreachable(None)));
    assert_eq!((it.fake.calls(), began.elapsed()), (1, LATENCY));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_ends_at_its_deadline_and_at_the_timeout() {
    let it = guarded(Ok(Fetched::Absent), 1, 100);
    let began = Instant::now();
    assert_eq!(it.fetch_within(LATENCY / 2).await, Err(Error::Timeout(None)));
    assert_eq!(began.elapsed(), LATENCY / 2);
    assert_eq!(it.fetch_within(Duration::ZERO).await, Err(Error::Timeout(None)));
    assert_eq!(it.fake.calls(), 1, "a deadline that has passed costs no request");

    let blocker = it.guard.permits.acquire().await.unwrap();
    let began = Instant::now();
    assert_eq!(it.fetch_within(TIMEOUT * 10).await, Err(Error::Timeout(None)));
    assert_eq!(began.elapsed(), TIMEOUT);
    drop(blocker);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_until_retry_after_has_passed() {
    let wait = Duration::from_secs(42);
    let it = guarded(Err(Error::Throttled { retry_after: wait }), 1, 100);
    assert_eq!(it.fetch().await, Err(Error::Throttled { retry_after: wait }));
    it.fake.now_answers(Ok(Fetched::Absent));

    tokio::time::advance(wait - Duration::from_secs(2)).await;
    assert_eq!(it.fetch().await, Err(Error::Throttled { retry_after: Duration::from_secs(2) }));
    assert_eq!(it.fake.calls(), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(it.fetch().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_fails_at_once_and_recovers() {
    let it = guarded(Err(Error::Failed { status: 503, retry_after: None }), 64, 1000);
    while it.fetch().await == Err(Error::Failed { status: 503, retry_after: None }) {}
    assert_eq!(it.fake.calls(), STREAK as usize);
    assert!(it.shows("upstream_breaker_state 2"));

    let began = Instant::now();
    let Err(Error::BreakerOpen { retry_after }) = it.fetch().await else { panic!("the breaker is not open") };
    assert_eq!((began.elapsed(), it.fake.calls()), (Duration::ZERO, STREAK as usize));

    it.fake.now_answers(Ok(Fetched::Absent));
    tokio::time::advance(retry_after).await;
    let answers = join_all((0..5).map(|_| it.fetch())).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "one probe passes");
    assert!(it.shows("upstream_breaker_state 0"));
    assert!(join_all((0..5).map(|_| it.fetch())).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn fetches_waiting_for_a_permit_are_not_sent_after_the_breaker_opens() {
    let it = guarded(Err(Error::Unreachable(None)), 1, 1000);
    join_all((0..100).map(|_| it.fetch())).await;
    assert!(it.fake.calls() <= STREAK as usize + 4, "{} requests: the streak and a few probes", it.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_lets_the_next_request_probe() {
    let it = guarded(Err(Error::Unreachable(None)), 1, 1000);
    while it.fetch().await == Err(Error::Unreachable(None)) {}
    it.fake.now_answers(Ok(Fetched::Absent));
    tokio::time::advance(FIRST_PERIOD).await;

    let cancelled = tokio::time::timeout(LATENCY / 2, it.fetch()).await;
    assert!(cancelled.is_err());
    assert_eq!(it.fetch().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn only_a_long_enough_timeout_counts_as_a_failure() {
    let it = guarded(Err(Error::Timeout(None)), 1, 1000);
    for _ in 0..STREAK * 2 {
        assert_eq!(it.fetch_within(TIMEOUT / 4 - LATENCY).await, Err(Error::Timeout(None)));
    }
    assert!(it.shows("upstream_breaker_state 0"));
    for _ in 0..STREAK {
        assert_eq!(it.fetch_within(TIMEOUT / 4).await, Err(Error::Timeout(None)));
    }
    assert!(matches!(it.fetch().await, Err(Error::BreakerOpen { .. })));
}
