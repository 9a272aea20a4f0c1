//! Consumer: from an event to its effect in the store.
//!
//! # What it promises
//!
//! Every event that the queue delivers takes effect at every key that it names, before it is
//! acknowledged; or it is given back; or, if it is poison, it stands among the dead letters with the
//! reason. Applying an event again has no second effect. The order of events does not matter: effects
//! are a join (DESIGN section 2).
//!
//! [`apply`] is the decision, without any queue in it; [`worker`] takes, bounds, settles and drains.

pub mod losses;
pub mod worker;

use std::time::Duration;

use serde::Deserialize;

use crate::domain::{Event, Kind, Redelivery};
use crate::store::{self, Applied, Change, Store};

/// `[consumer]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many events are applied at once.
    pub concurrency: usize,
    /// How long an applied event is remembered.
    #[serde(with = "humantime_serde")]
    pub dedup_window: Duration,
    /// How long a deletion keeps its customer from being cached again.
    #[serde(with = "humantime_serde")]
    pub tombstone_ttl: Duration,
    /// How long an event makes fetched profiles prove that they are new enough.
    #[serde(with = "humantime_serde")]
    pub settle_window: Duration,
}

/// What applying an event came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect at one key at least.
    Applied,
    /// It had been applied before, at every key.
    Duplicate,
    /// Later events were known at every key where it was new; the keys were evicted all the same.
    Outrun,
}

/// Applies an event at every key that it names, also when one of them says that it is a duplicate (an earlier
/// delivery may have got only so far, rule 3), and when the store fails at one (another may stand on a shard of
/// a cluster that is up).
///
/// # Errors
///
/// The store failed at some key: the first such failure. The event must be delivered again; the keys that were
/// done answer `Duplicate` then.
pub async fn apply(store: &dyn Store, event: &Event) -> Result<Verdict, store::Error> {
    let Event { kind, stamps, again, force, .. } = *event;
    let of = matches!(again, Some(Redelivery::Replayed(_))).then(|| event.dedup_digest());
    let change = Change { event: event.mark(), of, kind, stamps, again, force };
    let mut verdict = Ok(Verdict::Duplicate);
    for key in event.keys() {
        let applied = match event.kind {
            Kind::Deleted => store.write_tombstone(&key, &change).await,
            Kind::Created | Kind::Updated | Kind::Merged => store.invalidate(&key, &change).await,
        };
        verdict = match (verdict, applied) {
            (Err(first), _) | (Ok(_), Err(first)) => Err(first),
            (Ok(Verdict::Applied), Ok(_)) | (Ok(_), Ok(Applied::Applied { .. })) => Ok(Verdict::Applied),
            (Ok(Verdict::Outrun), Ok(_)) | (Ok(_), Ok(Applied::Outrun)) => Ok(Verdict::Outrun),
            (Ok(Verdict::Duplicate), Ok(Applied::Duplicate)) => Ok(Verdict::Duplicate),
        };
    }
    verdict
}
