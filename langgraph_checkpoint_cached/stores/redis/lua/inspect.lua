-- What Redis holds of a thread, without changing anything: now, in ms; its server epoch; the thread's fields, the life
-- left to them in ms; how many names are noted; the fields of the entry, the life left to them.
--
-- KEYS: thread, namespace, names

return {
  now_ms(), server_epoch(),
  redis.call('HGETALL', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('SCARD', KEYS[3]),
  redis.call('HGETALL', KEYS[2]), redis.call('PTTL', KEYS[2]),
}
