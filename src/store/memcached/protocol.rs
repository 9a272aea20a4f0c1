//! The meta commands of Memcached 1.6 (`doc/protocol.txt` of its source) that the store uses: pure functions over bytes.
//!
//! A server answers the commands of one connection in their order, each with one [`Answer`]. The names of keys are ours:
//! at most 250 bytes, without spaces.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

/// The longest line of an answer.
const LONGEST_LINE: usize = 2_048;

/// The longest value that is read. A server accepts items of 1 MiB, unless it is started with `-I`.
const LONGEST_VALUE: usize = 64 << 20;

/// The most lines of statistics that are read.
const MOST_STATISTICS: usize = 512;

/// A server takes a longer lifetime for a point in time.
pub(super) const LONGEST_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The bytes.
    pub(super) value: Bytes,
    /// The version, which every write changes. It means something only on the connection that read it: a server that was
    /// started again counts from the beginning.
    pub(super) version: u64,
    /// The whole seconds until it expires; `None` if it does not.
    pub(super) left: Option<u64>,
}

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The value of the key.
    Value(Stored),
    /// The command was executed. For a write, the new version.
    Done(u64),
    /// The key holds nothing.
    Absent,
    /// The condition of the command is not met.
    Refused,
    /// The server could not execute the command, and says why.
    Failed(String),
    /// Statistics, by name.
    Statistics(Vec<(String, String)>),
    /// The user may use this connection.
    LoggedIn,
}

/// What a key must hold for a write to take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing is required.
    Any,
    /// Nothing.
    Absent,
    /// The value with this version.
    Unchanged(u64),
}

/// Bytes that are no answer of Memcached, or an answer that says that it did not understand a command. What follows on
/// the connection cannot be assigned to commands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreadable(String);

/// Commands that are sent together.
#[derive(Debug, Default)]
pub(super) struct Requests {
    wire: Vec<u8>,
    count: usize,
}

impl Requests {
    /// Reads a key.
    pub(super) fn get(self, key: &str) -> Self {
        self.line(format_args!("mg {key} v c t"))
    }

    /// Writes a key for a lifetime; `None`: until it is evicted.
    pub(super) fn set(self, key: &str, value: &[u8], lifetime: Option<u64>, condition: Condition) -> Self {
        let (length, lifetime) = (value.len(), lifetime.unwrap_or_default());
        let mut it = match condition {
            Condition::Any => self.line(format_args!("ms {key} {length} T{lifetime} c")),
            Condition::Absent => self.line(format_args!("ms {key} {length} T{lifetime} c ME")),
            Condition::Unchanged(version) => self.line(format_args!("ms {key} {length} T{lifetime} c C{version}")),
        };
        it.wire.extend_from_slice(value);
        it.wire.extend_from_slice(b"\r\n");
        it
    }

    /// Deletes a key, whatever it holds.
    pub(super) fn delete(self, key: &str) -> Self {
        self.line(format_args!("md {key}"))
    }

    /// Deletes a key that still holds the value with this version.
    pub(super) fn delete_unchanged(self, key: &str, version: u64) -> Self {
        self.line(format_args!("md {key} C{version}"))
    }

    /// Adds one to a number and reads it. A missing one starts at `first`.
    pub(super) fn increment(self, key: &str, first: u64) -> Self {
        self.line(format_args!("ma {key} N0 J{first} v"))
    }

    /// Reads the statistics of the server.
    pub(super) fn statistics(self) -> Self {
        self.line(format_args!("stats"))
    }

    /// Logs in, on a server with `-Y`.
    pub(super) fn log_in(self, username: &str, password: &str) -> Self {
        let length = username.len() + 1 + password.len();
        let mut it = self.line(format_args!("set login 0 0 {length}"));
        it.wire.extend_from_slice(format!("{username} {password}\r\n").as_bytes());
        it
    }

    /// Returns how many answers they have.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Returns what is sent.
    pub(super) fn into_wire(self) -> Vec<u8> {
        self.wire
    }

