-- What the scripts of the coherence protocol share.
--
-- KEYS[1], the thread:     g            its generation, "<server epoch>:<random>"
--                          f:<token>    a fence, "<deadline ms> <owner> <namespace, or * for all of them>"
--                          w            fill lease of the reader of the root that may find the thread empty
--                          k            "<count> <generation>": the thread was empty in Postgres, and so is every
--                                       namespace but the root and the <count> in KEYS[3]
--                          l            the lease of the process that may write behind, "<server epoch> <token>
--                                       <last number in the journal>"
--                          lo           nonce of who prepared a lease last
--                          c            token of the lease that was closed last
-- KEYS[2], the namespace:  g, i         the entry's generation and checkpoint id ('' if there is no checkpoint)
--                          h            the head: the checkpoint without what follows
--                          v            channel -> version, as msgpack
--                          c:<channel>  the value of a channel that has one outside the checkpoint
--                          w:<checkpoint id>NUL<task id>NUL<index>  a pending write, of this checkpoint or a later one
--                          a            a random string, of the last write applied
--                          d, dc        what the channels in `dc`, a msgpack array, are rebuilt from at a checkpoint
--                          p            "<bytes>NUL<id>NUL<id>...": that checkpoint and the way from it to the entry's
--                                       own; the writes of those on the way stay, and are of so many bytes
--                          dt           a fill lease to fill these
--                          t            the fill lease, "<deadline ms> <generation> <token>"
-- KEYS[3], names:          a set of namespaces that somebody has begun to write to, beside `k`
--
-- The journal, where a script takes it: a stream of what was acknowledged and is perhaps not yet in Postgres, numbered
-- from 1; the one key that never expires. Each of its entries has the token of its lease.
--
-- Every script gets ARGV[1] the namespace's name, ARGV[2] a random string for a generation that may be needed,
-- ARGV[3] the entry's life in ms. Every other key gets an expiry.
--
-- When Redis is full it refuses commands that need memory until a script has written once. So a script that
-- must succeed writes first with a command that frees memory, and one that may fail starts with one that needs it.

local thread, namespace, names = KEYS[1], KEYS[2], KEYS[3]
local name, random, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function extend(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local function new_generation()
  local generation = server_epoch() .. ':' .. random
  redis.call('HSET', thread, 'g', generation)
  extend(thread, ttl_ms)
  return generation
end

-- The thread's generation; a new one when there is none, or when it is another server epoch's.
local function current_generation()
  local generation = redis.call('HGET', thread, 'g')
  local own = server_epoch() .. ':'
  if generation and string.sub(generation, 1, #own) == own then return generation end
  return new_generation()
end

-- The lease's token and the last number of its journal, nil if this server epoch knows of none.
local function lease()
  local of, token, last = string.match(redis.call('HGET', thread, 'l') or '', '^(%S+) (%S+) (%d+)$')
  if of == server_epoch() then return token, tonumber(last) end
end

-- The same as a reader or writer is told: "<token> <last number>", or ''.
local function lease_reply()
  local token, last = lease()
  return token and string.format('%s %d', token, last) or ''
end

-- The last number of a lease, even if it is known only by what its journal still holds; 0 if that is nothing.
local function last_number(journal, token)
  local held, last = lease()
  if held == token then return last end
  local newest = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  return newest and newest[2][2] == token and tonumber(string.match(newest[1], '^%d+')) or 0
end

-- The token of the newest entry of a journal, '' without one.
local function newest_token(journal)
  local newest = redis.call('XREVRANGE', journal, '+', '-', 'COUNT', 1)[1]
  return newest and newest[2][2] or ''
end

-- Whether a lease's journal has all that was appended beyond a number, while its server epoch lasts. An empty journal stays
-- until its lease is closed. Where there is none, and no lease that says that nothing is missing, somebody emptied Redis.
local function knows_all(journal, token, number)
  local held, last = lease()
  if redis.call('PTTL', journal) ~= -2 or redis.call('HGET', thread, 'c') == token then return true end
  return held == token and last <= tonumber(number)
end

-- Notes that somebody writes to this namespace: it is not to be taken for empty, nor its thread.
local NAMES_MAX = 200 -- of a thread; one with more namespaces is asked for each of them
local function note_name(ms)
  redis.call('HDEL', thread, 'w')
  local known = name ~= '' and redis.call('HGET', thread, 'k')
  if not known or redis.call('SADD', names, name) == 0 then return end
  local count, of = string.match(known, '^(%d+) (.*)$')
  if count and tonumber(count) < NAMES_MAX then
    redis.call('HSET', thread, 'k', string.format('%d %s', count + 1, of))
    redis.call('PEXPIRE', names, ms)
  else
    redis.call('HDEL', thread, 'k')
    redis.call('DEL', names)
  end
end

local function drop_entry()
  redis.call('DEL', namespace)
end

-- Whether others hold a live fence over the namespace, whether `owner` does, and whether there is any over another
-- one. A fence past its deadline is removed, and with it the entry: nobody knows what its write did. How many were
-- is the last answer.
local function check_fences(owner)
  local now, others, own, elsewhere, expired = now_ms(), false, false, false, 0
  local fields = redis.call('HGETALL', thread)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'f:' then
      local deadline, by, over = string.match(fields[i + 1], '^(%d+) (%S+) (.*)$')
      if not deadline or over == name or over == '*' then -- a fence that cannot be read counts as one over all
        if not deadline or tonumber(deadline) <= now then
          redis.call('HDEL', thread, fields[i])
          drop_entry()
          expired = expired + 1
          if over ~= name then
            redis.call('HDEL', thread, 'l') -- a delete may have taken the lease's row with it
            new_generation()
          end
        elseif by == owner and over ~= '*' then
          own = true
        else
          others = true
        end
      else
        elsewhere = true
      end
    end
  end
  return others, own, elsewhere, expired
end

-- Ids of this shape sort the same under every collation, here and in Postgres; others are never compared.
local function is_uuid(id)
  return #id == 36 and string.match(id, '^[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+%-[0-9a-f]+$') ~= nil
end

local function comparable(a, b)
  return a == b or (is_uuid(a) and is_uuid(b))
end
