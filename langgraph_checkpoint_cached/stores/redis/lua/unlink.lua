-- UNLINK: removes an entry that is invalid already, so that nothing of what was deleted in Postgres stays here. One key
-- at a time: a Cluster that is moving its slot refuses scripts with more. KEYS: 1 the namespace

return redis.call('UNLINK', KEYS[1])
