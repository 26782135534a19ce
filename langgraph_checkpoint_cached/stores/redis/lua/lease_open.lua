-- OPEN: records the lease after its row was inserted in Postgres. Returns 'open'; 'invalidated' if the thread was
-- deleted or invalidated since `generation` was its generation, or another process has prepared since; 'evicts
-- <policy>' if this server might evict the journal.
--
-- KEYS: 1 the thread, 2 the journal. ARGV: 1 '*', 4 token, 5 generation

local token, wanted = ARGV[4], ARGV[5]
local memory = redis.call('INFO', 'memory')
local policy = string.match(memory, 'maxmemory_policy:(%S+)') or 'unknown'
local bound = string.match(memory, 'maxmemory:(%d+)')
if bound ~= '0' and policy ~= 'noeviction' and string.sub(policy, 1, 9) ~= 'volatile-' then
  return 'evicts ' .. policy
end

if is_fenced('') or current_generation() ~= wanted then return 'invalidated' end
if redis.call('HGET', thread, LEASE_NONCE) ~= string.match(token, '[^.]+$') then return 'invalidated' end
redis.call('HDEL', thread, LEASE_NONCE)
redis.call('HSET', thread, LEASE, string.format('%s %s 0', server_epoch(), token))
redis.call('HDEL', thread, CLOSED_LEASE)
redis.call('DEL', KEYS[2])
return 'open'
