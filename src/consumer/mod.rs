//! Consumer: from an event to its effect in the store.
//!
//! # What it promises
//!
//! Every event that the queue delivers takes effect at every entry key that it names, before it is acknowledged.
//! Otherwise it is returned to the queue or, if it is a poison message, moved to the dead letters with the reason.
//! Applying an event again has no second effect. The order of events does not matter: effects are a join.
//!
//! [`apply`] decides, without any queue; [`worker`] takes deliveries, bounds their number, settles them and drains.

pub mod foreign;
pub mod losses;
pub mod refusals;
pub mod worker;

use std::time::Duration;

use serde::Deserialize;

use crate::audit::EventEffect;
use crate::domain::{Event, Kind, Redelivery};
use crate::store::{self, Applied, Change, Store};

/// `[consumer]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The maximum number of events that are applied at the same time.
    pub concurrency: usize,
    /// How long an applied event is remembered.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// How long a tombstone keeps a deleted customer from being cached again.
    #[serde(with = "humantime_serde")]
    pub tombstone_ttl: Duration,
    /// How long after an event a fill is compared with the fence.
    #[serde(with = "humantime_serde")]
    pub settle_window: Duration,
}

/// What [`apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedEvent {
    /// The effect on all keys together.
    pub verdict: EventEffect,
    /// Whether another delivery of the event had reached at least one of its keys before.
    pub resumed: bool,
}

/// Applies an event at every entry key that it names, of customers and of identifiers. Whatever happened to the customer, an
/// identifier is looked up again: a deletion leaves no tombstone there, because somebody else may have it next.
///
/// It continues when a key answers `Duplicate`, because an earlier delivery may have reached only some keys
/// ([`rules::invalidate-before-ack`](crate::rules#invalidate-before-ack)); and when the store fails at a key, because
/// another key may be on a cluster shard that works.
///
/// # Errors
///
/// The first failure of the store. The event must be delivered again; the keys where it was applied then answer
/// `Duplicate`.
pub async fn apply(store: &dyn Store, event: &Event) -> Result<AppliedEvent, store::Error> {
    let Event { kind, stamps, again, force, .. } = *event;
    let of = matches!(again, Some(Redelivery::Replayed(_))).then(|| event.dedup_digest());
    let change = Change { event: event.mark(), of, kind, stamps, again, force };
    let of_identifier = Change { kind: Kind::Updated, ..change };
    let customers = event.keys().map(|key| (key, &change));
    let (mut verdict, mut resumed) = (Ok(EventEffect::Duplicate), false);
    for (key, change) in customers.chain(event.identifier_keys().map(|key| (key, &of_identifier))) {
        let applied = store.apply(&key, change).await;
        resumed |= matches!(applied, Ok(Applied::Duplicate));
        verdict = match (verdict, applied) {
            (Err(first), _) | (Ok(_), Err(first)) => Err(first),
            (Ok(EventEffect::Applied), Ok(_)) | (Ok(_), Ok(Applied::Applied { .. })) => Ok(EventEffect::Applied),
            (Ok(EventEffect::Outrun), Ok(_)) | (Ok(_), Ok(Applied::Outrun)) => Ok(EventEffect::Outrun),
            (Ok(EventEffect::Duplicate), Ok(Applied::Duplicate)) => Ok(EventEffect::Duplicate),
        };
    }
    verdict.map(|verdict| AppliedEvent { verdict, resumed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::domain::{Digest, Timestamp};
    use crate::store::Lifetimes;
    use crate::store::embedded::{self, Embedded};

    #[tokio::test]
    async fn a_delivery_that_finds_some_keys_visited_says_so() {
        let window = Duration::from_secs(300);
        let clock = ManualClock::at(Timestamp::from_millis(1_750_000_000_000));
        let lifetimes = Lifetimes { dedup_window: window, tombstone_ttl: window };
        let store =
            || Embedded::new(&embedded::Config { max_bytes: bytesize::ByteSize::mib(1) }, lifetimes, clock.clone());
        let event = Event { identifiers: vec![Digest::from_bytes([2; 16])], ..Event::example() };
        let Event { kind, stamps, again, force, .. } = event;
        let change = Change { event: event.mark(), of: None, kind, stamps, again, force };

        let (untouched, visited) = (store(), store());
        let customer = event.keys().next().expect("an event names a customer");
        assert!(matches!(visited.apply(&customer, &change).await, Ok(Applied::Applied { .. })));
        let applied = |resumed| AppliedEvent { verdict: EventEffect::Applied, resumed };
        assert_eq!(apply(&untouched, &event).await.ok(), Some(applied(false)));
        assert_eq!(apply(&visited, &event).await.ok(), Some(applied(true)));
    }
}
