-- APPEND by the process with the thread's lease: writes to the entry and to the journal, and so acknowledges the
-- write. It stands in place of `commit_functions.lua` before the same changes.
--
-- KEYS: 4 the journal. ARGV: 4 the lease's token, 5 'p' or 'w' and the namespace's real name, 6... the change, which the
-- journal keeps as it is.
--
-- Returns the number in the journal; or a reason, and then nothing was done except that the entry may be dropped:
--   closed <generation>   there is no lease, or another one
--   refused               a write is in flight in Postgres, there is no entry, only Postgres can tell the result, or it is too large
--   full                  the journal is full

local JOURNAL_MAX = 1000 -- entries, after which the journal has to be replayed first
local ARGUMENTS_MAX = 2000 -- of one write; Lua takes not many more at once
local LEASED_MS = 86400000 -- the shortest life of what a lease needs
local token = ARGV[4]

local function apply(change)
  local generation = current_generation()
  local held, last = lease()
  if held ~= token then return 'closed ' .. generation end
  local entry = redis.call('HMGET', namespace, GENERATION, CHECKPOINT_ID, SIZE)
  if is_fenced('') or entry[1] ~= generation or not entry[2] or #ARGV > ARGUMENTS_MAX then return 'refused' end
  if redis.call('XLEN', KEYS[4]) >= JOURNAL_MAX then return 'full' end
  local number = last + 1
  local appended = { 'XADD', KEYS[4], number .. '-0', 't', token, 'n', ARGV[5] }
  for i = 6, #ARGV do
    appended[#appended + 1] = 'a'
    appended[#appended + 1] = ARGV[i]
  end
  redis.call('HSET', thread, LEASE, redis.call('HGET', thread, LEASE)) -- needs memory: fails here, with nothing done

  redis.call('HDEL', namespace, HISTORY_FILL_LEASE)
  note_name(math.max(ttl_ms, LEASED_MS))
  local worked, advanced = pcall(change, entry[2])
  local bytes = advanced and worked and bytes_after_change(entry[3]) or 0
  if not worked or advanced == nil or bytes > ENTRY_BYTES_MAX then
    drop_entry()
    return 'refused'
  end
  redis.call(unpack(appended))
  redis.call('HSET', thread, LEASE, string.format('%s %s %d', server_epoch(), token, number))
  if advanced then redis.call('HSET', namespace, LAST_UPDATE, token .. number, SIZE, bytes) end
  extend(namespace, math.max(ttl_ms, LEASED_MS))
  extend(thread, math.max(ttl_ms, LEASED_MS))
  return number
end
