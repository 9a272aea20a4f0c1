local seen, base, own, ttl, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now, tombstone_ttl = tonumber(ARGV[6]), tonumber(ARGV[7])
local v = read('GET', K)
local function grant(where)
  local f = read_fence()
  return { where, f and f.text or '', f and redis.call('PTTL', F) or 0 }
end
if not v then
  local f = read_fence()
  if f and f.newest == 'D' then
    local time = written(f.sealed) or f.raised
    local left = time + tombstone_ttl - now
    if timely(time, tombstone_ttl, now) then
      local t = tombstone(ARGV[8], f, f.raised)
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
