-- Shared by the scripts of the coherence protocol.
--
-- KEYS: 1 the thread's hash, 2 the namespace's hash (see `fields.lua`), 3 names: the namespaces but the root that have an
-- entry or are about to be written to, each with the time in ms at which that has expired.
--
-- The journal, where a script takes it, is a stream of what was acknowledged and is perhaps not yet in Postgres,
-- numbered from 1. It is the one key that never expires. Each of its entries has the token of its lease.
--
-- Every script gets ARGV[1] the namespace's name, ARGV[2] "<identity of Postgres>.<random>" for a generation that may
-- be needed, ARGV[3] the entry's life in ms, and last of all the server epochs that the process knows, which is not in
-- ARGV any more after this. Every other key gets an expiry.
--
-- When Redis is full it refuses commands that need memory until a script has written once. So a script that must
-- succeed writes first with a command that frees memory, and one that may fail starts with one that needs memory.

local thread, namespace, names = KEYS[1], KEYS[2], KEYS[3]
local known_epochs = table.remove(ARGV)
local name, random, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local identity = string.match(random, '^[^.]*%.')

local FENCED_MS = 600000 -- the shortest life of a thread with a fence: no transaction is expected to hang longer

-- To a process that was not told of it, another server epoch is an outage, whatever its connection says.
if not string.find(known_epochs, string.sub(server_epoch(), 1, EPOCH_LENGTH), 1, true) then
  return redis.error_reply('EPOCH this is another primary than before, or it was restarted')
end

local function extend(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local function new_generation()
  local generation = server_epoch() .. ':' .. random
  redis.call('HSET', thread, GENERATION, generation)
  extend(thread, ttl_ms)
  return generation
end

-- Return the thread's generation; a new one if there is none, or if it is of another server epoch or another identity
-- of Postgres than the caller's.
local function current_generation()
  local generation = redis.call('HGET', thread, GENERATION)
  local own = server_epoch() .. ':' .. identity
  if generation and string.sub(generation, 1, #own) == own then return generation end
  return new_generation()
end

-- Return the lease's token and the last number in its journal, or nil if this server epoch knows of none.
local function lease()
  local of, token, last = string.match(redis.call('HGET', thread, LEASE) or '', '^(%S+) (%S+) (%d+)$')
  if of == server_epoch() then return token, tonumber(last) end
end

-- Return the lease as scripts reply it: "<token> <last number>", or ''.
local function lease_reply()
  local token, last = lease()
  return token and string.format('%s %d', token, last) or ''
end

-- Return the last number of a lease, even if only its journal still tells it; 0 if that is empty.
local function last_number(journal, token)
  local held, last = lease()
  if held == token then return last end
  local newest = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  return newest and newest[2][2] == token and tonumber(string.match(newest[1], '^%d+')) or 0
end

-- Return the token of the newest entry of a journal, '' if there is none.
local function newest_token(journal)
  local newest = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  return newest and newest[2][2] or ''
end

-- Tell whether a lease's journal has all that was appended beyond a number, while its server epoch lasts. An empty
-- journal stays until its lease is closed. Where there is none, and no lease proves that nothing is missing, Redis
-- was emptied.
local function knows_all(journal, token, number)
  local held, last = lease()
  if redis.call('PTTL', journal) ~= -2 or redis.call('HGET', thread, CLOSED_LEASE) == token then return true end
  return held == token and last <= tonumber(number)
end

-- Note that the namespace may have an entry for so long, so that a delete finds it. The root's is found without.
local function note_entry(ms)
  if name == '' then return end
  local now = now_ms()
  local is_new = redis.call('ZADD', names, 'GT', now + ms, name) == 1
  extend(names, ms)
  if not is_new then return end
  redis.call('ZREMRANGEBYSCORE', names, '-inf', now)
  local count, of = string.match(redis.call('HGET', thread, KNOWN_EMPTY) or '', '^(%d+) (.*)$')
  if count then redis.call('HSET', thread, KNOWN_EMPTY, string.format('%d %s', count + 1, of)) end
end

-- Note that a process writes to this namespace: neither it nor its thread may be taken for empty.
local function note_name(ms)
  redis.call('HDEL', thread, EMPTY_FILL_LEASE)
  note_entry(ms)
end

local function drop_entry()
  redis.call('DEL', namespace)
end

-- Return whether there is an active fence over the namespace that is not `owner`'s; the fences over it that are past
-- their deadline, as { token, owner, ... }; and whether there is any fence over another namespace.
--
-- A fence past its deadline is in force like any other: its write may still be committed, however late. Only FILL
-- removes it, for a reader that has seen in Postgres that no transaction of its owner is left.
local function check_fences(owner)
  local now, active, overdue, elsewhere = now_ms(), false, {}, false
  local fields = redis.call('HGETALL', thread)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == FENCE then
      local deadline, by, over = string.match(fields[i + 1], '^(%d+) (%S+) (.*)$')
      if not deadline then -- damaged: nobody can tell over what it was
        redis.call('HDEL', thread, fields[i])
        redis.call('HDEL', thread, LEASE)
        drop_entry()
        new_generation()
      elseif over ~= name and over ~= '*' then
        elsewhere = true
      elseif tonumber(deadline) <= now then
        overdue[#overdue + 1] = string.sub(fields[i], 3)
        overdue[#overdue + 1] = by
      elseif by ~= owner or over == '*' then
        active = true
      end
    end
  end
  return active, overdue, elsewhere
end

-- Tell whether a fence that is not `owner`'s is in force over the namespace.
local function is_fenced(owner)
  local active, overdue = check_fences(owner)
  return active or #overdue > 0
end

-- Tell whether an id has the shape of a UUID: those sort the same under every collation, here and in Postgres.
-- Other ids are never compared.
local function is_uuid(id)
  return #id == 36 and string.match(id, '^[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+$') ~= nil
end

local function comparable(a, b)
  return a == b or (is_uuid(a) and is_uuid(b))
end
