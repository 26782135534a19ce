-- CLOSE: ends a lease, so that nothing more is appended under it. Returns 1; or 0, with nothing done, if its
-- journal has more than Postgres holds or, with ARGV[6], may have had more.
--
-- KEYS: 1 the thread, 2 the journal, 3... namespaces whose entries get the usual life again
-- ARGV: 4 token, 5 number up to which Postgres has the journal, 6 '1' if the caller does not hold the lease

local token, flushed = ARGV[4], tonumber(ARGV[5])
local held = lease()
if held and held ~= token then return 1 end -- closed long ago: the journal is another lease's
if last_number(KEYS[2], token) > flushed then return 0 end
if ARGV[6] == '1' and not knows_all(KEYS[2], token, flushed) then return 0 end
if not held then new_generation() end -- so that a late OPEN, of an earlier generation, does not open it again
redis.call('HDEL', thread, LEASE)
redis.call('HSET', thread, CLOSED_LEASE, token) -- its row may stay for a while: nothing is missing
extend(thread, ttl_ms)
if last_number(KEYS[2], token) > 0 or redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
for i = 3, #KEYS do redis.call('PEXPIRE', KEYS[i], ttl_ms) end
redis.call('PEXPIRE', thread, math.max(ttl_ms, FENCED_MS))
return 1
