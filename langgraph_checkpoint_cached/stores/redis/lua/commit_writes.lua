-- COMMIT of pending writes: adds them to the entry if they belong to its checkpoint, or to a later one whose own
-- put may still come.
--
-- ARGV: 6 checkpoint id, 7 '1' if they replace existing writes and '0' if existing writes stay,
--       8 their channels, as a msgpack array, then task path, field, value, ... for each write

local id, replace = ARGV[6], ARGV[7] == '1'

return apply(function(latest)
  if not redis.call('HGET', namespace, VERSIONS) or not (latest == '' or comparable(latest, id)) then return nil end
  if id < latest then
    if redis.call('HGET', namespace, PREDATES_TASKS) == latest then
      for _, channel in ipairs(cmsgpack.unpack(ARGV[8])) do
        if channel == '__pregel_tasks' then return nil end -- perhaps a pending send of the entry's checkpoint
      end
    end
    local channels = channels_with_history()
    for _, channel in ipairs(channels and cmsgpack.unpack(ARGV[8]) or {}) do
      if channels[channel] then
        forget_history()
        break
      end
    end
    return false
  end
  for i = 9, #ARGV, 3 do
    local path, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if replace then
      local old = redis.call('HGET', namespace, field)
      -- Postgres replaces the value of such a row, not its task path.
      if old and string.sub(old, 1, #path + 1) ~= path .. '\0' then return nil end
      redis.call('HSET', namespace, field, value)
    else
      redis.call('HSETNX', namespace, field, value)
    end
  end
  return true
end)
