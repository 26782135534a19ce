-- The checkpoints of some runs in one thread, by namespace.
select checkpoint_ns, array_agg(checkpoint_id) as checkpoint_ids from checkpoints
where thread_id = %(thread)s and metadata ->> 'run_id' = any(%(runs)s)
group by checkpoint_ns
