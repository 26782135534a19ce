-- Histories of `DeltaChannel`s, for the scripts that change entries.

-- Return the checkpoint id in the name of a pending write's field, nil for any other field.
local function write_checkpoint_id(field)
  return string.sub(field, 1, 2) == WRITE and string.match(field, '^[^%z]*', 3) or nil
end

-- Remove the history and the writes that are kept only for it. The entry stays.
local function forget_history()
  local latest = redis.call('HGET', namespace, CHECKPOINT_ID)
  redis.call('HDEL', namespace, HISTORY, HISTORY_CHANNELS, HISTORY_PATH, HISTORY_FILL_LEASE)
  for _, field in ipairs(redis.call('HKEYS', namespace)) do
    local of = write_checkpoint_id(field)
    if of and of < latest then redis.call('HDEL', namespace, field) end
  end
end

-- Return the channels that have a history here, as a set; nil if there is none.
local function channels_with_history()
  local packed = redis.call('HGET', namespace, HISTORY_CHANNELS)
  if not packed then return nil end
  local found = {}
  for _, channel in ipairs(cmsgpack.unpack(packed)) do found[channel] = true end
  return found
end
