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
  local m, at, ap, newest, doubt, unstamped, raised, sealed =
    string.match(f, '^1|([^|]*)|([^|]*)|([^|]*)|(%u)|([01])|([01])|(%-?%d+)|?(.*)$')
  if not m then return nil end
  return { m = tonumber(m), at = tonumber(at), ap = ap, newest = newest, doubt = doubt == '1',
           unstamped = unstamped == '1', raised = tonumber(raised), sealed = sealed, text = f }
end
local function fence_text(f)
  local text = table.concat({ '1', int(f.m), int(f.at), f.at and f.ap or '', f.newest, f.doubt and '1' or '0',
                              f.unstamped and '1' or '0', int(f.raised) }, '|')
  return f.newest == 'D' and f.sealed ~= '' and text .. '|' .. f.sealed or text
end
local function written(tombstone) return tonumber(string.match(tombstone, '^[^|]*|[^|]*|(%-?%d+)')) end
local function timely(written, ttl, now)
  return written and written + ttl > now and written <= now + 300000
end
local function announce()
  redis.pcall(ARGV[#ARGV] == 's' and 'SPUBLISH' or 'PUBLISH', K, '')
end
local function tombstone(tok, f, time)
  local text = int(f.at) .. '|' .. (f.at and f.ap or '') .. '|' .. int(time)
  return string.char(1) .. 'T' .. tok .. (f.sealed ~= '' and f.sealed or text)
end
