-- Returns what Redis holds of a thread, and changes nothing: the time in ms, the server epoch, the thread's fields
-- and their remaining life in ms, the number of names, the entry's fields and their remaining life.
--
-- KEYS: thread, namespace, names

return {
  now_ms(), server_epoch(),
  redis.call('HGETALL', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('ZCARD', KEYS[3]),
  redis.call('HGETALL', KEYS[2]), redis.call('PTTL', KEYS[2]),
}
