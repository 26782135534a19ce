-- PREPARE: somebody is about to make the row of a lease, after which only the OPEN of who prepared last is taken: one that
-- comes late would take away the journal of the next lease. Answers the generation. ARGV: 4 nonce

local generation = current_generation()
redis.call('HSET', thread, 'lo', ARGV[4])
return generation
