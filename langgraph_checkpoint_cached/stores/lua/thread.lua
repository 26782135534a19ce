-- What the scripts of the coherence protocol share.
--
-- KEYS[1], the thread:     g            its generation, "<incarnation>:<random>"
--                          f:<token>    a fence, "<deadline ms> <owner> <namespace, or * for all of them>"
--                          w            ticket of the reader of the root that may find the thread empty
--                          k            "<count> <generation>": the thread was empty in Postgres, and so is every
--                                       namespace but the root and the <count> in KEYS[3]
-- KEYS[2], the namespace:  g, i         the entry's generation and checkpoint id ('' if there is no checkpoint)
--                          h            the head: the checkpoint without what follows
--                          v            channel -> version, as msgpack
--                          c:<channel>  the value of a channel that has one outside the checkpoint
--                          w:<checkpoint id>NUL<task id>NUL<index>  a pending write, of this checkpoint or a later one
--                          a            token of the last write applied
--                          t            the ticket, "<deadline ms> <generation> <token>"
-- KEYS[3], names:          a set of namespaces that somebody has begun to write to, beside `k`
--
-- Every script gets ARGV[1] the namespace's name, ARGV[2] a random string for a generation that may be needed,
-- ARGV[3] the entry's life in ms. Every key written gets an expiry.
--
-- When Redis is full it refuses commands that need memory until a script has written once. So a script that
-- must succeed writes first with a command that frees memory, and one that may fail starts with one that needs it.

local thread, namespace, names = KEYS[1], KEYS[2], KEYS[3]
local name, random, life_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end

local function new_generation()
  local generation = incarnation() .. ':' .. random
  redis.call('HSET', thread, 'g', generation)
  keep(thread, life_ms)
  return generation
end

-- The thread's generation; a new one when there is none, or when it is another incarnation's.
local function current_generation()
  local generation = redis.call('HGET', thread, 'g')
  local own = incarnation() .. ':'
  if generation and string.sub(generation, 1, #own) == own then return generation end
  return new_generation()
end

local function drop_entry()
  redis.call('DEL', namespace)
end

-- Whether others hold a live fence over the namespace, whether `owner` does, and whether there is any over another
-- one. A fence past its deadline is removed, and with it the entry: nobody knows what its write did. How many were
-- is the last answer.
local function look_at_fences(owner)
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
          if over ~= name then new_generation() end
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
