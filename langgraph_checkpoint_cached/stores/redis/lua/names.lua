-- NAMES: returns the names of the namespaces but the root that may have an entry. KEYS: 1 names

return redis.call('ZRANGE', KEYS[1], 0, -1)
