-- GIVE BACK. The fill lease's holder does not load: the next reader may. ARGV: 4 fill lease

local held = redis.call('HGET', namespace, 't')
if held and string.match(held, '%S+$') == ARGV[4] then drop_entry() end
return 0
