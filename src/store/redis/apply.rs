//! Applies events: the script of an event, and the wait for replicas.

use redis::{Cmd, Value};

use crate::domain::{EventTime, Key, Kind, Modified, Redelivery};
use crate::store::{Applied, Change, Error, Token};

use super::error::CommandError;
use super::reply::{bytes, number, unexpected};
use super::scripts::{APPLY, KeyNames};
use super::{Redis, record};

impl Redis {
    /// See [`Store::apply`](crate::store::Store::apply).
    pub(super) async fn apply_change(&self, key: &Key, change: &Change) -> Result<Applied, Error> {
        let names = KeyNames::of(key);
        let call = |mut cmd: Cmd| {
            cmd.arg(4 + usize::from(change.of.is_some())).arg(names.key).arg(&names.fence).arg(&names.lock);
            cmd.arg(names.seen(change.event)).arg(change.of.map(|of| names.seen(of)));
            self.add_change(&mut cmd, key, change);
            cmd.arg(&self.changes).arg(self.channel);
            cmd
        };
        let answer = APPLY.run(|cmd| self.send_change(call(cmd))).await;
        if let Err(CommandError::Full(_)) = answer {
            // The fence cannot be raised, so the event is not applied. But Redis still deletes, and the entry and its
            // leases are outdated: without them nothing old is served.
            let mut delete = redis::cmd("DEL");
            delete.arg(names.key).arg(&names.lock);
            self.events.send(&delete).await?;
        }
        let answer = answer?;
        match bytes(answer).as_deref() {
            Some(b"duplicate") => Ok(Applied::Duplicate),
            Some(b"outrun") => Ok(Applied::Outrun),
            Some(b"applied") => Ok(Applied::Applied { had_entry: true }),
            Some(b"absent") => Ok(Applied::Applied { had_entry: false }),
            _ => Err(unexpected()),
        }
    }

    /// Sends the script of an event, followed by the `WAIT` for its replicas on the same connection.
    pub(super) async fn send_change(&self, cmd: Cmd) -> Result<Value, CommandError> {
        if self.min_replicas == 0 {
            return self.events.send(&cmd).await;
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(cmd).cmd("WAIT").arg(self.min_replicas).arg(record::lifetime(self.timeout));
        let confirmed = |answers: &[Value]| answers.last().and_then(number).unwrap_or_default();
        let enough = i64::from(self.min_replicas);
        let mut answers = self.events.send_all(&pipeline, 2, |answers| confirmed(answers) >= enough).await?;
        let confirmed = confirmed(&answers);
        answers.pop();
        if confirmed < enough {
            let reason = format!("{confirmed} of {} replicas confirmed in time", self.min_replicas);
            return Err(CommandError::Store(Error::Unavailable { reason }));
        }
        answers.pop().ok_or_else(|| CommandError::Store(unexpected()))
    }

    fn add_change(&self, cmd: &mut Cmd, key: &Key, change: &Change) {
        let does = match change.kind {
            Kind::Created => "C",
            Kind::Updated | Kind::Merged => "U",
            Kind::Deleted => "D",
        };
        let (modified, at, now) = (change.stamps.modified, change.stamps.at, self.clock.now());
        let macs = self.macs.as_ref();
        let deletion = macs.filter(|_| change.kind == Kind::Deleted).and_then(|macs| macs.of_tombstone(key, at, now));
        let mark = |event| macs.and_then(|macs| macs.of_mark(key, event)).map_or_else(|| "1".to_owned(), hex::encode);
        let lacks_modified = modified.is_none() && change.kind != Kind::Deleted;
        cmd.arg(does)
            .arg(modified.map(Modified::as_millis).map_or_else(String::new, |millis| millis.to_string()))
            .arg(at.map(EventTime::as_millis).map_or_else(String::new, |millis| millis.to_string()))
            .arg(at.map_or("", |at| record::precision(at.precision())))
            .arg(u8::from(change.force))
            .arg(change.again.map_or("", Redelivery::as_str))
            .arg(u8::from(lacks_modified))
            .arg(now.as_millis())
            .arg(record::lifetime(self.lifetimes.fence()))
            .arg(record::lifetime(self.lifetimes.tombstone_ttl))
            .arg(record::lifetime(self.lifetimes.dedup_window))
            .arg(&Token::draw().as_bytes()[..])
            .arg(u8::from(self.min_replicas > 0))
            .arg(deletion.map(|mac| record::tombstone_text(at, now, mac)).unwrap_or_default())
            .arg(mark(change.event))
            .arg(change.of.map(mark).unwrap_or_default());
    }
}
