-- NEWEST: returns the token of the newest entry of a journal, '' if there is none. KEYS: 1 the thread, 2 the
-- journal

return newest_token(KEYS[2])
