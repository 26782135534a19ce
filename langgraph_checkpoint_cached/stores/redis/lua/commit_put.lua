-- COMMIT of a checkpoint: makes the entry what Postgres now holds as the namespace's latest checkpoint, or drops it
-- when that cannot be known from here.
--
-- ARGV: 6 checkpoint id, 7 parent's or '', 8 head, 9 channel -> version of the checkpoint, as msgpack,
--       10 channels whose version is new and has no value in Postgres, as a msgpack array,
--       11 channels that have a value in the checkpoint itself, as a msgpack array,
--       then channel, value, ... for the values that this write stored

local PATH_MAX, PATH_BYTES_MAX = 64, 1048576 -- checkpoints between a history and the entry, and bytes of their writes

local id, parent, head, packed_versions = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

return apply(function(latest)
  local packed = redis.call('HGET', namespace, 'v')
  if not packed or latest == id or not (latest == '' or comparable(latest, id)) then return nil end
  local old, new = cmsgpack.unpack(packed), cmsgpack.unpack(packed_versions)

  local values = {}
  for i = 12, #ARGV, 2 do values[ARGV[i]] = ARGV[i + 1] end

  if latest ~= '' and id < latest then
    -- An older checkpoint, late. It changes the latest one only by storing a value that one was missing.
    for channel in pairs(values) do
      if old[channel] == new[channel] then return nil end
    end
    if redis.call('HGET', namespace, 'p') then forget_history() end
    return false
  end
  if latest ~= parent then return nil end

  local valueless, gone = {}, {}
  for _, channel in ipairs(cmsgpack.unpack(ARGV[10])) do valueless[channel] = true end
  for channel, version in pairs(new) do
    if not values[channel] and old[channel] ~= version then
      if not valueless[channel] then return nil end -- from elsewhere: only Postgres knows its value
      gone[#gone + 1] = 'c:' .. channel
    end
  end
  for channel in pairs(old) do
    if not new[channel] then gone[#gone + 1] = 'c:' .. channel end
  end

  -- The history goes on to this checkpoint, unless one of its channels is stored here or the way gets too long.
  local channels, path, on_path = channels_with_history(), redis.call('HGET', namespace, 'p'), {}
  local bytes, length = 0, 0
  if channels and path then
    bytes = tonumber(string.match(path, '^%d+'))
    for step in string.gmatch(path, '%z([^%z]+)') do
      on_path[step] = true
      length = length + 1
    end
    for _, channel in ipairs(cmsgpack.unpack(ARGV[11])) do
      if channels[channel] then path = nil end
    end
    for channel in pairs(channels) do
      if values[channel] then path = nil end
    end
  end
  for _, field in ipairs(redis.call('HKEYS', namespace)) do
    if string.sub(field, 1, 2) == 'w:' then
      local of = string.match(field, '^w:([^%z]*)')
      if not comparable(of, id) then return nil end
      if of < id and not (path and on_path[of]) then gone[#gone + 1] = field end
      if of == latest and path then bytes = bytes + #redis.call('HGET', namespace, field) end
    end
  end

  for _, field in ipairs(gone) do redis.call('HDEL', namespace, field) end
  for channel, value in pairs(values) do redis.call('HSET', namespace, 'c:' .. channel, value) end
  redis.call('HSET', namespace, 'i', id, 'h', head, 'v', packed_versions)
  if path and length < PATH_MAX and bytes <= PATH_BYTES_MAX then
    local steps = string.match(path, '^%d+(.*)$')
    redis.call('HSET', namespace, 'p', string.format('%d', bytes) .. steps .. '\0' .. id)
  elseif channels then
    forget_history()
  end
  return true
end)
