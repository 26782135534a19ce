-- BEGIN of a delete or prune: fences every namespace of the thread, and invalidates all its entries at once by a
-- new generation. Succeeds on a full server. Returns the lease, or ''. ARGV: 4 token, 5 owner, 6 ms to the
-- deadline

local token, owner, fence_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

redis.call('HDEL', thread, EMPTY_FILL_LEASE, KNOWN_EMPTY)
new_generation()
redis.call('HSET', thread, FENCE .. token, string.format('%d %s *', now_ms() + fence_ms, owner))
extend(thread, math.max(ttl_ms, FENCED_MS))
return lease_reply()
