//! The steps of the protocol that touch more than one key: one script each, in one hash slot.
//!
//! `apply` mirrors [`raise`](crate::store::fence::raise) and [`repeat`](crate::store::fence::repeat) line by line; the
//! contract suite and a test of random histories compare the two. Scripts never read a clock: times come as arguments.
//! What they keep beside K is told in `record.rs`.
//!
//! KEYS are always K, `fence:{K}`, `lock:{K}` and, for `apply`, the event's `seen:{K}:…`, and of a replay also that of
//! the event itself.

use std::sync::LazyLock;

use redis::Cmd;

use crate::domain::{Digest, Key};

/// A script and the name by which Redis knows it once it was loaded.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    sha: String,
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let sha = redis::Script::new(&text).get_hash().to_owned();
        Self { text, sha }
    }

    /// Makes the command that runs a loaded script.
    pub(super) fn by_name(&self) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha);
        cmd
    }

    /// Makes the command that loads a script and runs it.
    pub(super) fn by_text(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(&self.text);
        cmd
    }
}

/// The names of one customer's keys.
#[derive(Debug)]
pub(super) struct Names<'a> {
    /// K.
    pub(super) key: &'a str,
    /// `fence:{K}`.
    pub(super) fence: String,
    /// `lock:{K}`.
    pub(super) lock: String,
}

impl<'a> Names<'a> {
    /// Returns the names that belong to K.
    pub(super) fn of(key: &'a Key) -> Self {
        let key = key.as_str();
        Self { key, fence: format!("fence:{{{key}}}"), lock: format!("lock:{{{key}}}") }
    }

    /// Returns `seen:{K}:<32 hex>`.
    pub(super) fn seen(&self, event: Digest) -> String {
        format!("seen:{{{}}}:{event}", self.key)
    }
}

/// What several scripts need: reading (what somebody else wrote there in another type is corrupt: it is removed, and a
/// miss), the token and kind of a value, a fence's parts, and how a change of K is announced:
/// the last argument of every script says on which kind of channel (`s` for a sharded one).
const COMMON: &str = r"
local K, F, L = KEYS[1], KEYS[2], KEYS[3]
local function try(command, key, ...)
  local v = redis.pcall(command, key, ...)
  if type(v) ~= 'table' then return v, false end
  if string.find(v.err, 'WRONGTYPE', 1, true) then return false, true end
  return redis.call(command, key, ...), false
end
local function read(command, key, ...)
  local v, foreign = try(command, key, ...)
  if foreign then redis.call('DEL', key) end
  return v
end
local function peek(key)
  local v, foreign = try('GET', key)
  return foreign and 'of another type' or v or ''
end
local function ours(v) return v and string.byte(v, 1) == 1 end
local function kind(v) return ours(v) and string.sub(v, 2, 2) or nil end
local function token(v) return ours(v) and string.sub(v, 3, 18) or nil end
local function int(n) return n and string.format('%.0f', n) or '' end
local function read_fence()
  local f = read('GET', F)
  if not f then return nil end
  local m, at, ap, newest, doubt, unstamped, raised =
    string.match(f, '^1|([^|]*)|([^|]*)|([^|]*)|(%u)|([01])|([01])|(%-?%d+)$')
  if not m then return nil end
  return { m = tonumber(m), at = tonumber(at), ap = ap, newest = newest, doubt = doubt == '1',
           unstamped = unstamped == '1', raised = tonumber(raised), text = f }
end
local function fence_text(f)
  return table.concat({ '1', int(f.m), int(f.at), f.at and f.ap or '', f.newest, f.doubt and '1' or '0',
                        f.unstamped and '1' or '0', int(f.raised) }, '|')
