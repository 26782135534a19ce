-- COMMIT of a write whose effect on the entry cannot be told from here: releases the fence, drops the entry.

settle()
drop_entry()
return 0
