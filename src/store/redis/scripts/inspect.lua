return { peek(K), redis.call('PTTL', K), peek(F),
         peek(L), redis.call('PTTL', L) }
