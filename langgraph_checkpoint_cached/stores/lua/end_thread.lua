-- COMMIT of a delete or prune: releases its fence. The generation changes once more, in case the fence did not
-- hold to the end. ARGV: 4 token

redis.call('HDEL', thread, 'g', 'f:' .. ARGV[4])
new_generation()
return 1
