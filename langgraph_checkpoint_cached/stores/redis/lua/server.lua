-- The server's clock and epoch. Tests replace this file to control both.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The replication id is drawn anew at every start and at every promotion. A run_id would not do: it stays the same
-- when a server loses its mastership to a replica and gets it back, with that replica's stale data.
local EPOCH_LENGTH = 16 -- of its 40 characters, to tell a few apart
local replid
local function server_epoch()
  replid = replid or string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  return replid or error('this server does not tell its master_replid')
end
