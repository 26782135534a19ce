-- BEGIN. "A write to this namespace is in flight": until COMMIT, RELEASE or the deadline no entry is served
-- and none is filled. Sending it again moves the deadline. Succeeds on a full server.
--
-- ARGV: 4 token, 5 owner, 6 ms to the deadline

local token, owner, fence_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

redis.call('HDEL', namespace, 't')
current_generation()
redis.call('HSET', thread, 'f:' .. token, string.format('%d %s %s', now_ms() + fence_ms, owner, name))
keep(thread, math.max(life_ms, 2 * fence_ms))
return 1
