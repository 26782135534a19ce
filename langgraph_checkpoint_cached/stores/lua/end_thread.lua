-- COMMIT of a delete or prune: releases its fence. The generation changes once more, in case the fence did not
-- hold to the end. The thread's key never goes in between: while a Cluster moves its slot it could not be made anew.
-- Also voids a thread whose entries may be stale. ARGV: 4... tokens

redis.call('HDEL', thread, 'w', 'k')
for i = 4, #ARGV do redis.call('HDEL', thread, 'f:' .. ARGV[i]) end
new_generation()
return 1
