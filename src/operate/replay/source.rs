//! Where a replay reads its events: the journal of the queue, or the audits of Genesys.

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
    Journal(Box<dyn Journal>),
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
            Self::Journal(journal) => {
                let Some(events) = journal.next().await? else { return Ok(None) };
                let read = events.len() as u64;
                let events = events.into_iter().filter(|event| request.selects(event)).collect();
                Ok(Some(Page { read, unreadable: 0, events, complete_until: None }))
            }
            Self::Genesys(trail) => trail.next(progress).await,
        }
    }

    /// Returns the time up to which all events were returned with the first ones of a page. Audits have no certain order.
    pub(super) fn reached(&self, events: &[Event]) -> Option<Timestamp> {
        match self {
            Self::Journal(_) => events.iter().map(|event| event.received_at).max(),
            Self::Genesys(_) => None,
        }
    }
}
