//! The outbox: what waits in it, and handing it on.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::queue::outbox::{Outbox, OutboxStatus};

use super::actions::{Actions, Error};

impl Actions {
    /// Returns what the outbox holds: numbers, a time and an age, never an event.
    ///
    /// # Errors
    ///
    /// There is no outbox.
    pub async fn outbox(&self) -> Result<Value, Error> {
        Ok(shown(&self.open_outbox()?.status().await))
    }

    /// Hands the events of the outbox on without its rate limit, at most until `deadline`; returns what it holds afterwards.
    ///
    /// # Errors
    ///
    /// There is no outbox.
    pub async fn drain_outbox(&self, deadline: Instant) -> Result<Value, Error> {
        let outbox = self.open_outbox()?;
        let left = outbox.drain(deadline).await;
        tracing::info!(left, "an operator drained the outbox");
        let mut shown = shown(&outbox.status().await);
        shown["status"] = if left == 0 { "drained" } else { "remaining" }.into();
        Ok(shown)
    }

    fn open_outbox(&self) -> Result<&Outbox, Error> {
        self.outbox.as_deref().ok_or(Error::NoOutbox)
    }
}

fn shown(status: &OutboxStatus) -> Value {
    let mut shown = json!({
        "events": status.events,
        "bytes": status.bytes,
        "maxBytes": status.max_bytes,
        "oldestSeconds": status.oldest_age.as_secs(),
        "accepts": status.refusal.is_none(),
        "undecodable": status.undecodable,
    });
    if let Some(oldest) = status.oldest {
        shown["oldest"] = oldest.to_string().into();
    }
    shown
}
