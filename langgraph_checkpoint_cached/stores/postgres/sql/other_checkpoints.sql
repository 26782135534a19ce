-- The checkpoints of a namespace but these.
select checkpoint_id from checkpoints
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id <> all(%(ids)s)
