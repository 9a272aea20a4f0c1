//! The protocol steps that touch more than one key: one Lua script each, in one hash slot.
//!
//! `apply.lua` mirrors [`raise`](crate::store::fence::raise) and [`repeat`](crate::store::fence::repeat) line by line;
//! the contract suite and a test of random histories compare the two. Scripts never read a clock: times are arguments.
//! The format of the values is in [`record`](super::record). A MAC is an argument, and that of a
//! deletion is kept in its fence: no script can compute one.
//!
//! KEYS are always the entry key K, `fence:{K}`, `lock:{K}`; for `apply` also `seen:{K}:…` of the event and, for a
//! replay, that of the replayed event. The last of ARGV is always the kind of channel on which a change of K is
//! announced: `s` (sharded) or `p` (plain).
//!
//! A key of another Redis type is corrupt: the scripts delete it and continue as if it were absent.

use std::sync::LazyLock;

use redis::{Cmd, Value};

use crate::domain::{Digest, Key};
use crate::store::LeaseTarget;

use super::error::CommandError;

/// A script, and the hash by which Redis knows it after it was loaded.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    sha: String,
}

impl Script {
    /// Creates a script from its text and the functions that all scripts share.
    fn new(text: &str) -> Self {
        Self::alone(&[include_str!("scripts/common.lua"), text].concat())
    }

    /// Creates a script that uses no shared function.
    fn alone(text: &str) -> Self {
        Self { text: text.to_owned(), sha: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Runs the script by its name, or else by its text: a server that does not have it has run nothing.
    pub(super) async fn run<F>(&self, send: impl Fn(Cmd) -> F) -> Result<Value, CommandError>
    where
        F: Future<Output = Result<Value, CommandError>>,
    {
        match send(self.by_name()).await {
            Err(CommandError::NoScript) => send(self.by_text()).await,
            answer => answer,
        }
    }

    /// Returns the command that runs the loaded script.
    fn by_name(&self) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha);
        cmd
    }

    /// Returns the command that loads the script and runs it.
    fn by_text(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(&self.text);
        cmd
    }
}

/// The names of one customer's keys.
#[derive(Debug)]
pub(super) struct KeyNames<'a> {
    /// The entry key K.
    pub(super) key: &'a str,
    /// `fence:{K}`.
    pub(super) fence: String,
    /// `lock:{K}`.
    pub(super) lock: String,
}

impl<'a> KeyNames<'a> {
    /// Returns the names that belong to an entry key.
    pub(super) fn of(key: &'a Key) -> Self {
        let key = key.as_str();
        Self { key, fence: format!("fence:{{{key}}}"), lock: format!("lock:{{{key}}}") }
    }

    /// Returns `seen:{K}:<32 hex>`.
    pub(super) fn seen(&self, event: Digest) -> String {
        format!("seen:{{{}}}:{event}", self.key)
    }
}

/// Returns the name by which scripts know where a lease is.
pub(super) const fn script_name(target: LeaseTarget) -> &'static str {
    match target {
        LeaseTarget::Key => "key",
        LeaseTarget::Lock(_) => "lock",
    }
}

/// Grants a lease. ARGV: what the caller saw (`absent`, `token`, `dead`, `corrupt`), the token or bytes that it saw,
/// the lease's token, its lifetime in ms, its value, now, the lifetime of tombstones in ms, a token for a tombstone
/// that is restored.
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/lease.lua")));

/// Fills. ARGV: where the lease is (`key`, `lock`), its token, the token of the base, the record, its lifetime in ms.
pub(super) static FILL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/fill.lua")));

/// Releases a lease. ARGV: where the lease is, its token.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/release.lua")));

/// Applies an event. KEYS[4] is the mark of the event, KEYS[5] that of the event that it replays. ARGV: what the event
/// does (`U`, `C`, `D`), its `modified`, its `at` and the precision of that, whether it is forced, why it is delivered
/// once more, whether it lacks a `modified` that it should have, now, the lifetimes of fence, tombstone and mark in ms,
/// a token for a tombstone, whether a duplicate writes (for `WAIT`), the text of the tombstone with its MAC or
/// nothing, the values of both marks: `1`, or a MAC, without which a mark counts for nothing; the channel of
/// applied changes.
pub(super) static APPLY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/apply.lua")));

/// Writes a key and removes it. KEYS is that key alone.
pub(super) static PROBE: LazyLock<Script> = LazyLock::new(|| Script::alone(include_str!("scripts/probe.lua")));

/// Raises the generations of a tenant. KEYS is their hash alone. ARGV: the tenant, now, `soft` or `hard`, the lifetime of
/// the hash in ms.
pub(super) static CLEAR: LazyLock<Script> = LazyLock::new(|| Script::alone(include_str!("scripts/clear.lua")));

/// Returns the value of K, its remaining ms, the fence, the lock, its remaining ms.
pub(super) static INSPECT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/inspect.lua")));
