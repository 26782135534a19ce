-- Checkpoints whose parent has gone have none any more. Returns which.
update checkpoints set parent_checkpoint_id = null
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and parent_checkpoint_id = any(%(ids)s)
returning checkpoint_id
