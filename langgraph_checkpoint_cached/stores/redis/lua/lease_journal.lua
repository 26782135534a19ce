-- JOURNAL: returns what is to be replayed into Postgres: the last number, or -1 if there may have been more; and a
-- page of the lease's entries in order, each with its number and its fields. While a server epoch lasts its
-- journals are complete, even where the rest of a thread was evicted, unless the server was emptied.
--
-- KEYS: 1 the thread, 2 the journal. ARGV: 4 token, 5 number after which to begin, 6 how many at most

-- Entries that are read at once, and bytes after which a page ends.
local STEP, BYTES_MAX = 10, 1048576
local token, after, left = ARGV[4], ARGV[5], tonumber(ARGV[6])
local found, bytes, from = {}, 0, after
while left > 0 and bytes < BYTES_MAX do
  local some = redis.call('XRANGE', KEYS[2], '(' .. from .. '-0', '+', 'COUNT', math.min(STEP, left))
  for _, entry in ipairs(some) do
    from = string.match(entry[1], '^%d+')
    if bytes < BYTES_MAX and entry[2][2] == token then
      found[#found + 1] = { tonumber(from), entry[2] }
      for _, part in ipairs(entry[2]) do bytes = bytes + #part end
    end
  end
  left = left - STEP
  if #some < STEP then break end
end
if not knows_all(KEYS[2], token, after) or string.sub(token, 1, #server_epoch()) ~= server_epoch() then
  return { -1, found }
end
return { math.max(last_number(KEYS[2], token), tonumber(after)), found }
