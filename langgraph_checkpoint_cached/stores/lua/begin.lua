-- BEGIN. "A write to this namespace is in flight": until COMMIT, RELEASE or the deadline no entry is served
-- and none is filled. Sending it again moves the deadline. Succeeds on a full server.
--
-- ARGV: 4 token, 5 owner, 6 ms to the deadline

local NAMES_MAX = 200 -- of a thread; one with more namespaces is asked for each of them
local token, owner, fence_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

redis.call('HDEL', namespace, 't')
redis.call('HDEL', thread, 'w')
current_generation()
redis.call('HSET', thread, 'f:' .. token, string.format('%d %s %s', now_ms() + fence_ms, owner, name))
keep(thread, math.max(life_ms, 2 * fence_ms))
local known = name ~= '' and redis.call('HGET', thread, 'k')
if known and redis.call('SADD', names, name) == 1 then
  local count, of = string.match(known, '^(%d+) (.*)$')
  if count and tonumber(count) < NAMES_MAX then
    redis.call('HSET', thread, 'k', string.format('%d %s', count + 1, of))
    redis.call('PEXPIRE', names, math.max(life_ms, 2 * fence_ms))
  else
    redis.call('HDEL', thread, 'k')
    redis.call('DEL', names)
  end
end
return 1
