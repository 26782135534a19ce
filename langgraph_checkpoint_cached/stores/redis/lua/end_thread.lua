-- COMMIT of a delete or prune, or of the invalidation of a stale thread: releases its fences. ARGV: 4... tokens
--
-- The generation changes once more, in case a fence did not hold to the end. The thread's key is never without a
-- field in between: while a Cluster moves its slot, the key could not be created again. The lease is removed too,
-- as when the thread's key is evicted: its row may have been deleted, or its holder may be cut off with an APPEND
-- still on the way. Returns how many of the fences were still there: entries may have been stored over the others.

redis.call('HDEL', thread, EMPTY_FILL_LEASE, KNOWN_EMPTY)
redis.call('HDEL', thread, LEASE)
local removed = 0
for i = 4, #ARGV do removed = removed + redis.call('HDEL', thread, FENCE .. ARGV[i]) end
new_generation()
return removed
