//! Publishing as a part of a trace: what is published names the span that published it, so that whoever applies it,
//! in whatever process, goes on with the same trace.

use tracing::Instrument;

use crate::domain::Event;
use crate::spans;

use super::{Error, Publisher};

/// Publishes events, as [`Publisher::publish`]; their own trace context stays where spans are not recorded.
///
/// # Errors
///
/// As the publisher's.
pub async fn publish(publisher: &dyn Publisher, events: &mut [Event]) -> Result<(), Error> {
    let span = spans::publish(events);
    if let Some(place) = spans::place(&span) {
        for event in &mut *events {
            event.traceparent = Some(place);
        }
    }
    let outcome = publisher.publish(events).instrument(span.clone()).await;
    spans::published(&span, outcome.is_ok());
    outcome
}
