//! The role of the server behind a connection: only the answers of a primary are used.
//!
//! A primary that was demoted, while its link to the others was cut or the name in our configuration moved to another
//! server, goes on answering reads on the connections that it has, from data that no event evicts any more. So the role
//! is asked again while a connection is used: one command in [`ASK_EVERY`] carries the question, and every command that
//! finds the last answer older than [`TRUSTED`] carries it too. An answer of the server is used only if it was a
//! primary at most [`TRUSTED`] before the command was sent. No timer decides, so a process that lacks processor time
//! trusts nobody for longer, and calls Genesys no sooner.
//!
//! A new connection may lead to another server than the old ones do, and events may take effect there. So from then on the
//! other connections ask before their next answer is used, too. Where sentinels named another master for it, the others
//! are of no use any more: a master that is cut off from its sentinels goes on calling itself one.
//!
//! The question is `HELLO`, which needs no permission (`ROLE` and `INFO` are among the dangerous commands). A server or a
//! proxy that does not know it is trusted, with a warning. A cluster needs no question: a demoted node answers `MOVED`,
//! and one that is cut off answers `CLUSTERDOWN` after `cluster-node-timeout`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::Instant;

use super::reply::bytes;
use super::sentinels::Master;

/// How long a server that was a primary is taken for one.
const TRUSTED: Duration = Duration::from_secs(1);

/// How often the role is asked while a connection is in use.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// The newest of some connections to the same server. Earlier answers of the others count no longer.
#[derive(Debug)]
pub(super) struct NewestConnection {
    start: Instant,
    /// When it was made, in microseconds since `start`.
    at: AtomicU64,
    /// The master that sentinels named last, if there are any, and when they were asked, in microseconds since `start`.
    master: Mutex<(u64, Option<Master>)>,
    /// How often that was another one than before.
    moves: AtomicU64,
}

impl NewestConnection {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            at: AtomicU64::new(0),
            master: Mutex::new((0, None)),
            moves: AtomicU64::new(0),
        })
    }
}

/// Decides which commands carry the question. All times are in microseconds since `newest.start`.
#[derive(Debug)]
pub(super) struct RoleCheck {
    newest: Arc<NewestConnection>,
    /// From when on a command may have to carry the question.
    ask_at: AtomicU64,
    /// When the newest question was sent to which the server answered that it is a primary.
    confirmed: AtomicU64,
}

impl RoleCheck {
    /// Creates the check of a connection to one server at a time, to which others lead, too.
    pub(super) fn new(newest: &Arc<NewestConnection>) -> Self {
        Self { newest: Arc::clone(newest), ask_at: AtomicU64::new(0), confirmed: AtomicU64::new(0) }
    }

    /// Creates the check of a node of a cluster, which asks nothing.
    pub(super) fn off() -> Self {
        Self { ask_at: AtomicU64::new(u64::MAX), ..Self::new(&NewestConnection::new()) }
    }

    /// Returns whether the role is asked at all.
    pub(super) fn is_on(&self) -> bool {
        self.ask_at.load(Ordering::Relaxed) != u64::MAX
    }

