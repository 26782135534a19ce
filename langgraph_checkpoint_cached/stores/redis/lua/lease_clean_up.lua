-- CLEAN UP: removes the remains of the journal of a lease that has ended, or an empty journal, where no lease is
-- known.
--
-- KEYS: 1 the thread, 2 the journal. ARGV: 4 token, '' for an empty one only

local newest = newest_token(KEYS[2])
if not lease() and (newest == '' or newest == ARGV[4]) then redis.call('DEL', KEYS[2]) end
return 1
