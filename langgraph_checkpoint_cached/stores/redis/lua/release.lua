-- RELEASE: releases a fence that no write is under. The entry stays. ARGV: 4 token

return redis.call('HDEL', thread, FENCE .. ARGV[4])
