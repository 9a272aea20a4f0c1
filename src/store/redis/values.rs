//! Reads values of entry keys: what may be used, and how old it is.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use crate::domain::Key;
use crate::store::sealed::macs::Macs;
use crate::store::{Entry, Error, Record, Tombstone};

use super::error::CommandError;
use super::reply::{bytes, number};
use super::server_connection::ServerConnection;
use super::{Redis, record};

/// How far the clocks of processes may differ before the age of a record comes from Redis.
const SKEW: Duration = Duration::from_secs(1);

impl Redis {
    /// Reads the entries at several keys of a server with one request.
    pub(super) async fn entries(&self, server: &ServerConnection, keys: &[Key]) -> Vec<Result<Option<Entry>, Error>> {
        let mut commands = redis::pipe();
        for key in keys {
            commands.cmd("GET").arg(key.as_str());
        }
        let answers = match server.send_each(&commands).await {
            Ok(answers) => answers,
            Err(error) => {
                let error = Error::from(error);
                return keys.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let mut entries = Vec::with_capacity(keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            entries.push(match self.entry(key, answer.extract_error().map_err(CommandError::from)) {
                Ok(Some(Entry::Record(record))) if self.is_early(&record) => self.aged(key, record).await,
                entry => entry,
            });
        }
        entries
    }

    /// Returns the entry that the answer to a `GET` shows.
    pub(super) fn entry(&self, key: &Key, answer: Result<Value, CommandError>) -> Result<Option<Entry>, Error> {
        match answer {
            Ok(answer) => Ok(bytes(answer).map(|bytes| self.decode(key, bytes.into()))),
            // Corrupt like any other unreadable value; the next lease removes it.
            Err(CommandError::WrongType) => Ok(Some(Entry::Corrupt(Bytes::new()))),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether a record is from the future, so that its age must come from Redis.
    pub(super) fn is_early(&self, record: &Record) -> bool {
        record.fetched_at > self.clock.now().plus(SKEW)
    }

    /// Returns a record from the future with the age that Redis knows: our clock was set back, or that of the process
    /// that wrote it is ahead.
    pub(super) async fn aged(&self, key: &Key, record: Record) -> Result<Option<Entry>, Error> {
        let mut cmd = redis::cmd("PTTL");
        cmd.arg(key.as_str());
        let remaining = number(&self.reads.send(&cmd).await?).and_then(|millis| u64::try_from(millis).ok());
        // It has expired in between.
        let Some(remaining) = remaining.map(Duration::from_millis) else { return Ok(None) };
        let age = record.lifetime().saturating_sub(remaining);
        Ok(Some(Entry::Record(record.at_least_as_old_as(age, self.clock.now()))))
    }

    /// Decodes the value of an entry key. A tombstone past its lifetime, from the future, or without the MAC that it needs is
    /// unreadable; one without the MAC is reported.
    pub(super) fn decode(&self, key: &Key, bytes: Bytes) -> Entry {
        self.decode_or(key, bytes, |macs| macs.report(key))
    }

    /// Decodes the value of an entry key for an operator: as [`decode`](Self::decode), but reports nothing.
    pub(super) fn decode_silently(&self, key: &Key, bytes: Bytes) -> Entry {
        self.decode_or(key, bytes, |_| {})
    }

    fn decode_or(&self, key: &Key, bytes: Bytes, report: impl FnOnce(&Macs)) -> Entry {
        match record::decode(bytes.clone()) {
            Entry::Tombstone(tombstone) if !self.may_use(key, &tombstone, &bytes, report) => Entry::Corrupt(bytes),
            entry => entry,
        }
    }

    fn may_use(&self, key: &Key, tombstone: &Tombstone, bytes: &[u8], report: impl FnOnce(&Macs)) -> bool {
        if let Some(macs) = &self.macs
            && !macs.accept(key, tombstone, record::mac_of(bytes))
        {
            report(macs);
            return false;
        }
        record::is_timely(tombstone.written_at, self.lifetimes.tombstone_ttl, self.clock.now())
    }
}