    /// Returns whether a command that is sent now must carry the question.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let (now, ask_at) = (self.micros(now), self.ask_at.load(Ordering::Relaxed));
        let confirmed = self.confirmed.load(Ordering::Relaxed);
        if confirmed < self.newest.at.load(Ordering::Acquire) {
            return true;
        }
        if now < ask_at {
            return false;
        }
        let trusted_until = confirmed.saturating_add(micros(TRUSTED));
        if now >= trusted_until {
            return true;
        }
        // One of those that come now asks, for all of them.
        let next = (now + micros(ASK_EVERY)).min(trusted_until);
        self.ask_at.compare_exchange(ask_at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Records that the server was a primary after `asked`.
    pub(super) fn confirm(&self, asked: Instant) {
        let asked = self.micros(asked);
        self.confirmed.fetch_max(asked, Ordering::Relaxed);
        self.ask_at.fetch_max(asked + micros(ASK_EVERY), Ordering::Relaxed);
    }

    /// Records that a connection was made, before it is used: to this `master`, if there are sentinels, which were asked at
    /// `asked`. Returns the number of moves with which the connection is of use.
    pub(super) fn connected(&self, asked: Instant, master: Option<&Master>) -> u64 {
        let newest = &self.newest;
        if !self.is_on() {
            return 0;
        }
        newest.at.fetch_max(self.micros(Instant::now()), Ordering::AcqRel);
        let (asked, mut last) = (self.micros(asked), newest.master.lock());
        let (mut moves, is_other) = (newest.moves.load(Ordering::Acquire), last.1.as_ref() != master);
        if asked < last.0 {
            return if is_other { u64::MAX } else { moves };
        }
        if is_other {
            last.1 = master.cloned();
            moves += 1;
            newest.moves.store(moves, Ordering::Release);
        }
        last.0 = asked;
        moves
    }

    /// Returns whether sentinels named another master since the connections had moved this often.
    pub(super) fn has_moved(&self, moves: u64) -> bool {
        self.newest.moves.load(Ordering::Acquire) != moves
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.newest.start))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Asks a server for its role, and whether it answers `PING`. Returns whether it named its role.
///
/// # Errors
///
/// Also `READONLY`: the server is a replica.
pub(super) async fn ask(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    let (answers, has_role) = ask_with(connection, redis::pipe().cmd("PING")).await?;
    answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
    Ok(has_role)
}

/// Sends commands to a server together with the question. Returns the answer to each, which may be an error, and whether the
/// server named its role.
///
/// # Errors
///
/// Also `READONLY`: the server is a replica.
pub(super) async fn ask_with(
    connection: &mut MultiplexedConnection,
    commands: &Pipeline,
) -> RedisResult<(Vec<Value>, bool)> {
    let mut all = redis::pipe();
    all.cmd("HELLO");
    for cmd in commands.cmd_iter() {
        all.add_command(cmd.clone());
    }
    let mut answers = connection.send_packed_commands(&all, 0, all.len()).await?;
    let has_role = check(if answers.is_empty() { Value::Nil } else { answers.remove(0) })?;
    Ok((answers, has_role))
}

/// Checks the answer to the question; returns whether it names a role.
///
/// # Errors
///
/// `READONLY`: the server is a replica.
pub(super) fn check(hello: Value) -> RedisResult<bool> {
    let mut fields = match hello {
        // By the version of the protocol.
        Value::Map(pairs) => pairs,
        Value::Array(items) => pairs(items),
        _ => Vec::new(),
    }
    .into_iter();
    match fields.find_map(|(name, value)| bytes(name).is_some_and(|name| name == b"role").then(|| bytes(value))) {
        Some(Some(role)) if role == b"master" => Ok(true),
        Some(_) => Err(RedisError::from((ErrorKind::Server(ServerErrorKind::ReadOnly), "the server is a replica"))),
        None => Ok(false),
    }
}

fn pairs(items: Vec<Value>) -> Vec<(Value, Value)> {
    let mut items = items.into_iter();
    std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn one_command_in_a_while_asks_and_each_without_a_recent_answer() {
        let (check, start) = (RoleCheck::new(&NewestConnection::new()), Instant::now());
        check.confirm(start);
        let asks = |after: Duration| check.is_due(start + after);
        assert!(!asks(ASK_EVERY - MILLISECOND));
        assert_eq!([asks(ASK_EVERY), asks(ASK_EVERY), asks(TRUSTED - MILLISECOND)], [true, false, false]);
        assert!((0..3).all(|_| asks(TRUSTED)), "it was not answered");
        check.confirm(start + TRUSTED);
        assert!(!asks(TRUSTED + ASK_EVERY - MILLISECOND));
        assert!(asks(TRUSTED + ASK_EVERY));
    }

    /// A question that is not answered makes no earlier answer valid for longer.
    #[tokio::test(start_paused = true)]
    async fn an_unanswered_question_extends_no_trust() {
        let (check, start) = (RoleCheck::new(&NewestConnection::new()), Instant::now());
        check.confirm(start);
        assert!(check.is_due(start + TRUSTED - MILLISECOND));
        assert!(check.is_due(start + TRUSTED));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_ends_the_trust_in_the_others() {
        let newest = NewestConnection::new();
        let (reads, events) = (RoleCheck::new(&newest), RoleCheck::new(&newest));
        reads.confirm(Instant::now());
        assert!(!reads.is_due(Instant::now()));
        tokio::time::advance(MILLISECOND).await;
        let asked = Instant::now();
        tokio::time::advance(MILLISECOND).await;
        events.connected(asked, None);
        assert!(reads.is_due(Instant::now()));
        reads.confirm(asked);
        assert!(reads.is_due(Instant::now()), "it was asked before");
        reads.confirm(Instant::now());
        assert!(!reads.is_due(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn only_connections_to_the_master_that_was_named_last_are_of_use() {
        let newest = NewestConnection::new();
        let (reads, events) = (RoleCheck::new(&newest), RoleCheck::new(&newest));
        let (old, new) = (("old".to_owned(), 6379), ("new".to_owned(), 6379));
        let start = Instant::now();
        let (read, event) = (reads.connected(start, Some(&old)), events.connected(start, Some(&old)));
        assert!(!reads.has_moved(read) && !events.has_moved(event));
        let event = events.connected(start + MILLISECOND * 2, Some(&new));
        assert!(reads.has_moved(read) && !events.has_moved(event));
        let late = reads.connected(start + MILLISECOND, Some(&old));
        assert!(reads.has_moved(late) && !events.has_moved(event), "the sentinels were asked before");
        let read = reads.connected(start + MILLISECOND, Some(&new));
        assert!(!reads.has_moved(read) && !events.has_moved(event));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_not_asked() {
        let (check, start) = (RoleCheck::off(), Instant::now());
        assert!(!check.is_due(start + TRUSTED * 100));
        check.confirm(start);
        assert!(!check.has_moved(check.connected(start, None)));
        assert!(!check.is_due(start + TRUSTED * 100));
    }

    #[test]
    fn only_a_primary_passes_in_both_versions_of_the_protocol() {
        let read = |reply: &str| check(redis::parse_redis_value(reply.as_bytes()).unwrap());
        for form in ["*4\r\n$5\r\nproto\r\n:2\r\n$4\r\nrole\r\n", "%2\r\n$5\r\nproto\r\n:3\r\n$4\r\nrole\r\n"] {
            assert_eq!(read(&format!("{form}$6\r\nmaster\r\n")), Ok(true));
            let replica = read(&format!("{form}$7\r\nreplica\r\n")).unwrap_err();
            assert_eq!(replica.code(), Some("READONLY"));
        }
        for unknown in ["-ERR unknown command 'HELLO'\r\n", "*0\r\n", "+OK\r\n"] {
            assert_eq!(read(unknown), Ok(false));
        }
    }
}
