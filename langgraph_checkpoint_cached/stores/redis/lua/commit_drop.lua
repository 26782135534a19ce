-- COMMIT of a write whose effect on the entry is not known: drops the entry.

local latest, reply = end_write()
drop_entry()
return latest and 0 or reply
