-- Checkpoints by run.

-- name: threads_of_runs
-- Find the threads with checkpoints of some runs, among the threads given or, for null, among all. The upstream
-- tables have no index for it; `create index concurrently on checkpoints ((metadata ->> 'run_id'))` makes one that
-- is used.
select distinct thread_id from checkpoints
where metadata ->> 'run_id' = any(%(runs)s)
  and (%(threads)s::text[] is null or thread_id = any(%(threads)s::text[]))
order by thread_id

-- name: checkpoints_of_runs
-- Find the checkpoints of some runs in one thread, by namespace.
select checkpoint_ns, array_agg(checkpoint_id) as checkpoint_ids from checkpoints
where thread_id = %(thread)s and metadata ->> 'run_id' = any(%(runs)s)
group by checkpoint_ns
