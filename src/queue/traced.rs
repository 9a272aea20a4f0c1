//! Trace context of published events: each event carries the span that published it, so that the consumer, in any
//! process, continues the same trace.

use tracing::Instrument;

use crate::domain::Event;
use crate::spans;

use super::{Error, Publisher};

/// Publishes events like [`Publisher::publish`], within a span. Without span recording the events keep their own
/// trace context.
///
/// # Errors
///
/// The error of the publisher.
pub async fn publish(publisher: &dyn Publisher, events: &mut [Event]) -> Result<(), Error> {
    let span = spans::publish(events);
    if let Some(place) = spans::context_of(&span) {
        for event in &mut *events {
            event.traceparent = Some(place);
        }
    }
    let outcome = publisher.publish(events).instrument(span.clone()).await;
    spans::published(&span, outcome.is_ok());
    outcome
}
