-- What COMMIT does for every kind of write. It answers 1 if the entry was advanced; else 0, or below that the number
-- of fences that were past their deadline; nothing if its own was not there any more.
--
-- ARGV: 4 token, 5 owner, or "<owner> retain" if the fence is to stand, for other writes of its process

local token, owner = ARGV[4], string.match(ARGV[5], '^%S+')
local retain = owner ~= ARGV[5]

-- Releases the fence, or finds it. Returns the entry's checkpoint id if the change may be applied to it. Returns nil when
-- there is nothing more to do: the entry had to go because nothing is there to build on, another process is writing,
-- the fence did not hold to the end, or Redis is full. Then the second value is what COMMIT answers.
local function settle()
  local full = redis.pcall('HSETNX', thread, 'g', server_epoch() .. ':' .. random)
  extend(thread, ttl_ms)
  local fenced = redis.call('HGET', thread, 'f:' .. token) ~= false
  if not retain then redis.call('HDEL', thread, 'f:' .. token) end
  if not fenced then redis.call('HDEL', thread, 'w', 'k') end -- they may not know of this write
  local generation = current_generation()
  local others, _, _, expired = check_fences(owner)
  local entry = redis.call('HMGET', namespace, 'g', 'i')
  if entry[1] == generation and entry[2] and not others and fenced and type(full) == 'number' then return entry[2] end
  drop_entry()
  return nil, fenced and -expired
end

-- Applies a change to the entry after that. `change` gets the entry's checkpoint id and returns whether it has
-- advanced the entry, false if it let it stand, nil if it cannot be told what Postgres now holds: then the entry
-- goes. It goes too when anything in `change` fails, as it does when the entry is damaged.
local function apply(change)
  local latest, said = settle()
  if not latest then return said end
  local worked, advanced = pcall(change, latest)
  if not worked or advanced == nil then
    drop_entry()
    return 0
  end
  if not advanced then return 0 end
  redis.call('HSET', namespace, 'a', random)
  redis.call('PEXPIRE', namespace, ttl_ms)
  extend(thread, ttl_ms)
  return 1
end