end
local function announce()
  redis.call(ARGV[#ARGV] == 's' and 'SPUBLISH' or 'PUBLISH', K, '')
end
local function tombstone(tok, at, ap, written)
  return string.char(1) .. 'T' .. tok .. int(at) .. '|' .. (at and ap or '') .. '|' .. int(written)
end
";

/// ARGV: what was seen (`absent`, `token`, `dead`, `corrupt`), the token or bytes seen, the lease's token, its
/// lifetime in ms, its value, now, the tombstones' lifetime in ms, a token for one that is put back.
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        COMMON,
        r"
local seen, base, own, ttl, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now, tombstone_ttl = tonumber(ARGV[6]), tonumber(ARGV[7])
local v = read('GET', K)
local function grant(where)
  local f = read_fence()
  return { where, f and f.text or '' }
end
if not v then
  local f = read_fence()
  if f and f.newest == 'D' then
    local left = f.raised + tombstone_ttl - now
    if left > 0 then
      local t = tombstone(ARGV[8], f.at, f.ap, f.raised)
      redis.call('SET', K, t, 'PX', int(left))
      return { 'changed', t }
    end
  end
  redis.call('SET', K, value, 'PX', ttl)
  return grant('key')
end
if kind(v) == 'L' then
  return { 'held', token(v), token(v), redis.call('PTTL', K) }
end
if (seen == 'token' or seen == 'dead') and token(v) == base then
  local l = read('GET', L)
  if l then return { 'held', l, base, redis.call('PTTL', L) } end
  if seen == 'token' then
    redis.call('SET', L, own, 'PX', ttl)
    return grant('lock')
  end
  redis.call('SET', K, value, 'PX', ttl)
  return grant('key')
end
if seen == 'corrupt' and v == base then
  redis.call('SET', K, value, 'PX', ttl)
  return grant('key')
end
return { 'changed', v }
",
    ])
});

/// ARGV: where the lease stands (`key`, `lock`), its token, the base's token, the record, its lifetime.
pub(super) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        COMMON,
        r"
local where, own, base, record, lifetime = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local v = read('GETRANGE', K, 0, 17)
local locked = where == 'lock' and read('GET', L) == own
local may
if where == 'key' then may = token(v) == own else may = locked and token(v) == base end
if may then
  if where == 'lock' then
    local f = read_fence()
    if f and f.newest == 'D' then
      f.newest, f.doubt = 'X', true
      redis.call('SET', F, fence_text(f), 'KEEPTTL')
    end
  end
  redis.call('SET', K, record, 'PX', lifetime)
end
if locked then redis.call('DEL', L) end
announce()
return may and 1 or 0
",
    ])
});

/// ARGV: where the lease stands, its token.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        COMMON,
        r"
if ARGV[1] == 'key' then
  if token(read('GETRANGE', K, 0, 17)) == ARGV[2] then redis.call('DEL', K) end
elseif read('GET', L) == ARGV[2] then
  redis.call('DEL', L)
end
announce()
return 1
",
    ])
});

/// KEYS[4] is the event's mark, KEYS[5] that of the event whose replay it is. ARGV: what the event does (`U`, `C`,
/// `D`), its `modified`, its `at` and precision, forced, why it is handed out once more, lacks a `modified` that it
/// should have, now, the lifetimes of fence, tombstone and mark in ms, a token for a tombstone, whether a duplicate
/// writes (for `WAIT`).
pub(super) static APPLY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        COMMON,
        r"
local does, m, at, ap = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local asked, again, lacks, now = ARGV[5] == '1', ARGV[6], ARGV[7] == '1', tonumber(ARGV[8])
local force = asked and again ~= 'replayed'
local fence_ttl, tombstone_ttl, dedup = tonumber(ARGV[9]), ARGV[10], ARGV[11]
if redis.call('EXISTS', KEYS[4]) == 1 then
  if ARGV[13] == '1' then redis.call('SET', KEYS[4], '1', 'KEEPTTL') end
  return 'duplicate'
end

local function compare(a, pa, b, pb)
  local unit = (pa == 's' or pb == 's') and 1000 or 1
  a, b = math.floor(a / unit), math.floor(b / unit)
  return a > b and 1 or (a < b and -1 or 0)
end
local function latest(a, pa, b, pb)
  if not a then return b, pb end
  if not b then return a, pa end
  local order = compare(a, pa, b, pb)
  if order > 0 then return a, pa end
  if order < 0 then return b, pb end
  if pb == 's' and pa ~= 's' then return b, pb end
  return a, pa
