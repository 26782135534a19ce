-- COMMIT of a delete or prune: releases its fence. The generation changes once more, in case the fence did not
-- hold to the end. The thread's key never goes in between: while a Cluster moves its slot it could not be made anew.
-- Also invalidates a thread whose entries may be stale. The lease goes too, as when the thread's key is evicted: its row may
-- have gone, or its holder may be cut off and an APPEND of its still be on the way. ARGV: 4... tokens

redis.call('HDEL', thread, 'w', 'k')
redis.call('HDEL', thread, 'l')
for i = 4, #ARGV do redis.call('HDEL', thread, 'f:' .. ARGV[i]) end
new_generation()
return 1
