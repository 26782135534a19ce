-- Returns the lease of a thread and sums up a page of its journal, and changes nothing: the server epoch, the
-- lease or '', the number of entries of this lease on the page, their bytes, and the last number on it; 0 if the
-- page is empty.
--
-- KEYS: thread, journal. ARGV: 1 token, 2 number after which to begin, 3 how many at most

local count, bytes, last = 0, 0, 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '(' .. ARGV[2] .. '-0', '+', 'COUNT', ARGV[3])) do
  last = tonumber(string.match(entry[1], '^%d+'))
  if entry[2][2] == ARGV[1] then
    count = count + 1
    for _, part in ipairs(entry[2]) do bytes = bytes + #part end
  end
end
return { server_epoch(), redis.call('HGET', KEYS[1], LEASE) or '', count, bytes, last }
