-- BEGIN: fences the namespace, because a write to it is in flight. Until COMMIT, RELEASE or the deadline its entry
-- is not served, filled or appended to. Sent again, it moves the deadline. Succeeds on a full server.
--
-- Returns the lease, whose journal has to be replayed before the write; without one '' if there is an entry, and
-- '?' if there is none, so that only Postgres knows whether there is a lease.
--
-- ARGV: 4 token, 5 owner, 6 ms to the deadline

local token, owner, fence_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

redis.call('HDEL', namespace, FILL_LEASE, HISTORY_FILL_LEASE)
local generation = current_generation()
redis.call('HSET', thread, FENCE .. token, string.format('%d %s %s', now_ms() + fence_ms, owner, name))
extend(thread, math.max(ttl_ms, FENCED_MS))
note_name(ttl_ms + FENCED_MS) -- COMMIT gives the entry `ttl_ms` when the write ends
local reply = lease_reply()
if reply == '' and redis.call('HGET', namespace, GENERATION) ~= generation then return '?' end
return reply
