-- FILL HISTORY. Stores what the fill lease's holder knows, if the fill lease, the generation and the checkpoint still stand and
-- nobody is writing: then nothing was written to the namespace since the fill lease was taken. Answers 1 if it was stored.
-- Refused with an error when Redis is full.
--
-- ARGV: 4 fill lease, 5 generation, 6 checkpoint id, 7 the history, 8 its channels

local fill_token, generation, id = ARGV[4], ARGV[5], ARGV[6]

local others, own = check_fences('')
local entry = redis.call('HMGET', namespace, 'g', 'i', 'dt')
if others or own or entry[3] ~= fill_token or entry[2] ~= id then return 0 end
if entry[1] ~= generation or current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, 'd', ARGV[7], 'dc', ARGV[8], 'p', '0\0' .. id)
for _, field in ipairs(redis.call('HKEYS', namespace)) do
  local of = string.match(field, '^w:([^%z]*)')
  if of and of < id then redis.call('HDEL', namespace, field) end
end
redis.call('HDEL', namespace, 'dt')
return 1
