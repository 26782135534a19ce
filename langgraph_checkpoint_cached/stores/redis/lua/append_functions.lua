-- APPEND, by the holder of the thread's lease: a write is acknowledged when the entry has it, and the journal. Takes the
-- place of `commit_functions.lua` before the same changes.
--
-- KEYS: 4 the journal. ARGV: 4 the lease's token, 5 'p' or 'w' and the namespace's real name, 6... the change, which the
-- journal keeps as it is.
--
-- Answers the number in the journal, or why not, with nothing done; at most the entry is dropped.
--   closed <generation>   no lease, or another one
--   refused               a write is in flight in Postgres, there is no entry, or only Postgres can tell what comes of it
--   full                  the journal is

local JOURNAL_MAX = 1000 -- entries, after which Postgres has to follow
local ARGUMENTS_MAX = 2000 -- of one write; Lua takes not many more at once
local LEASED_MS = 86400000 -- the least life of what a lease needs
local token = ARGV[4]

local function apply(change)
  local generation = current_generation()
  local held, last = lease()
  if held ~= token then return 'closed ' .. generation end
  local others, own = check_fences('')
  local entry = redis.call('HMGET', namespace, 'g', 'i')
  if others or own or entry[1] ~= generation or not entry[2] or #ARGV > ARGUMENTS_MAX then return 'refused' end
  if redis.call('XLEN', KEYS[4]) >= JOURNAL_MAX then return 'full' end
  local number = last + 1
  local appended = { 'XADD', KEYS[4], number .. '-0', 't', token, 'n', ARGV[5] }
  for i = 6, #ARGV do
    appended[#appended + 1] = 'a'
    appended[#appended + 1] = ARGV[i]
  end
  redis.call('HSET', thread, 'l', redis.call('HGET', thread, 'l')) -- needs memory: fails here, with nothing done

  redis.call('HDEL', namespace, 'dt')
  note_name(math.max(ttl_ms, LEASED_MS))
  local worked, advanced = pcall(change, entry[2])
  if not worked or advanced == nil then
    drop_entry()
    return 'refused'
  end
  redis.call(unpack(appended))
  redis.call('HSET', thread, 'l', string.format('%s %s %d', server_epoch(), token, number))
  if advanced then redis.call('HSET', namespace, 'a', token .. number) end
  extend(namespace, math.max(ttl_ms, LEASED_MS))
  extend(thread, math.max(ttl_ms, LEASED_MS))
  return number
end
