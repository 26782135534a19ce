-- FILL. Stores what the fill lease's holder loaded, if the fill lease and the generation still stand and nobody is
-- writing. Answers 1 if it was stored, else 0. Refused with an error when Redis is full.
--
-- ARGV: 4 fill lease, 5 generation, 6 '1' if this is the root and the thread has nothing in Postgres,
--       then field, value, ...

local fill_token, generation = ARGV[4], ARGV[5]

local others, own = check_fences('')
local held = redis.call('HGET', namespace, 't')
if others or own or not held then return 0 end
if string.match(held, '^%d+ (.*)$') ~= generation .. ' ' .. fill_token then return 0 end
if current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, 't', held) -- needs memory: fails here, with nothing done, if there is none

drop_entry()
redis.call('HSET', namespace, 'g', generation)
for i = 7, #ARGV, 2 do redis.call('HSET', namespace, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', namespace, ttl_ms)
extend(thread, ttl_ms)
if redis.call('HGET', thread, 'w') == fill_token then
  redis.call('HDEL', thread, 'w')
  if ARGV[6] == '1' then -- and no write to any of its namespaces has begun since
    redis.call('DEL', names)
    redis.call('HSET', thread, 'k', '0 ' .. generation)
  end
end
return 1
