-- Names of the fields of the hashes in Redis. `fields.py` has the same names, and a test compares the two.
--
-- `scripts.py` puts the strings in place of the names when it loads a script: as variables, which the functions of
-- the scripts would share, they would cost 3 % of READ and of COMMIT.

-- In the thread's hash, KEYS[1]:
local GENERATION = 'g' -- "<server epoch>:<random>"; the namespace's hash has that of its entry
local FENCE = 'f:' -- and a token: a fence, "<deadline ms> <owner> <namespace, or * for all of them>"
local EMPTY_FILL_LEASE = 'w' -- the fill lease of the reader of the root that may find the thread empty
local KNOWN_EMPTY = 'k' -- "<count> <generation>": the thread was empty in Postgres then, and every namespace but the
-- root and those in KEYS[3] still is, if these are <count>: none of them was lost
local LEASE = 'l' -- the lease of the process that may write behind, "<server epoch> <token> <last number in the journal>"
local LEASE_NONCE = 'lo' -- nonce of the last process that prepared a lease
local CLOSED_LEASE = 'c' -- token of the last lease that was closed

-- In the namespace's hash, KEYS[2]:
local CHECKPOINT_ID = 'i' -- the entry's checkpoint id; '' if there is no checkpoint
local HEAD = 'h' -- the checkpoint without what follows
local VERSIONS = 'v' -- channel -> version, as msgpack
local CHANNEL = 'c:' -- and a channel: its value, if that stands outside the checkpoint
local WRITE = 'w:' -- and "<checkpoint id>NUL<task id>NUL<index>": a pending write, of this checkpoint or a later one
local LAST_UPDATE = 'a' -- a random string of the last write applied
local SIZE = 's' -- upper bound of the entry's bytes
local PREDATES_TASKS = 'o' -- id of a checkpoint of before format 4, whose pending sends are its parent's writes
local HISTORY = 'd' -- what some `DeltaChannel`s are rebuilt from at a checkpoint
local HISTORY_CHANNELS = 'dc' -- those channels, as a msgpack array
local HISTORY_PATH = 'p' -- "<bytes>NUL<id>NUL<id>...": that checkpoint and the way from it to the entry's own; the
-- writes of the checkpoints on the way stay, and take so many bytes
local HISTORY_FILL_LEASE = 'dt' -- a fill lease to fill these
local FILL_LEASE = 't' -- the fill lease, "<deadline ms> <generation> <token>"
