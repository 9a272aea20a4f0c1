//! Where a replay reads its events: the journal of the queue, or the audits of Genesys.
//!
//! # Events that came late
//!
//! The journal has the order of publishing, and an event can be published long after its receipt: an outbox keeps it while
//! the broker is down. So the first event that was received at `since` or later begins the period, and every event
//! after it is part of the period, whenever it was received. The period of the next replay after an early end begins
//! with an event that was read already, so none of those that follow is left out.

use tokio::sync::watch;

use crate::domain::{Event, Timestamp};
use crate::operate::actions::Error;
use crate::queue::Journal;

use super::audit_trail::{AuditTrail, Page};
use super::progress::Progress;
use super::request::ReplayRequest;

/// The source of the events of a replay.
#[derive(Debug)]
pub(super) enum Source {
    /// The journal.
    Journal {
        /// Its reader.
        journal: Box<dyn Journal>,
        /// Whether an event was read that was received at `since` or later.
        begun: bool,
    },
    /// The audits of Genesys.
    Genesys(Box<AuditTrail>),
}

impl Source {
    /// Returns the next page; `None` at the end. A wait for Genesys is shown in `progress`.
    pub(super) async fn next(
        &mut self,
        request: &ReplayRequest,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Page>, Error> {
        match self {
            Self::Journal { journal, begun } => {
                let Some(mut events) = journal.next().await? else { return Ok(None) };
                let read = events.len() as u64;
                events.retain(|event| {
                    *begun |= event.received_at >= request.since;
                    *begun && request.selects(event)
                });
                Ok(Some(Page { read, unreadable: 0, events, complete_until: None }))
            }
            Self::Genesys(trail) => trail.next(progress).await,
        }
    }

    /// Returns the time up to which all events were returned with the first ones of a page. Audits have no certain order.
    pub(super) fn reached(&self, events: &[Event]) -> Option<Timestamp> {
        match self {
            Self::Journal { .. } => events.iter().map(|event| event.received_at).max(),
            Self::Genesys(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use async_trait::async_trait;

    use super::super::request::Origin;
    use super::*;
    use crate::domain::ReplayId;
    use crate::queue::Error as QueueError;

    const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_500);

    /// A journal of events that were received these minutes ago, in the order of their publishing, page by page.
    #[derive(Debug)]
    struct Pages(VecDeque<&'static [u64]>);

    #[async_trait]
    impl Journal for Pages {
        async fn next(&mut self) -> Result<Option<Vec<Event>>, QueueError> {
            let event = |ago: &u64| Event { received_at: minutes_ago(*ago), ..Event::example() };
            Ok(self.0.pop_front().map(|page| page.iter().map(event).collect()))
        }
    }

    fn minutes_ago(minutes: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(60 * minutes))
    }

    /// Returns how many minutes ago the selected events were received.
    async fn selected(pages: &[&'static [u64]], since: &str, until: &str) -> Vec<u64> {
        let origin = Origin::Journal;
        let request = ReplayRequest::parse(origin, since, Some(until), None, None, false, NOW).unwrap();
        let progress = watch::Sender::new(Progress::of(&request, ReplayId::fresh()));
        let journal = Pages(pages.iter().copied().collect());
        let mut source = Source::Journal { journal: Box::new(journal), begun: false };
        let mut selected = Vec::new();
        while let Some(page) = source.next(&request, &progress).await.unwrap() {
            selected.extend(page.events.iter().map(|event| NOW.since(event.received_at).as_secs() / 60));
        }
        selected
    }

    #[tokio::test]
    async fn the_period_begins_with_its_first_event_and_has_what_came_late() {
        // The journal starts a little before the period. After an outage of the broker an outbox publishes old events.
        let pages: [&[u64]; 3] = [&[33, 32, 31], &[29, 28, 90], &[80, 27, 5, 26]];
        assert_eq!(selected(&pages, "30m", "10m").await, [29, 28, 90, 80, 27, 26]);
        assert_eq!(selected(&pages, "1m", "0s").await, <[u64; 0]>::default());
    }
}
