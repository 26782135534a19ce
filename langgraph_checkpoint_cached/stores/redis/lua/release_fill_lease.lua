-- RELEASE FILL LEASE: its holder does not load, and the next reader may. ARGV: 4 fill lease

local held = redis.call('HGET', namespace, FILL_LEASE)
if held and string.match(held, '%S+$') == ARGV[4] then drop_entry() end
return 0
