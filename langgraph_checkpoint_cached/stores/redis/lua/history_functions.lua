-- What the changes of entries share, whichever way they come about.

-- What `DeltaChannel`s are rebuilt from goes, with the writes that are only kept for it; the entry stays.
local function forget_history()
  local latest = redis.call('HGET', namespace, 'i')
  redis.call('HDEL', namespace, 'd', 'dc', 'p', 'dt')
  for _, field in ipairs(redis.call('HKEYS', namespace)) do
    local of = string.match(field, '^w:([^%z]*)')
    if of and of < latest then redis.call('HDEL', namespace, field) end
  end
end

-- The channels of which the history is there, as a set; nil without one.
local function channels_with_history()
  local packed = redis.call('HGET', namespace, 'dc')
  if not packed then return nil end
  local found = {}
  for _, channel in ipairs(cmsgpack.unpack(packed)) do found[channel] = true end
  return found
end