end
local function join(a, b)
  if a == 'U' then return b end
  if b == 'U' then return a end
  if a == b then return a end
  return 'X'
end

local v = read('GETRANGE', K, 0, 99)
local stood = kind(v)
local known = read_fence()
local fenced = known ~= nil
if not known and stood == 'T' then
  local tat, tap = string.match(string.sub(v, 19), '^([^|]*)|([^|]*)|')
  known = { at = tonumber(tat), ap = tap, newest = 'D', doubt = true, unstamped = true, raised = now }
end

local raised, place, outrun, whole = nil, 'clear', false, true
local remembered = KEYS[5] and redis.call('EXISTS', KEYS[5]) == 1
local order = nil
if known and at and known.at then order = compare(at, ap, known.at, known.ap) end
local may_bury = again == '' or (again == 'restored' and order ~= nil) or order == -1
local holds = remembered and fenced
  and (not m or (known.m and m <= known.m)) and (not at or (order and order <= 0))
  and (order == -1 or ((does ~= 'D' or known.newest == 'D') and (not lacks or known.unstamped)))
local function unburied(known)
  whole = false
  local high = m and (not known.m or m > known.m) and m or known.m
  return { m = high, at = known.at, ap = known.ap, newest = known.newest, doubt = true,
           unstamped = known.unstamped, raised = math.max(now, known.raised) }
end
if holds then
  raised = known
  outrun = order == -1
  if known.newest == 'D' then place = does == 'D' and 'bury' or 'keep' end
elseif not known then
  if does == 'D' and again ~= '' then
    raised = unburied({ newest = 'U', unstamped = false, raised = now })
  else
    if does == 'D' then place = 'bury' end
    raised = { m = m, at = at, ap = ap, newest = does, doubt = false, unstamped = lacks, raised = now }
  end
elseif does == 'D' and known.newest ~= 'D' and not may_bury then
  raised = unburied(known)
else
  local newest
  if order == 1 then newest = does
  elseif order == -1 then newest = known.newest
  elseif order == 0 then newest = join(known.newest, does)
  elseif does == 'U' then newest = known.newest
  else newest = does end
  outrun = order == -1
  local removes = known.newest == 'D' and newest ~= 'D'
  local overtaken = does == 'D' and newest ~= 'D'
  local rises = m and (not known.m or m > known.m)
  local rests = rises and order == 1
  local tie = m and known.m and m == known.m
  if newest == 'D' and does == 'D' then place = 'bury'
  elseif newest == 'D' and not force then place = 'keep' end
  local high = known.m
  if rises then high = m end
  local lat, lap = latest(known.at, known.ap, at, ap)
  raised = { m = high, at = lat, ap = lap, newest = (force and newest == 'D') and 'X' or newest,
             doubt = removes or overtaken or force or newest == 'X' or tie or (known.doubt and not rests),
             unstamped = lacks or (known.unstamped and not rests), raised = math.max(now, known.raised) }
end

local life = math.max(fence_ttl, redis.call('PTTL', F))
redis.call('SET', F, fence_text(raised), 'PX', int(life))
local had_lock = redis.call('DEL', L)
if place == 'bury' then
  redis.call('SET', K, tombstone(ARGV[12], raised.at, raised.ap, now), 'PX', tombstone_ttl)
elseif place == 'clear' or stood ~= 'T' then
  redis.call('DEL', K)
end
if whole then redis.call('SET', KEYS[4], '1', 'PX', dedup) end
if KEYS[5] and whole and (remembered or not asked) then redis.call('SET', KEYS[5], '1', 'PX', dedup) end
if stood == 'L' or had_lock == 1 then announce() end
if outrun then return 'outrun' end
return (stood and stood ~= 'L') and 'applied' or 'absent'
",
    ])
});

/// Returns K, its remaining ms, the fence, the lock, its remaining ms.
pub(super) static INSPECT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&[
        COMMON,
        r"
return { peek(K), redis.call('PTTL', K), peek(F),
         peek(L), redis.call('PTTL', L) }
",
    ])
});
