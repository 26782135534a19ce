-- Free a lock that is still the owner's.
--
-- KEYS[1]  the lock
-- ARGV[1]  the owner's token
--
-- Returns 1 if the lock was the owner's, else 0.
--
-- Promises: never frees a lock that expired and was taken by another.

if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
