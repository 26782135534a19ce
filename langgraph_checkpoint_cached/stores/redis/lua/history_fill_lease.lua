-- FILL LEASE for the history of the `DeltaChannel`s at the entry's checkpoint: its holder loads that, then sends
-- FILL HISTORY. Returns the generation and the entry, or nil if the entry is of another checkpoint or somebody is
-- writing. BEGIN invalidates the fill lease.
--
-- ARGV: 4 fill lease, 5 checkpoint id

local fill_token, id = ARGV[4], ARGV[5]

redis.call('HDEL', namespace, '-') -- fails on a server that refuses writes
if is_fenced('') then return false end
local generation = current_generation()
local entry = redis.call('HMGET', namespace, GENERATION, CHECKPOINT_ID)
if entry[1] ~= generation or entry[2] ~= id then return false end
redis.call('HSET', namespace, HISTORY_FILL_LEASE, fill_token)
return { generation, redis.call('HGETALL', namespace) }
