//! Dead letters: what could not be applied, why, and putting it back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::domain::EventId;
use crate::queue::{self, DeadLetter, DeadLetters, Payload, Redriven};

pub use crate::queue::{MAX_SEARCHED, Which};

use super::actions::{Actions, Error};

/// What was done with dead letters.
#[derive(Clone, Debug)]
pub struct Handled {
    /// How many were put back or removed.
    pub count: u64,
    /// How many were to be put back, hold no event, and stayed.
    pub kept: u64,
    /// The event, where it was one that was asked for by its id.
    pub event: Option<EventId>,
}

impl Actions {
    /// Lists the oldest dead letters, at most `limit`: what each is, why and since when, never a customer.
    ///
    /// # Errors
    ///
    /// No queue, or it failed.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<Value>, Error> {
        let letters = self.letters()?.list(limit.min(MAX_SEARCHED)).await?;
        Ok(letters.iter().map(summary).collect())
    }

    /// Shows one dead letter whole: an event's wire form has no personal data in it.
    ///
    /// # Errors
    ///
    /// No such dead letter, no queue, or it failed.
    pub async fn dead_letter(&self, id: &str) -> Result<Value, Error> {
        let letters = self.letters()?.list(MAX_SEARCHED).await?;
        let letter = letters.iter().find(|letter| letter.id == id).ok_or(Error::UnknownDeadLetter)?;
        let mut shown = summary(letter);
        if let Payload::Event(event) = &letter.payload {
            // What was written as JSON a moment ago is JSON.
            shown["event"] = serde_json::from_slice(&queue::wire::encode(event)).unwrap_or_default();
        }
        Ok(shown)
    }

    /// Puts events back into the queue; what is no event stays. Where ids are given, all are looked for first.
    ///
    /// # Errors
    ///
    /// One of the ids is not there or no event (then nothing was done); no queue, or it failed (then some may be back,
    /// and doing it again is safe).
    pub async fn redrive(&self, which: &Which) -> Result<Handled, Error> {
        let meant = self.meant(which).await?;
        if meant.iter().any(|letter| matches!(letter.payload, Payload::Undecodable(_))) {
            return Err(Error::NoEvent);
        }
        let Redriven { events: count, kept } = self.letters()?.redrive(which).await?;
        tracing::info!(events = count, kept, "an operator put dead letters back");
        Ok(Handled { count, kept, event: only_event(&meant) })
    }

    /// Removes dead letters for good.
    ///
    /// # Errors
    ///
    /// One of the ids is not there (then nothing was done); no queue, or it failed (then some may be gone).
    pub async fn purge(&self, which: &Which) -> Result<Handled, Error> {
        let meant = self.meant(which).await?;
        let count = self.letters()?.purge(which).await?;
        tracing::info!(purged = count, "an operator removed dead letters for good");
        Ok(Handled { count, kept: 0, event: only_event(&meant) })
    }

    /// Finds the dead letters of these ids; none where all are meant.
    async fn meant(&self, which: &Which) -> Result<Vec<DeadLetter>, Error> {
        let Which::These(ids) = which else { return Ok(Vec::new()) };
        let mut letters = self.letters()?.list(MAX_SEARCHED).await?;
        letters.retain(|letter| ids.contains(&letter.id));
        let found: BTreeSet<&str> = letters.iter().map(|letter| letter.id.as_str()).collect();
        if found.len() < ids.len() {
            return Err(Error::UnknownDeadLetter);
        }
        Ok(letters)
    }

    fn letters(&self) -> Result<&dyn DeadLetters, Error> {
        self.dead_letters.as_deref().ok_or(Error::NoQueue)
    }
}

fn only_event(letters: &[DeadLetter]) -> Option<EventId> {
    match letters {
        [DeadLetter { payload: Payload::Event(event), .. }] => Some(event.id.clone()),
        _ => None,
    }
}

fn summary(letter: &DeadLetter) -> Value {
    let mut shown = json!({ "id": letter.id, "reason": letter.reason });
    if let Some(since) = letter.since {
        shown["since"] = since.to_string().into();
    }
    if let Some(redelivered) = letter.redelivered {
        shown["redelivered"] = redelivered.into();
    }
    match &letter.payload {
        Payload::Event(event) => {
            shown["eventId"] = event.id.as_str().into();
            shown["tenantId"] = event.tenant.as_str().into();
            shown["kind"] = event.kind.as_str().into();
        }
        Payload::Undecodable(undecodable) => {
            shown["length"] = undecodable.length.into();
            shown["sha256"] = undecodable.sha256.as_str().into();
        }
    }
    shown
}
