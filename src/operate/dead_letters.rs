//! Dead letters: events that could not be applied, the reasons, and putting them back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::domain::EventId;
use crate::queue::{self, DeadLetter, DeadLetters, Payload, Redriven};

pub use crate::queue::{DeadLetterSelection, MAX_SEARCHED};

use super::actions::{Actions, Error};

/// The result of a command about dead letters.
#[derive(Clone, Debug)]
pub struct Handled {
    /// How many dead letters were put back or removed.
    pub count: u64,
    /// How many were kept because they hold no event.
    pub kept: u64,
    /// The event, if the command named exactly one dead letter that holds one.
    pub event: Option<EventId>,
}

impl Actions {
    /// Lists the oldest dead letters, at most `limit`: the event, the reason and the time, never a customer.
    ///
    /// # Errors
    ///
    /// There is no queue, or it failed.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<Value>, Error> {
        let letters = self.letters()?.list(limit.min(MAX_SEARCHED)).await?;
        Ok(letters.iter().map(summary).collect())
    }

    /// Returns one dead letter with its event, whose wire form holds no personal data.
    ///
    /// # Errors
    ///
    /// The dead letter does not exist, there is no queue, or the queue failed.
    pub async fn dead_letter(&self, id: &str) -> Result<Value, Error> {
        let letters = self.letters()?.list(MAX_SEARCHED).await?;
        let letter = letters.iter().find(|letter| letter.id == id).ok_or(Error::UnknownDeadLetter)?;
        let mut shown = summary(letter);
        if let Payload::Event(event) = &letter.payload {
            // The wire form is JSON.
            shown["event"] = serde_json::from_slice(&queue::wire::encode(event)).unwrap_or_default();
        }
        Ok(shown)
    }

    /// Puts events back into the queue; dead letters that hold no event are kept. If ids are given, all of them are looked
    /// up first.
    ///
    /// # Errors
    ///
    /// An id is unknown or holds no event (nothing was done); there is no queue; or the queue failed (some events may be
    /// back already, and repeating the command is safe).
    pub async fn redrive(&self, which: &DeadLetterSelection) -> Result<Handled, Error> {
        let selected = self.selected(which).await?;
        if selected.iter().any(|letter| matches!(letter.payload, Payload::Undecodable(_))) {
            return Err(Error::NoEvent);
        }
        let Redriven { events: count, kept } = self.letters()?.redrive(which).await?;
        tracing::info!(events = count, kept, "an operator put dead letters back into the queue");
        Ok(Handled { count, kept, event: only_event(&selected) })
    }

    /// Removes dead letters permanently.
    ///
    /// # Errors
    ///
    /// An id is unknown (nothing was done); there is no queue; or the queue failed (some may be removed already).
    pub async fn purge(&self, which: &DeadLetterSelection) -> Result<Handled, Error> {
        let selected = self.selected(which).await?;
        let count = self.letters()?.purge(which).await?;
        tracing::info!(purged = count, "an operator removed dead letters permanently");
        Ok(Handled { count, kept: 0, event: only_event(&selected) })
    }

    /// Finds the dead letters with these ids; returns none if all are selected.
    async fn selected(&self, which: &DeadLetterSelection) -> Result<Vec<DeadLetter>, Error> {
        let DeadLetterSelection::Ids(ids) = which else { return Ok(Vec::new()) };
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
