-- TIDY: removes what is left of a journal: that of a lease that has ended, or, without its token, any, where the row of no
-- lease is there. KEYS: 1 the thread, 2 the journal. ARGV: 4 token or ''

now_ms() -- for `operations/counters.py`
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not lease() and (ARGV[4] == '' or not newest or newest[2][2] == ARGV[4]) then redis.call('DEL', KEYS[2]) end
return 1
