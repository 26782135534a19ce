-- Take a lock, for a time.
--
-- KEYS[1]  the lock
-- ARGV[1]  the owner's token
-- ARGV[2]  lifetime in milliseconds
--
-- Returns 1 if the lock is the owner's now, 0 if it is another's.
--
-- Promises: one owner at a time; the lock always has an expiry; an owner that lost the reply to its first call,
-- and asks again, still has the lock, with the lifetime of the first call.

if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 1
end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
