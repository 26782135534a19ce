-- TRIM: removes what Postgres holds from the journal, up to a number. KEYS: 1 the thread, 2 the journal. ARGV: 4
-- token, 5 number

local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if first and first[2][2] == ARGV[4] then redis.call('XTRIM', KEYS[2], 'MINID', (ARGV[5] + 1) .. '-0') end
return 0
