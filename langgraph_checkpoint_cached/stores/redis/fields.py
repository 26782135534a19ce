"""Names of the fields of the hashes in Redis. `lua/fields.lua` has the same, and says what each field holds."""

# In the thread's hash:
GENERATION = b"g"  # the namespace's hash has that of its entry
FENCE = b"f:"
EMPTY_FILL_LEASE = b"w"
KNOWN_EMPTY = b"k"
LEASE = b"l"
LEASE_NONCE = b"lo"
CLOSED_LEASE = b"c"

# In the namespace's hash:
CHECKPOINT_ID = b"i"
HEAD = b"h"
VERSIONS = b"v"
CHANNEL = b"c:"
WRITE = b"w:"
LAST_UPDATE = b"a"
SIZE = b"s"
PREDATES_TASKS = b"o"
HISTORY = b"d"
HISTORY_CHANNELS = b"dc"
HISTORY_PATH = b"p"
HISTORY_FILL_LEASE = b"dt"
FILL_LEASE = b"t"
