-- PREPARE: announces that the caller is about to insert the row of a lease. Then only the last process that
-- prepared may OPEN: a late OPEN would delete the journal of the next lease. Returns the generation. ARGV: 4 nonce

local generation = current_generation()
redis.call('HSET', thread, LEASE_NONCE, ARGV[4])
return generation
