-- BEGIN. "A write to this namespace is in flight": until COMMIT, RELEASE or the deadline no entry is served
-- and none is filled, nor is anything appended to it. Sending it again moves the deadline. Succeeds on a full server.
-- Answers the lease, of which what is in the journal has to be in Postgres first; else '' if there is an entry, and '?'
-- if there is none, so that only Postgres knows whether there is a lease.
--
-- ARGV: 4 token, 5 owner, 6 ms to the deadline

local token, owner, fence_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

redis.call('HDEL', namespace, 't', 'dt')
local generation = current_generation()
redis.call('HSET', thread, 'f:' .. token, string.format('%d %s %s', now_ms() + fence_ms, owner, name))
extend(thread, math.max(ttl_ms, 2 * fence_ms))
note_name(math.max(ttl_ms, 2 * fence_ms))
local said = lease_reply()
if said == '' and redis.call('HGET', namespace, 'g') ~= generation then return '?' end
return said
