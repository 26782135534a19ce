-- FILL. Stores what the ticket's holder loaded, if the ticket and the generation still stand and nobody is
-- writing. Answers 1 if it was stored, else 0. Refused with an error when Redis is full.
--
-- ARGV: 4 ticket, 5 generation, then field, value, ...

local ticket, generation = ARGV[4], ARGV[5]

local others, own = look_at_fences('')
local held = redis.call('HGET', namespace, 't')
if others or own or not held then return 0 end
if string.match(held, '^%d+ (.*)$') ~= generation .. ' ' .. ticket then return 0 end
if current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, 't', held) -- needs memory: fails here, with nothing done, if there is none

drop_entry()
redis.call('HSET', namespace, 'g', generation)
for i = 6, #ARGV, 2 do redis.call('HSET', namespace, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', namespace, life_ms)
keep(thread, life_ms)
return 1
