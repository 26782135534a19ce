-- CLOSE: nothing more is appended under this lease. Answers 1; or 0, with nothing done, if its journal goes beyond what
-- Postgres holds, or, if that is asked, may have gone beyond it.
--
-- KEYS: 1 the thread, 2 the journal, 3... namespaces that go back to the life of an entry
-- ARGV: 4 token, 5 number up to which Postgres has it, 6 '1' if who asks only knows what this server does

local FENCE_TTL_MS = 60000 -- of what a fence on the thread may need
local token, flushed = ARGV[4], tonumber(ARGV[5])
local held = lease()
if held and held ~= token then return 1 end -- long closed: the journal is another's
if last_number(KEYS[2], token) > flushed then return 0 end
if ARGV[6] == '1' and not knows_all(KEYS[2], token, flushed) then return 0 end
if not held then new_generation() end -- so that a late OPEN, of a generation before, does not make it anew
redis.call('HDEL', thread, 'l')
redis.call('HSET', thread, 'c', token) -- its row may stay for a while: nothing is missing
extend(thread, ttl_ms)
if last_number(KEYS[2], token) > 0 or redis.call('XLEN', KEYS[2]) == 0 then redis.call('DEL', KEYS[2]) end
for i = 3, #KEYS do redis.call('PEXPIRE', KEYS[i], ttl_ms) end
redis.call('PEXPIRE', thread, math.max(ttl_ms, FENCE_TTL_MS))
return 1
