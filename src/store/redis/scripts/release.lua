if ARGV[1] == 'key' then
  if token(read('GETRANGE', K, 0, 17)) == ARGV[2] then redis.call('DEL', K) end
elseif read('GET', L) == ARGV[2] then
  redis.call('DEL', L)
end
announce()
return 1
