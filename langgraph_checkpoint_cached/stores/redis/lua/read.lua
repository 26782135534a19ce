-- READ: returns the entry if nobody is writing, or what the reader has to do instead:
--   hit, fields     the entry
--   load, g         the fill lease is yours: load from Postgres, then FILL for generation g; where fences are past
--                   their deadline, only if Postgres has been seen to have no transaction of their owners left
--   wait            another reader has the fill lease
--   fenced          a write is in flight: read from Postgres and fill nothing
--   large, g, ...   an entry that takes long to send, and last its checkpoint id: to be read by this id over another
--                   connection, where nobody waits behind it. Nothing was taken
--   absent          (by id only) there is no entry, or one of another checkpoint
--   empty           the namespace is known to have no checkpoints and no writes; that is its entry now
-- Every reply but a hit continues with the generation or '', the fences past their deadline as { token, owner, ... },
-- and the lease, if there is one: then Postgres may lack acknowledged writes.
--
-- ARGV: 4 fill lease, 5 its life in ms, 6 '1' if a hit extends the entry's life, 7 a checkpoint id or '',
--       8 token of an idle fence of the reader's process, to be released first, or '',
--       9 bytes beyond which an entry is large, or '' if none is

local EMPTY_MS = 60000
local fill_token, fill_lease_ms, refresh, wanted = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7]
local large_bytes = tonumber(ARGV[9])

-- A server that refuses writes misses newer ones, so it must not serve reads either. This removes nothing.
redis.call('HDEL', namespace, '-')
if ARGV[8] ~= '' then redis.call('HDEL', thread, FENCE .. ARGV[8]) end

local active, overdue, elsewhere = check_fences('')
local function reply(what, generation)
  return { what, generation or '', overdue, lease_reply() }
end
if #overdue > 0 then extend(thread, math.max(ttl_ms, FENCED_MS)) end
if active or (#overdue > 0 and wanted ~= '') then return reply('fenced') end

local generation = current_generation()
local entry = redis.call('HMGET', namespace, GENERATION, CHECKPOINT_ID, FILL_LEASE, SIZE)
if entry[1] == generation and entry[2] and #overdue == 0 then
  if wanted ~= '' and wanted ~= entry[2] then return reply('absent') end
  if large_bytes and (tonumber(entry[4] or nil) or large_bytes + 1) > large_bytes and entry[2] ~= '' then
    local bytes = count_bytes()
    redis.call('HSET', namespace, SIZE, bytes)
    if bytes > large_bytes then return { 'large', generation, overdue, lease_reply(), entry[2] } end
  end
  if refresh and entry[2] ~= '' then
    extend(namespace, ttl_ms)
    extend(thread, ttl_ms)
    note_entry(ttl_ms)
  end
  return { 'hit', redis.call('HGETALL', namespace) }
end
local known = name ~= '' and redis.call('HGET', thread, KNOWN_EMPTY)
if known and #overdue == 0 then
  local count, of = string.match(known, '^(%d+) (.*)$')
  local all_noted = of == generation and redis.call('ZCARD', names) == tonumber(count)
  if all_noted and not redis.call('ZSCORE', names, name) then
    drop_entry()
    redis.call('HSET', namespace, GENERATION, generation, CHECKPOINT_ID, '', VERSIONS, '\128', SIZE, 0) -- an empty map
    redis.call('PEXPIRE', namespace, math.min(ttl_ms, EMPTY_MS))
    return reply('empty')
  end
end
if wanted ~= '' then return reply('absent') end

local now = now_ms()
if entry[3] then
  local deadline, of = string.match(entry[3], '^(%d+) (%S+) ')
  if of == generation and tonumber(deadline) > now then return reply('wait') end
end
drop_entry()
redis.call('HSET', namespace, FILL_LEASE, string.format('%d %s %s', now + fill_lease_ms, generation, fill_token))
redis.call('PEXPIRE', namespace, fill_lease_ms)
if name == '' and not elsewhere and #overdue == 0 then redis.call('HSET', thread, EMPTY_FILL_LEASE, fill_token) end
return reply('load', generation)
