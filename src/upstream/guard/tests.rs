use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::upstream::breaker::{FIRST_PERIOD, STREAK};

const LATENCY: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Answers every fetch after [`LATENCY`] as it was last told to.
#[derive(Debug)]
struct Fake {
    answer: Mutex<Result<Fetched, Error>>,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

impl Fake {
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
impl Upstream for Arc<Fake> {
    async fn fetch(&self, _: &TenantId, _: &CustomerId, _: Instant) -> Result<Fetched, Error> {
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
        deadline: Instant,
    ) -> Result<Fetched, Error> {
        self.fetch(tenant, customer, deadline).await
    }
}

struct Guarded {
    guard: Guard<Arc<Fake>>,
    fake: Arc<Fake>,
    metrics: Arc<Metrics>,
}

fn guarded(answer: Result<Fetched, Error>, max_in_flight: usize, per_minute: u32) -> Guarded {
    let (fake, metrics) = (Fake::answering(answer), Metrics::new());
    let limits =
        Limits { timeout: TIMEOUT, max_in_flight, per_minute: Quota::per_minute(per_minute.try_into().unwrap()) };
    let lamp = BreakerGauge::board(1, &metrics.upstream_breaker_state).next().unwrap();
    let guard = Guard::new(Arc::clone(&fake), tenant(), limits, lamp, Arc::clone(&metrics));
    Guarded { guard, fake, metrics }
}

fn tenant() -> TenantId {
    "10001".parse().unwrap()
}

impl Guarded {
    async fn fetch_within(&self, time: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + time;
        self.guard.fetch(&tenant(), &"c".parse().unwrap(), deadline).await.map(drop)
    }

    async fn fetch(&self) -> Result<(), Error> {
        self.fetch_within(TIMEOUT).await
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|shown| shown == format!("profile_edge_{line}"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_answers_at_once_and_says_when_to_come_again() {
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
async fn no_more_requests_are_in_flight_than_allowed_and_waiting_ends_at_the_deadline() {
    let it = guarded(Ok(Fetched::Absent), 3, 1000);
    let answers = join_all((0..12).map(|_| it.fetch_within(LATENCY * 3 + LATENCY / 2))).await;
    assert_eq!(it.fake.most_in_flight.load(Ordering::SeqCst), 3);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 9);
    assert_eq!(answers.iter().filter(|answer| **answer == Err(Error::Timeout)).count(), 3);
    assert_eq!(it.fetch().await, Ok(()), "all permits came back");
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_three_times() {
    for error in [Error::Failed { status: 500 }, Error::Unreachable] {
        let it = guarded(Err(error.clone()), 1, 100);
        assert_eq!(it.fetch().await, Err(error));
        assert_eq!(it.fake.calls(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_come_again_is_tried_once() {
    for error in
        [Error::Unusable { reason: "" }, Error::Denied { status: 403 }, Error::Throttled { retry_after: LATENCY }]
    {
        let it = guarded(Err(error.clone()), 1, 100);
        assert_eq!(it.fetch().await, Err(error));
        assert_eq!(it.fake.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_retry_that_the_remaining_time_cannot_hold() {
    let it = guarded(Err(Error::Unreachable), 1, 100);
    let began = Instant::now();
    // The shortest wait is 25 ms and the attempt takes 100: 224 ms cannot hold both attempts.
    assert_eq!(it.fetch_within(Duration::from_millis(224)).await, Err(Error::Unreachable));
    assert_eq!((it.fake.calls(), began.elapsed()), (1, LATENCY));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_ends_at_its_deadline_and_at_the_timeout() {
    let it = guarded(Ok(Fetched::Absent), 1, 100);
    let began = Instant::now();
    assert_eq!(it.fetch_within(LATENCY / 2).await, Err(Error::Timeout));
    assert_eq!(began.elapsed(), LATENCY / 2);
    assert_eq!(it.fetch_within(Duration::ZERO).await, Err(Error::Timeout));
    assert_eq!(it.fake.calls(), 1, "a deadline that has passed costs no request");

    let blocker = it.guard.permits.acquire().await.unwrap();
    let began = Instant::now();
    assert_eq!(it.fetch_within(TIMEOUT * 10).await, Err(Error::Timeout));
    assert_eq!(began.elapsed(), TIMEOUT);
    drop(blocker);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_until_retry_after_has_passed() {
    let asked = Duration::from_secs(42);
    let it = guarded(Err(Error::Throttled { retry_after: asked }), 1, 100);
    assert_eq!(it.fetch().await, Err(Error::Throttled { retry_after: asked }));
    it.fake.now_answers(Ok(Fetched::Absent));

    tokio::time::advance(asked - Duration::from_secs(2)).await;
    assert_eq!(it.fetch().await, Err(Error::Throttled { retry_after: Duration::from_secs(2) }));
    assert_eq!(it.fake.calls(), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(it.fetch().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_answers_at_once_and_recovers_by_itself() {
    let it = guarded(Err(Error::Failed { status: 503 }), 64, 1000);
    while it.fetch().await == Err(Error::Failed { status: 503 }) {}
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
async fn fetches_that_wait_for_a_permit_when_the_breaker_opens_are_not_let_loose() {
    let it = guarded(Err(Error::Unreachable), 1, 1000);
    join_all((0..100).map(|_| it.fetch())).await;
    assert!(it.fake.calls() <= STREAK as usize + 4, "{} requests: the streak and a few probes", it.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_gives_its_right_back() {
    let it = guarded(Err(Error::Unreachable), 1, 1000);
    while it.fetch().await == Err(Error::Unreachable) {}
    it.fake.now_answers(Ok(Fetched::Absent));
    tokio::time::advance(FIRST_PERIOD).await;

    let cancelled = tokio::time::timeout(LATENCY / 2, it.fetch()).await;
    assert!(cancelled.is_err());
    assert_eq!(it.fetch().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn only_a_fair_wait_without_an_answer_counts_against_genesys() {
    let it = guarded(Err(Error::Timeout), 1, 1000);
    for _ in 0..STREAK * 2 {
        assert_eq!(it.fetch_within(TIMEOUT / 4 - LATENCY).await, Err(Error::Timeout));
    }
    assert!(it.shows("upstream_breaker_state 0"));
    for _ in 0..STREAK {
        assert_eq!(it.fetch_within(TIMEOUT / 4).await, Err(Error::Timeout));
    }
    assert!(matches!(it.fetch().await, Err(Error::BreakerOpen { .. })));
}

#[test]
fn the_gauge_shows_the_worst_lamp() {
    let metrics = Metrics::new();
    let lamps: Vec<_> = BreakerGauge::board(2, &metrics.upstream_breaker_state).collect();
    let shown = || {
        metrics
            .render()
            .lines()
            .find_map(|line| line.strip_prefix("profile_edge_upstream_breaker_state ").map(str::to_owned))
    };
    lamps[0].show(Level::Open);
    lamps[1].show(Level::HalfOpen);
    assert_eq!(shown().as_deref(), Some("2"));
    lamps[0].show(Level::Closed);
    assert_eq!(shown().as_deref(), Some("1"));
}
