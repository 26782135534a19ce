-- Size of an entry, for the scripts that add to it.

local ENTRY_BYTES_MAX = 16777216 -- beyond which a namespace has no entry; as in `entry_format.py`

-- Return the bytes of the entry's fields and their names.
local function count_bytes()
  local bytes = 0
  for _, field in ipairs(redis.call('HKEYS', namespace)) do
    bytes = bytes + #field + redis.call('HSTRLEN', namespace, field)
  end
  return bytes
end

-- Return an upper bound of the entry's bytes after a change: what it was before, if that is known, and the arguments
-- of the change. Where that is too much, what was replaced and removed is left out: the entry is counted.
local function bytes_after_change(before)
  local bytes = tonumber(before or nil)
  if bytes then
    for i = 6, #ARGV do bytes = bytes + #ARGV[i] end
    if bytes <= ENTRY_BYTES_MAX then return bytes end
  end
  return count_bytes()
end
