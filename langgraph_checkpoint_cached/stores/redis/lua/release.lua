-- RELEASE of a fence that no write is under: the entry stands. ARGV: 4 token

return redis.call('HDEL', thread, 'f:' .. ARGV[4])
