-- Tries every command that the scripts use, on a key of its own, which is gone afterwards. Returns command, error,
-- command, error, ... for those that were refused.

local key, refused = KEYS[1], {}

local function try(name, ...)
  local reply = redis.pcall(name, ...)
  if type(reply) == 'table' and reply.err then
    refused[#refused + 1] = name
    refused[#refused + 1] = reply.err
  end
end

try('TIME')
try('INFO', 'replication')
try('DEL', key)
try('SET', key, '1', 'PX', 1000)
try('GET', key)
try('DEL', key)
try('HSET', key, 'f', '1')
try('PEXPIRE', key, 1000)
try('PTTL', key)
try('HSETNX', key, 'f', '1')
try('HGET', key, 'f')
try('HMGET', key, 'f', 'g')
try('HGETALL', key)
try('HKEYS', key)
try('HSTRLEN', key, 'f')
try('HDEL', key, 'f')
try('DEL', key)
try('ZADD', key, 'GT', 1, 'm')
try('PEXPIRE', key, 1000)
try('ZCARD', key)
try('ZSCORE', key, 'm')
try('ZRANGE', key, 0, -1)
try('ZREMRANGEBYSCORE', key, '-inf', 0)
try('UNLINK', key)
try('XADD', key, '1-0', 'f', '1')
try('PEXPIRE', key, 1000)
try('XLEN', key)
try('XRANGE', key, '-', '+', 'COUNT', 1)
try('XREVRANGE', key, '+', '-', 'COUNT', 1)
try('XTRIM', key, 'MINID', '1-0')
try('DEL', key)
return refused