    fn line(mut self, command: std::fmt::Arguments<'_>) -> Self {
        // Writing to memory does not fail.
        let _ = std::io::Write::write_fmt(&mut self.wire, command);
        self.wire.extend_from_slice(b"\r\n");
        self.count += 1;
        self
    }
}

/// Takes the next answer from what was received; `None` if it is not complete.
///
/// # Errors
///
/// The connection cannot be used any more.
pub(super) fn take_answer(received: &mut BytesMut) -> Result<Option<Answer>, Unreadable> {
    let Some((line, length)) = line_at(received, 0)? else { return Ok(None) };
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let answer = match words.next().unwrap_or_default() {
        "VA" => return take_value(received),
        "STAT" | "END" => return take_statistics(received),
        "HD" => Answer::Done(words.find_map(|word| word.strip_prefix('c')?.parse().ok()).unwrap_or_default()),
        "EN" | "NF" => Answer::Absent,
        "NS" | "EX" => Answer::Refused,
        "SERVER_ERROR" => Answer::Failed(shown(&line["SERVER_ERROR".len()..])),
        // The answer to one command: another program wrote a value that is no number.
        "CLIENT_ERROR" if line.ends_with("non-numeric value") => Answer::Failed(shown(&line["CLIENT_ERROR".len()..])),
        "STORED" => Answer::LoggedIn,
        _ => return Err(Unreadable(format!("the server does not understand a command: {}", shown(line)))),
    };
    received.advance(length);
    Ok(Some(answer))
}

fn take_value(received: &mut BytesMut) -> Result<Option<Answer>, Unreadable> {
    let Some((line, header)) = line_at(received, 0)? else { return Ok(None) };
    let mut words = line.split(' ').skip(1);
    let length = words.next().and_then(|length| length.parse().ok()).filter(|length| *length <= LONGEST_VALUE);
    let length = length.ok_or_else(|| Unreadable("a value is too long".to_owned()))?;
    let (mut version, mut left) = (0, None);
    for word in words {
        match word.split_at_checked(1) {
            Some(("c", number)) => version = number.parse().unwrap_or_default(),
            // It is -1 without an expiry.
            Some(("t", number)) => left = number.parse().ok(),
            _ => {}
        }
    }
    if received.len() < header + length + 2 {
        received.reserve(header + length + 2 - received.len());
        return Ok(None);
    }
    received.advance(header);
    let value = received.split_to(length).freeze();
    if !received.starts_with(b"\r\n") {
        return Err(Unreadable("a value has another length than its answer says".to_owned()));
    }
    received.advance(2);
    Ok(Some(Answer::Value(Stored { value, version, left })))
}

fn take_statistics(received: &mut BytesMut) -> Result<Option<Answer>, Unreadable> {
    let (mut at, mut found) = (0, Vec::new());
    loop {
        let Some((line, length)) = line_at(received, at)? else { return Ok(None) };
        at += length;
        if line == "END" {
            received.advance(at);
            return Ok(Some(Answer::Statistics(found)));
        }
        let named = line.strip_prefix("STAT ").and_then(|line| line.split_once(' '));
        let (name, value) = named.ok_or_else(|| Unreadable("a line of statistics is unreadable".to_owned()))?;
        if found.len() == MOST_STATISTICS {
            return Err(Unreadable("the statistics are too long".to_owned()));
        }
        found.push((name.to_owned(), value.to_owned()));
    }
}

/// Returns the line at a position, and its length with its end.
fn line_at(received: &BytesMut, at: usize) -> Result<Option<(&str, usize)>, Unreadable> {
    let rest = &received[at..];
    let Some(length) = rest.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
        let too_long = rest.len() >= LONGEST_LINE;
        return if too_long { Err(Unreadable("a line is too long".to_owned())) } else { Ok(None) };
    };
    let line = rest[..length].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    line.map(|line| Some((line, length + 1))).ok_or_else(|| Unreadable("a line is unreadable".to_owned()))
}

