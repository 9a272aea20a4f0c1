local soft, hard = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+)|(%d+)$')
soft, hard = tonumber(soft) or 0, tonumber(hard) or 0
soft = math.max(tonumber(ARGV[2]), soft + 1)
if ARGV[3] == 'hard' then hard = soft end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f|%.0f', soft, hard))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
