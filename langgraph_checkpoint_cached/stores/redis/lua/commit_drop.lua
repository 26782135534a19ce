-- COMMIT of a write whose effect on the entry cannot be told from here: drops the entry.

local latest, said = settle()
drop_entry()
return latest and 0 or said
