-- COMMIT of a write whose effect on the entry cannot be told from here: releases the fence, drops the entry.

local _, said = settle()
drop_entry()
return said or 0
