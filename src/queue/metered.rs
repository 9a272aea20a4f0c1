//! Metrics of the queue ports.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{Event, Timestamp};
use crate::metrics::{self, Metrics};

use super::{Error, Publisher, Queue};

/// A publisher that measures how long events take to become durable, and whether the queue answers.
#[derive(Debug)]
pub struct MeteredPublisher {
    inner: Arc<dyn Publisher>,
    metrics: Arc<Metrics>,
}

impl MeteredPublisher {
    /// Wraps a publisher.
    #[must_use]
    pub fn new(inner: Arc<dyn Publisher>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

#[async_trait]
impl Publisher for MeteredPublisher {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        let started = Instant::now();
        let outcome = self.inner.publish(events).await;
        if outcome.is_ok() {
            metrics::observe(&self.metrics.publish_confirm_duration, started.elapsed());
        }
        self.metrics.queue_up.set(up(&outcome));
        outcome
    }
}

/// Updates the gauges that only the queue can report, at the time `now`, and returns whether the queue works.
///
/// To be called every few seconds. A gauge without a new value keeps its last one.
///
/// # Errors
///
/// Why the queue does not work.
pub async fn refresh(queue: &dyn Queue, metrics: &Metrics, now: Timestamp) -> Result<(), Error> {
    let answered = queue.ping().await;
    metrics.queue_up.set(up(&answered));
    if let Ok(depth) = queue.depth().await {
        // A floating-point number represents sizes below 2^53 exactly.
        metrics.queue_events.set(depth.events as f64);
        if let Some(bytes) = depth.bytes {
            metrics.outbox_events.set(depth.events as f64);
            metrics.outbox_bytes.set(bytes as f64);
            metrics.outbox_oldest.set(depth.oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()));
        }
        metrics.dead_letters.set(depth.dead_letters as f64);
    }
    answered
}

/// Returns the value of the gauge `queue_up`. A full queue is up, since it answers.
fn up(outcome: &Result<(), Error>) -> f64 {
    match outcome {
        Ok(()) | Err(Error::Full { .. }) => 1.0,
        Err(Error::DiskFull { .. } | Error::Unavailable { .. } | Error::Misconfigured { .. } | Error::Closed) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use crate::queue::{Depth, Journal, RestoreOutcome, Subscription};

    use super::*;

    /// A queue that always gives the same answer.
    #[derive(Debug)]
    struct Fixed(Result<(), Error>);

    #[async_trait]
    impl Publisher for Fixed {
        async fn publish(&self, _: &[Event]) -> Result<(), Error> {
            self.0.clone()
        }
    }

    #[async_trait]
    impl Queue for Fixed {
        async fn subscribe(&self, _: usize) -> Result<Box<dyn Subscription>, Error> {
            Err(Error::Closed)
        }

        async fn ping(&self) -> Result<(), Error> {
            self.0.clone()
        }

        async fn depth(&self) -> Result<Depth, Error> {
            self.0.clone().map(|()| Depth {
                events: 3,
                bytes: Some(700),
                oldest: Some(Timestamp::from_millis(1_000)),
                dead_letters: 2,
            })
        }

        async fn restore(&self, _: Timestamp) -> Result<RestoreOutcome, Error> {
            self.0.clone().map(|()| RestoreOutcome::NoJournal)
        }

        async fn journal(&self, _: Timestamp) -> Result<Option<Box<dyn Journal>>, Error> {
            Err(Error::Closed)
        }
    }

    fn shows(metrics: &Metrics, line: &str) {
        let scrape = metrics.render();
        assert!(scrape.lines().any(|shown| shown == format!("profile_edge_{line}")), "{line} is not in {scrape}");
    }

    #[tokio::test]
    async fn only_durable_events_are_timed_and_a_full_queue_is_up() {
        let metrics = Metrics::new();
        for (outcome, timed, up) in [
            (Ok(()), 1, 1),
            (Err(Error::Closed), 1, 0),
            (Err(Error::Full { bytes: 1, max_bytes: 1 }), 1, 1),
            (Err(Error::Unavailable { reason: "disk".to_owned() }), 1, 0),
            (Err(Error::DiskFull { reason: "ENOSPC".to_owned() }), 1, 0),
            (Ok(()), 2, 1),
        ] {
            let publisher = MeteredPublisher::new(Arc::new(Fixed(outcome.clone())), metrics.clone());
            assert_eq!(publisher.publish(&[]).await.is_ok(), outcome.is_ok());
            shows(&metrics, &format!("publish_confirm_duration_seconds_count {timed}"));
            shows(&metrics, &format!("queue_up {up}"));
        }
    }

    #[tokio::test]
    async fn gauges_follow_the_queue_and_keep_their_last_value() {
        let metrics = Metrics::new();
        let now = Timestamp::from_millis(3_500);
        refresh(&Fixed(Ok(())), &metrics, now).await.unwrap();
        let outbox = ["outbox_events 3", "outbox_bytes 700", "outbox_oldest_seconds 2.5"];
        for line in ["queue_up 1", "queue_events 3", "dead_letters 2"].into_iter().chain(outbox) {
            shows(&metrics, line);
        }
        assert!(refresh(&Fixed(Err(Error::Closed)), &metrics, now).await.is_err());
        for line in ["queue_up 0", "outbox_events 3", "dead_letters 2"] {
            shows(&metrics, line);
        }
    }
}
