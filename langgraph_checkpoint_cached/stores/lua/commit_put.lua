-- COMMIT of a checkpoint: releases the fence and makes the entry what Postgres now holds as the namespace's
-- latest checkpoint, or drops it when that cannot be known from here. Answers 1 if the entry was advanced.
--
-- ARGV: 6 checkpoint id, 7 parent's or '', 8 head, 9 channel -> version of the checkpoint, as msgpack,
--       10 channels whose version is new and which have no value outside the checkpoint, as a msgpack array,
--       then channel, value, ... for the values that this write stored

local id, parent, head, packed_versions = ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local latest = settle()
if not latest then return 0 end

local packed = redis.call('HGET', namespace, 'v')
if not packed or latest == id or not (latest == '' or comparable(latest, id)) then
  drop_entry()
  return 0
end
local old, new = cmsgpack.unpack(packed), cmsgpack.unpack(packed_versions)

local values = {}
for i = 11, #ARGV, 2 do values[ARGV[i]] = ARGV[i + 1] end

if latest ~= '' and id < latest then
  -- An older checkpoint, late. It changes the latest one only by storing a value that one was missing.
  for channel in pairs(values) do
    if old[channel] == new[channel] then drop_entry() break end
  end
  return 0
end
if latest ~= parent then
  drop_entry()
  return 0
end

-- A channel without a value has none in Postgres either if its version was never used before. Versions count up
-- along a lineage, so one that is higher than all of the parent's was not.
local newest = ''
for _, version in pairs(old) do
  local counter = string.match(version, '^%d+')
  -- Others than the stock saver's, which have 32 digits, do not compare.
  newest = counter and #counter == 32 and (counter > newest and counter or newest) or '~'
  if newest == '~' then break end
end
local valueless = {}
for _, channel in ipairs(cmsgpack.unpack(ARGV[10])) do
  valueless[channel] = newest ~= '~' and string.sub(new[channel], 1, 32) > newest
end
local gone = {}
for channel, version in pairs(new) do
  if not values[channel] and old[channel] ~= version then
    if not valueless[channel] then -- a version from elsewhere: only Postgres knows its value
      drop_entry()
      return 0
    end
    gone[#gone + 1] = 'c:' .. channel
  end
end
for channel in pairs(old) do
  if not new[channel] then gone[#gone + 1] = 'c:' .. channel end
end
for _, field in ipairs(redis.call('HKEYS', namespace)) do
  if string.sub(field, 1, 2) == 'w:' then
    local of = string.match(field, '^w:([^%z]*)')
    if not comparable(of, id) then
      drop_entry()
      return 0
    end
    if of < id then gone[#gone + 1] = field end
  end
end
for _, field in ipairs(gone) do redis.call('HDEL', namespace, field) end
for channel, value in pairs(values) do redis.call('HSET', namespace, 'c:' .. channel, value) end
redis.call('HSET', namespace, 'i', id, 'h', head, 'v', packed_versions)
return applied()
