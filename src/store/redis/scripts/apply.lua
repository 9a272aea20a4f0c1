local does, m, at, ap = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local asked, again, lacks, now = ARGV[5] == '1', ARGV[6], ARGV[7] == '1', tonumber(ARGV[8])
local force = asked and again ~= 'replayed'
local fence_ttl, tombstone_ttl, dedup = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local function marked(key, mark)
  local found = read('GET', key)
  return found and (mark == '1' or found == mark)
end
if marked(KEYS[4], ARGV[15]) then
  if ARGV[13] == '1' then redis.call('SET', KEYS[4], ARGV[15], 'KEEPTTL') end
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
local present = kind(v)
if present == 'T' then
  if not timely(written(string.sub(v, 19)), tonumber(tombstone_ttl), now) then present = 'X' end
end
local known = read_fence()
local fenced = known ~= nil
if not known and present == 'T' then
  local tat, tap = string.match(string.sub(v, 19), '^([^|]*)|([^|]*)|')
  known = { at = tonumber(tat), ap = tap, newest = 'D', doubt = true, unstamped = true, raised = now,
            sealed = string.match(string.sub(v, 19), '^.*|%-?%d+|%x+$') or '' }
end

local raised, place, outrun, whole = nil, 'clear', false, true
local remembered = KEYS[5] and marked(KEYS[5], ARGV[16])
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
  if known.newest == 'D' then place = does == 'D' and 'tombstone' or 'keep' end
elseif not known then
  if does == 'D' and again ~= '' then
    raised = unburied({ newest = 'U', unstamped = false, raised = now })
  else
    if does == 'D' then place = 'tombstone' end
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
  if newest == 'D' and does == 'D' then place = 'tombstone'
  elseif newest == 'D' and not force then place = 'keep' end
  local high = known.m
  if rises then high = m end
  local lat, lap = latest(known.at, known.ap, at, ap)
  raised = { m = high, at = lat, ap = lap, newest = (force and newest == 'D') and 'X' or newest,
             doubt = removes or overtaken or force or newest == 'X' or tie or (known.doubt and not rests),
             unstamped = lacks or (known.unstamped and not rests), raised = math.max(now, known.raised) }
end

local sealed, was = ARGV[14], known and known.newest == 'D' and known.sealed or ''
local is_newest = raised.at == at and (not at or raised.ap == ap)
raised.sealed = does == 'D' and (was == '' or is_newest) and sealed or was

local life = math.max(fence_ttl, redis.call('PTTL', F))
redis.call('SET', F, fence_text(raised), 'PX', int(life))
local had_lock = redis.call('DEL', L)
if place == 'tombstone' then
  redis.call('SET', K, tombstone(ARGV[12], raised, now), 'PX', tombstone_ttl)
elseif place == 'clear' or present ~= 'T' then
  redis.call('DEL', K)
end
if whole then redis.call('SET', KEYS[4], ARGV[15], 'PX', dedup) end
if KEYS[5] and whole and (remembered or not asked) then redis.call('SET', KEYS[5], ARGV[16], 'PX', dedup) end
if present == 'L' or had_lock == 1 then announce() end
redis.pcall('PUBLISH', ARGV[17], does .. K)
if outrun then return 'outrun' end
return (present and present ~= 'L') and 'applied' or 'absent'
