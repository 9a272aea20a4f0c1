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
