-- Deletes the pending writes of checkpoints of a namespace: by what is deleted, not by what is left, for a run saves
-- both in the background and in either order.
delete from checkpoint_writes
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id = any(%(ids)s)
