-- FILL HISTORY: stores a history that the holder of the fill lease loaded, if the fill lease, the generation and
-- the checkpoint are still valid and nobody is writing: then nothing was written to the namespace since the fill
-- lease was taken. Returns 1 if it was stored, else 0. Refused with an error when Redis is full.
--
-- ARGV: 4 fill lease, 5 generation, 6 checkpoint id, 7 the history, 8 its channels

local fill_token, generation, id = ARGV[4], ARGV[5], ARGV[6]

local entry = redis.call('HMGET', namespace, GENERATION, CHECKPOINT_ID, HISTORY_FILL_LEASE)
if is_fenced('') or entry[3] ~= fill_token or entry[2] ~= id then return 0 end
if entry[1] ~= generation or current_generation() ~= generation then return 0 end
redis.call('HSET', namespace, HISTORY, ARGV[7], HISTORY_CHANNELS, ARGV[8], HISTORY_PATH, '0\0' .. id)
for _, field in ipairs(redis.call('HKEYS', namespace)) do
  local of = write_checkpoint_id(field)
  if of and of < id then redis.call('HDEL', namespace, field) end
end
redis.call('HDEL', namespace, HISTORY_FILL_LEASE, SIZE) -- the next write counts
return 1
