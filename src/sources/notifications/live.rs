//! A channel of notifications whose changes are received, and how long it is of use.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::domain::CustomerId;
use crate::upstream::notifications::Channel;

use super::Watcher;
use super::reader::{End, Reader, SILENCE};

/// The longest life of a channel.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The longest time before the end of a channel at which it is replaced; for a short life a quarter of it.
const AHEAD: Duration = Duration::from_secs(30 * 60);

/// How long before the end of its token a channel is replaced: the token was renewed by then.
const AHEAD_OF_TOKEN: Duration = Duration::from_secs(30);

/// A channel whose changes are received.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) channel: Channel,
    pub(super) reader: Reader,
    /// The contacts that it is subscribed to.
    pub(super) subscribed: HashSet<CustomerId>,
    pub(super) replace_at: Instant,
    /// When contacts that could not be subscribed are tried again.
    pub(super) retry_at: Option<Instant>,
}

impl Live {
    /// Waits until nothing is received any more: the socket has ended, or the token of the channel. Cancel-safe.
    pub(super) fn ended(&self, watcher: &Arc<Watcher>) -> impl Future<Output = End> + use<> {
        let (socket, token_ends, watcher) = (self.reader.ended(), self.channel.token_ends, Arc::clone(watcher));
        async move {
            tokio::select! {
                biased;
                end = socket => end,
                () = sleep_until(token_ends) => End {
                    reason: "the token of the channel has ended",
                    // The socket may have been dead for as long before, and this process may have been stopped since.
                    heard: watcher.clock.now().minus(token_ends.elapsed() + SILENCE),
                },
            }
        }
    }
}

/// Returns when a channel is to be replaced.
pub(super) fn replace_at(channel: &Channel, watcher: &Watcher) -> Instant {
    let life = channel.expires.since(watcher.clock.now()).min(DAY);
    let by_life = Instant::now() + life - AHEAD.min(life / 4);
    // A token ends later than this process began, so the subtraction does not fail.
    by_life.min(channel.token_ends.checked_sub(AHEAD_OF_TOKEN).unwrap_or(by_life))
}