/// Returns a text of the server as a log may show it.
fn shown(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(value: &'static str, version: u64, left: Option<u64>) -> Answer {
        Answer::Value(Stored { value: Bytes::from_static(value.as_bytes()), version, left })
    }

    fn all(mut received: BytesMut) -> Result<Vec<Answer>, Unreadable> {
        let mut found = Vec::new();
        while let Some(answer) = take_answer(&mut received)? {
            found.push(answer);
        }
        Ok(found)
    }

    /// What Memcached 1.6.18 answered.
    const ANSWERS: &[u8] =
        b"VA 3 c2 t10\r\nabd\r\nVA 0 c6 t-1\r\n\r\nVA 6 c7 t5\r\nEN\r\nHD\r\nEN\r\nHD c1\r\nHD\r\nNS c0\r\n\
        EX\r\nNF c0\r\nSERVER_ERROR out of memory storing object\r\nSTORED\r\nSTAT pid 12\r\nSTAT uptime 2\r\n\
        END\r\n";

    fn expected() -> Vec<Answer> {
        let statistics = [("pid", "12"), ("uptime", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        vec![
            value("abd", 2, Some(10)),
            value("", 6, None),
            value("EN\r\nHD", 7, Some(5)),
            Answer::Absent,
            Answer::Done(1),
            Answer::Done(0),
            Answer::Refused,
            Answer::Refused,
            Answer::Absent,
            Answer::Failed("out of memory storing object".to_owned()),
            Answer::LoggedIn,
            Answer::Statistics(statistics.to_vec()),
        ]
    }

    #[test]
    fn answers_are_read_whatever_their_parts_are() {
        assert_eq!(all(ANSWERS.into()).unwrap(), expected());
        for cut in 0..ANSWERS.len() {
            let (mut received, mut found) = (BytesMut::new(), Vec::new());
            for part in [&ANSWERS[..cut], &ANSWERS[cut..]] {
                received.extend_from_slice(part);
                while let Some(answer) = take_answer(&mut received).unwrap() {
                    found.push(answer);
                }
            }
            assert_eq!(found, expected(), "cut at {cut}");
        }
    }

    #[test]
    fn an_answer_that_belongs_to_no_command_ends_the_connection() {
        for text in
            ["ERROR\r\n", "CLIENT_ERROR unauthenticated\r\n", "VA x\r\n", "VA 99999999999\r\n", "\r\n", "STAT\r\n"]
        {
            assert!(all(text.as_bytes().into()).is_err(), "{text:?}");
        }
        assert!(all(BytesMut::from(&b"VA 3 c1\r\nabcdef"[..])).is_err());
        assert!(all(BytesMut::from(&[b'x'; LONGEST_LINE][..])).is_err());
        let endless = "STAT a b\r\n".repeat(MOST_STATISTICS + 1);
        assert!(all(endless.as_bytes().into()).is_err());
    }

    #[test]
    fn commands_have_the_form_of_the_protocol() {
        let requests = Requests::default()
            .get("a")
            .set("a", b"xy", Some(7), Condition::Absent)
            .set("a", b"", None, Condition::Unchanged(5))
            .set("a", b"z", Some(1), Condition::Any)
            .delete("a")
            .delete_unchanged("a", 5)
            .increment("n", 10)
            .log_in("edge", "secret");
        assert_eq!(requests.count(), 8);
        let wire = String::from_utf8(requests.into_wire()).unwrap();
        assert_eq!(
            wire,
            "mg a v c t\r\nms a 2 T7 c ME\r\nxy\r\nms a 0 T0 c C5\r\n\r\nms a 1 T1 c\r\nz\r\nmd a\r\nmd a C5\r\nma n N0 J10 v\r\n\
             set login 0 0 11\r\nedge secret\r\n"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(BytesMut::from(&bytes[..]));
        }

        #[test]
        fn any_text_of_an_answer_is_read_or_refused(text in "(VA|HD|STAT|END|EN)[ 0-9a-z\r\n-]{0,60}") {
            let _ = all(BytesMut::from(text.as_bytes()));
        }
    }
}
