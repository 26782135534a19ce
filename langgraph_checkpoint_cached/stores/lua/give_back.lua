-- GIVE BACK. The ticket's holder could not load: the next reader may. ARGV: 4 ticket, 5 generation

local held = redis.call('HGET', namespace, 't')
if held and string.match(held, '^%d+ (.*)$') == ARGV[5] .. ' ' .. ARGV[4] then drop_entry() end
return 0
