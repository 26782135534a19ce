-- COMMIT of a checkpoint: makes the entry what Postgres now holds as the namespace's latest checkpoint, or drops
-- it if only Postgres knows that.
--
-- ARGV: 6 checkpoint id, 7 parent's or '', 8 head, 9 channel -> version of the checkpoint, as msgpack,
--       10 channels whose version is new and has no value in Postgres, as a msgpack array,
--       11 channels that have a value in the checkpoint itself, as a msgpack array,
--       then channel, value, ... for the values that this write stored

-- Checkpoints between a history and the entry, and bytes of their writes.
local PATH_MAX, PATH_BYTES_MAX = 64, 1048576

local id, parent, head, packed_versions = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

return apply(function(latest)
  local packed = redis.call('HGET', namespace, VERSIONS)
  if not packed or latest == id or not (latest == '' or comparable(latest, id)) then return nil end
  local old, new = cmsgpack.unpack(packed), cmsgpack.unpack(packed_versions)

  local values = {}
  for i = 12, #ARGV, 2 do values[ARGV[i]] = ARGV[i + 1] end

  if latest ~= '' and id < latest then
    -- An older checkpoint, late. It changes the latest one only if it stores a value that the latest one lacked.
    for channel in pairs(values) do
      if old[channel] == new[channel] then return nil end
    end
    if redis.call('HGET', namespace, HISTORY_PATH) then forget_history() end
    return false
  end
  if latest ~= parent then return nil end

  local valueless, gone = {}, {}
  for _, channel in ipairs(cmsgpack.unpack(ARGV[10])) do valueless[channel] = true end
  for channel, version in pairs(new) do
    if not values[channel] and old[channel] ~= version then
      if not valueless[channel] then return nil end -- only Postgres knows its value
      gone[#gone + 1] = CHANNEL .. channel
    end
  end
  for channel in pairs(old) do
    if not new[channel] then gone[#gone + 1] = CHANNEL .. channel end
  end

  -- The history extends to this checkpoint, unless one of its channels is stored here or the path gets too long.
  local channels, path, on_path = channels_with_history(), redis.call('HGET', namespace, HISTORY_PATH), {}
  local bytes, length = 0, 0
  if channels and path then
    bytes = tonumber(string.match(path, '^%d+'))
    for ancestor in string.gmatch(path, '%z([^%z]+)') do
      on_path[ancestor] = true
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
    local of = write_checkpoint_id(field)
    if of then
      if not comparable(of, id) then return nil end
      if of < id and not (path and on_path[of]) then gone[#gone + 1] = field end
      if of == latest and path then bytes = bytes + #redis.call('HGET', namespace, field) end
    end
  end

  for _, field in ipairs(gone) do redis.call('HDEL', namespace, field) end
  for channel, value in pairs(values) do redis.call('HSET', namespace, CHANNEL .. channel, value) end
  redis.call('HSET', namespace, CHECKPOINT_ID, id, HEAD, head, VERSIONS, packed_versions)
  if path and length < PATH_MAX and bytes <= PATH_BYTES_MAX then
    local ancestors = string.match(path, '^%d+(.*)$')
    redis.call('HSET', namespace, HISTORY_PATH, string.format('%d', bytes) .. ancestors .. '\0' .. id)
  elseif channels then
    forget_history()
  end
  return true
end)
