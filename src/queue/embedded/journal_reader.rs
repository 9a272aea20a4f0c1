//! Reads the journal page by page through the writer, which owns the file.

use async_trait::async_trait;

use crate::domain::{Event, Timestamp};
use crate::queue::{Error, Journal, wire};

use super::commands::WriterHandle;
use super::journal::{self, JournalPage};

/// How many rows one page reads.
const PAGE: usize = 256;

/// A reader of the journal, from a time to the end at the moment of its creation.
#[derive(Debug)]
pub(super) struct JournalReader {
    writer: WriterHandle,
    since: Timestamp,
    from: u64,
    /// The position after the last event to read. Later events are not read.
    end: u64,
}

impl JournalReader {
    pub(super) const fn new(writer: WriterHandle, since: Timestamp, end: u64) -> Self {
        Self { writer, since, from: 0, end }
    }
}

#[async_trait]
impl Journal for JournalReader {
    async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.from >= self.end {
            return Ok(None);
        }
        let JournalPage { events, next } = self.writer.journal(self.from, self.since, PAGE).await?;
        self.from = next.unwrap_or(self.end);
        // What cannot be decoded is a dead letter, or will be.
        let events = events.iter().filter_map(|wire| wire::decode(wire).ok());
        Ok(Some(events.map(journal::without_mark).filter(|event| event.again.is_none()).collect()))
    }
}
