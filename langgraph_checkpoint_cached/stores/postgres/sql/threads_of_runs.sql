-- The threads that hold checkpoints of some runs: all of them, or those among the ones named. No table of the stock
-- saver has an index for it; `create index concurrently on checkpoints ((metadata ->> 'run_id'))` would be used.
select distinct thread_id from checkpoints
where metadata ->> 'run_id' = any(%(runs)s)
  and (%(threads)s::text[] is null or thread_id = any(%(threads)s::text[]))
order by thread_id
