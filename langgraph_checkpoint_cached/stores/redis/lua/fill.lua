-- FILL: stores what the holder of the fill lease loaded, if the fill lease and the generation are still valid and
-- nobody is writing. Returns 1 if it was stored, else 0. Refused with an error when Redis is full.
--
-- ARGV: 4 fill lease, 5 generation, 6 '1' if this is the root and the thread has nothing in Postgres,
--       7 tokens of fences past their deadline that may go, each followed by a space, then field, value, ...

local fill_token, generation, settled = ARGV[4], ARGV[5], ' ' .. ARGV[7]

local active, overdue = check_fences('')
local held = redis.call('HGET', namespace, FILL_LEASE)
if active or not held then return 0 end
for i = 1, #overdue, 2 do
  if not string.find(settled, ' ' .. overdue[i] .. ' ', 1, true) then return 0 end
end
if string.match(held, '^%d+ (.*)$') ~= generation .. ' ' .. fill_token then return 0 end
if current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, FILL_LEASE, held) -- needs memory: fails here, with nothing done, if there is none

drop_entry()
for i = 1, #overdue, 2 do
  if string.match(redis.call('HGET', thread, FENCE .. overdue[i]), '%S+$') == '*' then
    redis.call('HDEL', thread, LEASE) -- a delete may have taken the lease's row with it
  end
  redis.call('HDEL', thread, FENCE .. overdue[i])
end
redis.call('HSET', namespace, GENERATION, generation)
for i = 8, #ARGV, 2 do redis.call('HSET', namespace, ARGV[i], ARGV[i + 1]) end
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
