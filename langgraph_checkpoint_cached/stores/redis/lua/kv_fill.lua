-- Store a value under a lock.
--
-- KEYS[1]  the value
-- KEYS[2]  its lock, in the same slot
-- ARGV[1]  the owner's token
-- ARGV[2]  the value, any bytes
-- ARGV[3]  lifetime in milliseconds
--
-- Returns 1 if the value was stored, 0 if the lock is not the owner's.
--
-- Promises: a value that was loaded under a lock which has expired, was invalidated or belongs to another is never
-- stored; the value always has an expiry; the lock stays as it is.

if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
