//! The change feed over Memcached, which publishes nothing: each applied event takes the next number of its server
//! (`cust:changes`) and writes itself under it (`cust:changes:<number>`) for a minute. Every process with readers reads the
//! numbers of all servers again and again, and then what it has not read.
//!
//! The number is taken before the event is marked as applied. So an event whose change could not be written is delivered
//! once more, and a number without a change is a gap. The first number is the time in milliseconds, so that a number that was
//! evicted does not come back.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use crate::clock::SharedClock;
use crate::domain::{Key, Kind, Timestamp};
use crate::shutdown::Shutdown;
use crate::store::Error;
use crate::store::changes::{ChangeFeed, WINDOW};

use super::Node;
use super::connection::unexpected;
use super::protocol::{Condition, Requests, Stored};

/// The key of the last number.
const NUMBER: &str = "cust:changes";

/// How long a change can be read, in seconds.
const LIFETIME: u64 = 60;

/// How often each process reads the numbers.
const READ_EVERY: Duration = Duration::from_millis(250);

/// How long a change may be missing after its number was taken.
const MISSING: Duration = Duration::from_secs(2);

/// How many changes are read together, and how many may be unread before they count as missing: as many as the feed keeps.
const BATCH: u64 = 256;
const BEHIND: u64 = WINDOW as u64;

/// What a process has read of a server.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The number of the last change.
    last: u64,
    /// Since when the next one is missing.
    missing_since: Option<Instant>,
}

/// What a read gives.
struct News {
    progress: Progress,
    changes: Vec<(Kind, Key)>,
    has_gap: bool,
}

/// Adds the request for the number of the next change.
pub(super) fn take_number(requests: Requests, now: Timestamp) -> Requests {
    requests.increment(NUMBER, u64::try_from(now.as_millis()).unwrap_or_default())
}

/// Returns the request that writes a change under its number.
pub(super) fn announce(number: &Stored, key: &Key, kind: Kind) -> Result<Requests, Error> {
    let number = parse_number(number).ok_or_else(unexpected)?;
    let does = match kind {
        Kind::Created => 'C',
        Kind::Updated | Kind::Merged => 'U',
        Kind::Deleted => 'D',
    };
    let value = format!("{does}{}", key.as_str());
    Ok(Requests::default().set(&name(number), value.as_bytes(), Some(LIFETIME), Condition::Any))
}

/// Publishes in `feed` the changes that any process applies, until shutdown.
pub(super) async fn follow(nodes: Vec<Node>, feed: ChangeFeed, clock: SharedClock, shutdown: Shutdown) {
    let mut progress: Vec<Option<Progress>> = vec![None; nodes.len()];
    let mut was_live = false;
    while timeout(READ_EVERY, shutdown.requested()).await.is_err() {
        let reads = nodes.iter().zip(&progress).map(|(node, progress)| read(node, *progress, clock.now()));
        let reads = join_all(reads).await;
        let is_live = reads.iter().all(Result::is_ok);
        if is_live != was_live {
            was_live = is_live;
            feed.set_live(is_live);
            if !is_live {
                tracing::warn!("a memcached server cannot be read for the change feed; streams of changes are reset");
            }
        }
        for (progress, news) in progress.iter_mut().zip(reads) {
            let Ok(news) = news else { continue };
            if news.has_gap {
                feed.set_live(is_live);
            }
            for (kind, key) in news.changes {
                feed.publish(key, kind);
            }
            *progress = Some(news.progress);
        }
    }
}

/// Reads what is new at a server.
async fn read(node: &Node, progress: Option<Progress>, now: Timestamp) -> Result<News, Error> {
    let session = node.lookups.session()?;
    let [number] = session.run(Requests::default().get(NUMBER)).await?;
    let last = progress.map_or(0, |progress| progress.last);
    let at = |last, has_gap| News { progress: Progress { last, missing_since: None }, changes: vec![], has_gap };
    let Some(stored) = number.value()? else {
        let first = now.as_millis().to_string();
        let [_] = session.run(Requests::default().set(NUMBER, first.as_bytes(), None, Condition::Absent)).await?;
        // What it is now is read next time.
        return Ok(at(last, false));
    };
    let Some(newest) = parse_number(&stored) else {
        // Another program wrote it, and no event can take a number. Without it the numbers start again.
        let [_] = session.run(Requests::default().delete_unchanged(NUMBER, stored.version)).await?;
        return Ok(at(last, true));
    };
    let Some(mut progress) = progress else { return Ok(at(newest, false)) };
    if newest < progress.last || newest - progress.last > BEHIND {
        return Ok(at(newest, true));
    }
    if newest == progress.last {
        return Ok(at(newest, false));
    }
    let mut changes = Vec::new();
    while progress.last < newest {
        let until = newest.min(progress.last + BATCH);
        let requests =
            (progress.last + 1..=until).fold(Requests::default(), |requests, number| requests.get(&name(number)));
        for answer in session.run_all(requests).await? {
            let Some(stored) = answer.value()? else { break };
            progress.last += 1;
            progress.missing_since = None;
            changes.extend(parse(&stored));
        }
        if progress.last < until {
            let missing_since = *progress.missing_since.get_or_insert_with(Instant::now);
            if missing_since.elapsed() > MISSING {
                return Ok(at(newest, true));
            }
            break;
        }
    }
    Ok(News { progress, changes, has_gap: false })
}

fn name(number: u64) -> String {
    format!("{NUMBER}:{number}")
}

fn parse_number(stored: &Stored) -> Option<u64> {
    std::str::from_utf8(&stored.value).ok()?.trim().parse().ok()
}

fn parse(stored: &Stored) -> Option<(Kind, Key)> {
    let text = std::str::from_utf8(&stored.value).ok()?;
    let kind = match text.get(..1)? {
        "C" => Kind::Created,
        "U" => Kind::Updated,
        "D" => Kind::Deleted,
        _ => return None,
    };
    Some((kind, text.get(1..)?.parse().ok()?))
}
