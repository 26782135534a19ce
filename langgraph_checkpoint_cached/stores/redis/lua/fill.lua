-- FILL: stores what the holder of the fill lease loaded, if the fill lease and the generation are still valid and
-- nobody is writing. Returns 1 if it was stored, else 0. Refused with an error when Redis is full.
--
-- ARGV: 4 fill lease, 5 generation, 6 '1' if this is the root and the thread has nothing in Postgres,
--       then field, value, ...

local fill_token, generation = ARGV[4], ARGV[5]

local others, own = check_fences('')
local held = redis.call('HGET', namespace, FILL_LEASE)
if others or own or not held then return 0 end
if string.match(held, '^%d+ (.*)$') ~= generation .. ' ' .. fill_token then return 0 end
if current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, FILL_LEASE, held) -- needs memory: fails here, with nothing done, if there is none

drop_entry()
redis.call('HSET', namespace, GENERATION, generation)
for i = 7, #ARGV, 2 do redis.call('HSET', namespace, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', namespace, ttl_ms)
extend(thread, ttl_ms)
note_entry(ttl_ms)
if redis.call('HGET', thread, EMPTY_FILL_LEASE) == fill_token then
  redis.call('HDEL', thread, EMPTY_FILL_LEASE)
  if ARGV[6] == '1' then -- and no write to any of its namespaces has begun since
    redis.call('HSET', thread, KNOWN_EMPTY, string.format('%d %s', redis.call('ZCARD', names), generation))
  end
end
return 1
