-- COMMIT, for every kind of write. Returns 1 if the entry was updated, 0 if not; nil if its own fence was not there any
-- more.
--
-- ARGV: 4 token, 5 owner, or "<owner> retain" if the fence stays active for other writes of its process

local token, owner = ARGV[4], string.match(ARGV[5], '^%S+')
local retain = owner ~= ARGV[5]

-- Release or retain the fence. Return the entry's checkpoint id if the change may be applied to it, and its size.
-- Otherwise drop the entry, and return nil and the reply of COMMIT: there is no entry to build on, another process is writing,
-- the fence did not hold to the end, or Redis is full.
local function end_write()
  local full = redis.pcall('HSETNX', thread, GENERATION, server_epoch() .. ':' .. random)
  extend(thread, ttl_ms)
  local fenced = redis.call('HGET', thread, FENCE .. token) ~= false
  if not retain then redis.call('HDEL', thread, FENCE .. token) end
  if not fenced then redis.call('HDEL', thread, EMPTY_FILL_LEASE, KNOWN_EMPTY) end -- they may not reflect this write
  local generation = current_generation()
  local fenced_by_others = is_fenced(owner)
  local entry = redis.call('HMGET', namespace, GENERATION, CHECKPOINT_ID, SIZE)
  if entry[1] == generation and entry[2] and not fenced_by_others and fenced and type(full) == 'number' then
    return entry[2], entry[3]
  end
  drop_entry()
  return nil, fenced and 0
end

-- Apply a change to the entry. `change` gets the entry's checkpoint id. It returns true if it has updated the
-- entry, false if the entry stays as it is, and nil if only Postgres knows what it now holds: then the entry is
-- dropped. So it is when `change` fails, as it does when the entry is damaged, and when the entry gets too large.
local function apply(change)
  local latest, other = end_write()
  if not latest then return other end
  local worked, advanced = pcall(change, latest)
  if not worked or advanced == nil then
    drop_entry()
    return 0
  end
  if not advanced then return 0 end
  local bytes = bytes_after_change(other)
  if bytes > ENTRY_BYTES_MAX then
    drop_entry()
    return 0
  end
  redis.call('HSET', namespace, LAST_UPDATE, random, SIZE, bytes)
  redis.call('PEXPIRE', namespace, ttl_ms)
  extend(thread, ttl_ms)
  return 1
end
